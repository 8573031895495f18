"""Process ids: unique without a registry, sortable by time, safe as file name and object key."""

import hashlib
import re
import secrets
import time
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from loradash.domain.kinds import KINDS, Kind, kind_of_id

PROCESS_ID_PATTERN = r"^[a-z]{2,12}_[0-9a-z]{20}$"

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_TIME_DIGITS = 10
_RANDOM_DIGITS = 10
_JOB_KEYS = "job/"
_CLIENT_KEYS = "client/"


def _checked(text: str) -> str:
    if not is_process_id(text):
        raise ValueError("isn't a process id")
    return text


ProcessId = Annotated[str, StringConstraints(pattern=PROCESS_ID_PATTERN), AfterValidator(_checked)]

UPLOAD_ID = re.compile(rf"upload_([{_ALPHABET}]{{10}})[{_ALPHABET}]{{10}}")


def new_process_id(kind: Kind, now_s: float | None = None) -> str:
    """Return a fresh id such as ``train_01k9x3q4zt8m2v7c0hde``.

    The first 10 digits are the Unix time in milliseconds and the last 10 are 50 random bits, so
    ids sort by creation and two machines don't meet.
    """
    return f"{KINDS[kind].id_prefix}_{_sortable(now_s)}"


def process_id_of(kind: Kind, key: str) -> str:
    """Return the id that this idempotency key always has, so that what is sent twice runs once.

    Such ids don't sort by time; lists go by the time in the record.
    """
    prefix = KINDS[kind].id_prefix
    number = int.from_bytes(hashlib.sha256(f"{prefix}/{key}".encode()).digest())
    digits = []
    for _ in range(_TIME_DIGITS + _RANDOM_DIGITS):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(digits)}"


def key_of_job(job_id: str) -> str:
    """Return the idempotency key of a job of a queue, which may be delivered several times."""
    return f"{_JOB_KEYS}{job_id}"


def key_of_client(key: str) -> str:
    """Return the idempotency key that stands for a client's, whatever it holds: never a job's."""
    return f"{_CLIENT_KEYS}{key}" if key.startswith((_JOB_KEYS, _CLIENT_KEYS)) else key


def is_process_id(text: str) -> bool:
    """Whether the text has the form of a process id, of a kind that is known here."""
    return re.fullmatch(PROCESS_ID_PATTERN, text) is not None and kind_of_id(text) is not None


def new_upload_id(now_s: float | None = None) -> str:
    """Return a fresh id of an upload, made as process ids are."""
    return f"upload_{_sortable(now_s)}"


def upload_time_s(text: str) -> float | None:
    """Return the Unix time at which an upload's id was made, or None for any other text."""
    match = UPLOAD_ID.fullmatch(text)
    if match is None:
        return None
    milliseconds = 0
    for digit in match[1]:
        milliseconds = milliseconds * 32 + _ALPHABET.index(digit)
    return milliseconds / 1000


def _sortable(now_s: float | None) -> str:
    milliseconds = int((time.time() if now_s is None else now_s) * 1000)
    digits = []
    for _ in range(_TIME_DIGITS):
        milliseconds, digit = divmod(milliseconds, 32)
        digits.append(_ALPHABET[digit])
    random_part = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_DIGITS))
    return f"{''.join(reversed(digits))}{random_part}"
