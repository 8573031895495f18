"""Which characters may stand in a text that becomes a prompt, a caption, a name or a path.

Those that YAML 1.2 calls printable (5.1): all but control characters, halves of surrogate pairs and
what isn't a character. Whatever way a text comes, nobody has written the others on purpose; models
don't know them, and files, terminals and databases stumble over them.
"""

import re
import unicodedata

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KINDS = {"Cc": "a control character", "Cs": "half of a surrogate pair"}
_BYTES = range(0xDC80, 0xDD00)  # as which Python keeps bytes of names that aren't UTF-8
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def find_unprintable(text: str) -> re.Match[str] | None:
    """Return the first character that may not stand in a text, with its place."""
    return _UNPRINTABLE.search(text)


def named_character(character: str) -> str:
    """Return words for a character that can't be shown: ``the character U+001B (...)``."""
    code = ord(character)
    kind = _KINDS.get(unicodedata.category(character), "not a character")
    if code in _BYTES:
        kind += f", or the byte 0x{code - 0xDC00:02x}, which isn't UTF-8"
    return f"the character U+{code:04X} ({kind})"


def printable(value: object) -> object:
    """Return a value as it is. Raises `ValueError` that names what may not stand in a text."""
    if isinstance(value, str) and (found := find_unprintable(value)):
        raise ValueError(f"{named_character(found.group())} can't be in a text; remove it")
    return value


def with_pairs_joined(text: str) -> str:
    """Join surrogate pairs, as which JSON writes characters beyond U+FFFF; lone halves stay."""
    return _PAIR.sub(
        lambda pair: pair.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text
    )
