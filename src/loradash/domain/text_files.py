"""The text of files that people write: configs, captions, prompts."""

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which its own begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes) -> str:
    """Return a file's text without its byte order mark: UTF-8, or what the mark says.

    Raises `ValueError` that says what is wrong with any other file; nothing is guessed, since a
    text that was read with the wrong encoding would be used.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    shown = encoding.removesuffix("-sig").upper()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        looks = ", it looks like UTF-16 without a byte order mark" if b"\0" in data[:100] else ""
        raise ValueError(
            f"not {shown} text (byte {error.start}{looks}); save it with that encoding"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"a NUL byte: not {shown} text, perhaps UTF-16 without a byte order mark; save it with "
            "that encoding"
        )
    return text
