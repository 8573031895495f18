"""Names that become file names: of an adapter, of a generation's images."""

import unicodedata
from typing import Annotated, Any

from pydantic import BeforeValidator

MAX_NAME_CHARACTERS = 100
MAX_NAME_BYTES = 180  # a part of a key has 200, and endings are added

_SEPARATORS = frozenset("/\\")
_INVISIBLE = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def file_stem(value: Any) -> str:
    """Return a name in NFC without spaces around it; letters of any script and signs are fine.

    A whole number is taken for its digits: JSON and YAML make one of a name such as ``2026``.
    Raises `ValueError` for what can't be a file name everywhere, or would hide in a list.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("a name must be text")
    name = unicodedata.normalize("NFC", value).strip()
    if not name:
        raise ValueError("a name must have at least one character")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a name of {len(name)} characters; at most {MAX_NAME_CHARACTERS}")
    for letter in name:
        if letter in _SEPARATORS:
            raise ValueError(f"{letter!r} can't be in a name, which becomes a file's name")
        if unicodedata.category(letter) in _INVISIBLE or letter in _DIRECTION_MARKS:
            raise ValueError(f"the character U+{ord(letter):04X} can't be in a name")
    if name.startswith("."):
        raise ValueError("a name can't begin with a dot: such files are hidden")
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise ValueError(f"a name of {size} bytes in UTF-8; at most {MAX_NAME_BYTES}")
    return name


Name = Annotated[str, BeforeValidator(file_stem)]
