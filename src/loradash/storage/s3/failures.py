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

from loradash.errors import (
    LoradashError,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
)
from loradash.storage.s3.requests import TRY_AGAIN, error_code, refused
from loradash.storage.store import no_such_object

STORE_ERRORS = (BaseError, FileNotFoundError)

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_TOLD = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
_MAX_SHOWN = 300
_REDIRECT = "Received redirect without LOCATION"
_NOT_PARTIAL = "Received non-partial response when range requested"
_NOT_S3 = re.compile(r"(?:ETag|Last-Modified|Content-Length) Header missing|Content-Range header")
_MEETING = 409  # Amazon answers so where two conditional writes meet: who won is told next time


def translated(error: Exception, what: str, key: str) -> LoradashError:
    """Return the error of ours for one of `STORE_ERRORS`."""
    text, status = _text_of(error), _status_of(error)
    told = _TOLD.search(text)
    code = error_code(told[1]) if told else ""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return no_such_object(key)
    if isinstance(error, AlreadyExistsError | PreconditionError) and status != 409:
        return PreconditionFailed(
            f"object {key!r} was changed by another writer", remedy="Read it again."
        )
    said = f"{what} {key}: {status} {told[1]} {told[2]}" if told else f"{what} {key}: {text}"
    said = said[:_MAX_SHOWN]
    if _REDIRECT in text:
        return refused(said, "PermanentRedirect")
    if _NOT_S3.search(text):
        return StoreRefused(
            f"{said} (S3 tells that)",
            remedy="Correct S3_ENDPOINT_URL: what answers there isn't S3, or changes its replies.",
        )
    is_answer = status >= 300 and status not in TRY_AGAIN and status != _MEETING
    no_use = (PermissionDeniedError, UnauthenticatedError, NotSupportedError, FileNotFoundError)
    if code or is_answer or isinstance(error, no_use):
        return refused(said, code or (told[1] if told else ""), status)
    return StoreUnavailable(said, remedy="Check that the object store can be reached.")


def tells_nothing(error: Exception) -> bool:
    """Whether a failure has no text of the provider's that says why."""
    status = _status_of(error)
    may_pass = status >= 500 or status in TRY_AGAIN or status == _MEETING
    return not may_pass and not _TOLD.search(_text_of(error))


def is_not_partial(error: Exception) -> bool:
    """Whether a range was asked for, and the whole object came."""
    return _NOT_PARTIAL in str(error)


def is_out_of_range(error: Exception) -> bool:
    """Whether the error says that an object ends before the range that was asked for."""
    return _status_of(error) == 416


def _status_of(error: Exception) -> int:
    """Return the HTTP status of the reply, or 0. Names and ids in the text look like one too."""
    found = _STATUS.search(_text_of(error))
    return int(found[1]) if found else 0


def _text_of(error: Exception) -> str:
    return " ".join(str(error).split()).partition(" Debug source: ")[0]
