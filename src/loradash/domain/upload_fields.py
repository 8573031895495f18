"""The values that uploads and other input are made of: bounded, and raising ``ValueError`` only.

Input comes from browsers, queues and strangers. Each check here looks at a value's size before it
does anything whose cost depends on it.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from loradash.domain.characters import printable
from loradash.domain.dataset_files import IMAGE_KINDS, file_type, sorted_out
from loradash.domain.dataset_manifest import UPLOAD_SESSION
from loradash.domain.ids import UPLOAD_ID

MAX_CONTENT_CHARACTERS = 140 * 1024 * 1024
MAX_FILE_NAME_CHARACTERS = 500
MAX_FILE_NAME_BYTES = 200  # what an object store's keys may have in one part
MAX_FILE_PATH_BYTES = 600  # and what is left of a key for all parts together
MAX_SHOWN = 80
MAX_NUMBER = 2**63 - 1  # what a database's column holds

_MAX_REPEATED = 100  # a longer list is refused without a look at its items
_CONTROLS = frozenset({"Cc", "Zl", "Zp"})  # Unicode categories


def shown(value: object) -> str:
    """Return a value for an error message: at most `MAX_SHOWN` characters, none of them odd."""
    if isinstance(value, str):
        text = repr(value[:MAX_SHOWN])
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        text = f"a number of {value.bit_length()} bits"
    elif value is None or isinstance(value, bool | int | float):
        text = str(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


Text = Annotated[str, BeforeValidator(printable)]
"""Text without control characters and lone surrogates."""

Count = Annotated[int, Field(ge=0, le=MAX_NUMBER)]


def list_of(
    minimum: int, maximum: int, *, one: bool = False, distinct: bool = False
) -> BeforeValidator:
    """Return a check that a value is a list of so many items, made before its items are looked at.

    With ``one``, a text stands for the list of itself. With ``distinct``, texts that are repeated
    count once and are left out.
    """

    def check(value: Any) -> Any:
        if one and isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list{' or one text' if one else ''}")
        if distinct and len(value) <= _MAX_REPEATED * maximum:
            texts = dict.fromkeys(item for item in value if isinstance(item, str))
            value = [*texts, *(item for item in value if not isinstance(item, str))]
        if len(value) < minimum:
            raise ValueError("is empty; send at least one entry")
        if len(value) > maximum:
            raise ValueError(f"has {len(value)} entries; send at most {maximum} at once")
        return tuple(value)

    return BeforeValidator(check)


_FOLDER = re.compile(r"(?![._])[a-zA-Z0-9._-]{1,150}")


def matching(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    """Return a check that a value is text of a form; ``what`` says which."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("must be text")
        if not pattern.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return check


DatasetFolder = Annotated[
    str,
    PlainValidator(
        matching(
            _FOLDER, "1 to 150 letters, digits, '.', '_' and '-', and not begin with '.' or '_'"
        )
    ),
]
UploadId = Annotated[
    str,
    PlainValidator(matching(UPLOAD_ID, "an upload's id, as create_upload returns it")),
]
Sha256 = Annotated[
    str,
    PlainValidator(matching(re.compile(r"[0-9a-fA-F]{64}"), "64 hexadecimal digits")),
    AfterValidator(str.lower),
]


def one_line(text: Any) -> Any:
    """Return a text with every run of white space and control characters as one space.

    NUL stays, and so do lone surrogates: what holds them isn't text and has come by mistake.
    """
    if not isinstance(text, str):
        return text
    spaced = [
        " " if unicodedata.category(letter) in _CONTROLS and letter != "\0" else letter
        for letter in text
    ]
    return " ".join("".join(spaced).split())


def file_name(value: Any) -> str:
    """Return the name that a file gets in a dataset: its path with ``/``, composed.

    Of a path that is absolute or leads upwards only the last part is taken, as browsers send one
    that they have made up. Raises `ValueError` for what can't be a file's name. Whether a dataset
    takes the file isn't looked at: see `loradash.domain.dataset_files`.
    """
    if not isinstance(value, str):
        raise ValueError("must be text")
    if not 1 <= len(value) <= MAX_FILE_NAME_CHARACTERS:
        raise ValueError(f"must have 1 to {MAX_FILE_NAME_CHARACTERS} characters")
    if any(unicodedata.category(letter) in {*_CONTROLS, "Cs"} for letter in value):
        raise ValueError("holds a control character or line break; rename the file")
    parts = re.split(r"[/\\]", unicodedata.normalize("NFC", value))
    if _NOT_RELATIVE.match(value) or ".." in parts:
        parts = parts[-1:]
    parts = [part for part in parts[:-1] if part not in ("", ".")] + parts[-1:]
    if parts[-1] in ("", ".", ".."):
        raise ValueError("has no name; rename the file")
    name = "/".join(parts)
    if name.casefold() == UPLOAD_SESSION:
        raise ValueError("is a name that uploads need themselves; rename the file")
    if max(len(part.encode()) for part in parts) > MAX_FILE_NAME_BYTES:
        raise ValueError(f"is longer than {MAX_FILE_NAME_BYTES} bytes; shorten it")
    if len(name.encode()) > MAX_FILE_PATH_BYTES:
        raise ValueError(f"is, with its folders, longer than {MAX_FILE_PATH_BYTES} bytes")
    return name


_NOT_RELATIVE = re.compile(r"[/\\]|[A-Za-z]:")

FileName = Annotated[str, PlainValidator(file_name)]
"""A file's name in a dataset: its path, with ``/``."""


def check_file_names(names: Sequence[str], *, is_replacement: bool) -> None:
    """Raise `ValueError` if files of these names can't be one upload."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"files: {shown(name)} is there twice; rename one")
        seen.add(name)
    taken = sorted_out(names).taken
    if is_replacement and not any(file_type(name) == "image" for name in taken):
        raise ValueError(
            f"files: no image ({IMAGE_KINDS}) among them; add one, or send "
            "cleanup_existing: false if these belong to images that are already there"
        )


def _content(value: Any) -> str:
    """Only what costs nothing is checked; decoding is done where one file is held at a time."""
    if not isinstance(value, str):
        raise ValueError("must be base64 text")
    if len(value) > MAX_CONTENT_CHARACTERS:
        raise ValueError(
            f"{len(value):,} characters of base64; at most {MAX_CONTENT_CHARACTERS:,} (100 MiB)"
        )
    if not value.isascii():
        raise ValueError("isn't base64: it holds characters beyond ASCII")
    return value


Content = Annotated[str, PlainValidator(_content)]
"""A file's bytes as base64."""


Name = Annotated[Text, Field(max_length=100), BeforeValidator(one_line)]
"""A name or a trigger word: one line."""
