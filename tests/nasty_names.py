"""Names that people's files have, and some that were made to harm those who look at them."""

import os
import unicodedata

BRACKETS = "with [sks] brackets"
NASTY = (
    BRACKETS, "[red]red[/red]", "[/b]", "[link=http://x]y", ":smile:", "\\[a]", "a \\", "[", "]",
    "<b>&amp;", "{task.description}", "%s {0} {{x}}", "\x1b[2Jcleared", "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x9b31mred", "\x9d0;title\x9c", "\x90q\x9c",
    "a\x08\x08b", "\x7f", "two\nlines", "a\rb", "tab\there", "\x85next", "para\u2029graph",
    "line\u2028end", "\u202egnp.exe", "\u2066isolated\u2069", "\u200fmark", "ソ 表", "naïve",
    "👨‍👩‍👧",
)  # fmt: skip
NOT_UTF8 = os.fsdecode(b"\x83\x5c cp932")

_ODD_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
_MOVES_OTHERS = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")


def acts(letter):
    """Whether a character does something to what shows it, by Unicode's own account."""
    return unicodedata.category(letter) in _ODD_CATEGORIES or (
        unicodedata.bidirectional(letter) in _MOVES_OTHERS
    )


def harmful(shown):
    """The characters of a printed text that act on the terminal; its line ends are its own."""
    return [letter for letter in shown if acts(letter) and letter != "\n"]
