"""What obstore's errors mean. It tells an HTTP status in its text only."""

import re

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from loradash.errors import LoradashError, PreconditionFailed, StoreUnavailable
from loradash.storage.s3.requests import error_code, refused
from loradash.storage.store import no_such_object

STORE_ERRORS = (BaseError, FileNotFoundError)

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_TOLD = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
_MAX_SHOWN = 300


def translated(error: Exception, what: str, key: str) -> LoradashError:
    """Return the error of ours for one of `STORE_ERRORS`."""
    text, status = _text_of(error), _status_of(error)
    told = _TOLD.search(text)
    code = error_code(told[1]) if told else ""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return no_such_object(key)
    if isinstance(error, AlreadyExistsError | PreconditionError) and status != 409:
        return PreconditionFailed(
            f"object {key!r} was changed by somebody else", remedy="Read it again."
        )
    said = f"{what} {key}: {status} {told[1]} {told[2]}" if told else f"{what} {key}: {text}"
    said = said[:_MAX_SHOWN]
    # Amazon answers 409 where two conditional writes meet; which has won is told at the next try.
    is_answer = 400 <= status < 500 and status not in (408, 409, 425, 429)
    no_use = (PermissionDeniedError, UnauthenticatedError, NotSupportedError, FileNotFoundError)
    if code or is_answer or isinstance(error, no_use):
        return refused(said, code)
    return StoreUnavailable(said, remedy="Check that the object store can be reached.")


def is_out_of_range(error: Exception) -> bool:
    """Whether the error says that an object ends before the range that was asked for."""
    return _status_of(error) == 416


def _status_of(error: Exception) -> int:
    """Return the HTTP status of the reply, or 0. Names and ids in the text look like one too."""
    found = _STATUS.search(_text_of(error))
    return int(found[1]) if found else 0


def _text_of(error: Exception) -> str:
    return " ".join(str(error).split()).partition(" Debug source: ")[0]
