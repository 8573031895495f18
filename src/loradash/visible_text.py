"""Text from outside, made fit to be shown: nothing in it can act on what shows it.

Names of files, captions, prompts and the errors that quote them may hold anything. Control
characters move a terminal's cursor, clear it or set its title (ESC, CSI and OSC sequences, also by
the single characters U+0080 to U+009F); line ends forge lines of logs and lists; bidirectional
controls show ``gnp.exe`` as ``exe.png`` (CVE-2021-42574); lone surrogates, by which Python keeps
the bytes of names that aren't UTF-8, can't be written at all. Each is shown as Python writes it in
a text: ``\\x1b``, ``\\u202e``, ``\\udc83``.
"""

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_LINE_ENDS = (0x2028, 0x2029)
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)

ODD_CHARACTERS = frozenset((*_CONTROLS, *_LINE_ENDS, *_BIDI, *_SURROGATES))
"""Code points that act on what shows them, or can't be written."""


def _escaped(code: int) -> str:
    return repr(chr(code))[1:-1] if code < 0x100 else f"\\u{code:04x}"


_IN_A_LINE = {code: _escaped(code) for code in ODD_CHARACTERS}
_IN_LINES = {code: text for code, text in _IN_A_LINE.items() if chr(code) not in "\t\n"}
_IN_JSON = {code: f"\\u{code:04x}" for code in ODD_CHARACTERS}


def visible(text: str) -> str:
    """Return the text as one line in which control characters can be seen and do nothing."""
    return text.translate(_IN_A_LINE)


def visible_lines(text: str) -> str:
    """As `visible`, for texts of several lines: line ends and tabs stay as they are."""
    return text.translate(_IN_LINES)


def plain_json(text: str) -> str:
    """Escape what `visible` does in a JSON text of one line. It stands for the same value."""
    return text.translate(_IN_JSON)


def is_plain(text: str) -> bool:
    """Whether there is nothing in the text that `visible` would change."""
    return ODD_CHARACTERS.isdisjoint(map(ord, text))
