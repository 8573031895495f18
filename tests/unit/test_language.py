"""The code and its documents use the field's terms, and not words that only we understand."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = {
    "somebody": "another worker, another program",
    "hears?": "poll, receive",
    "tell_s": "report_interval_s",
    "hear_s": "poll_interval_s",
    "wish(es|ed)?": "stop reason",
    "hurry": "stop now",
    "promptly": "with a timeout",
    "g[ia]ves?[ _]way": "unload, yield",
    "lapsed": "expired",
    "troubles?": "error, problem",
    "half characters?": "lone surrogates",
    "brought nothing": "ended without an attempt",
    "queue_not_worked": "queue_poll_failed",
}
"""Each private word, and what stands in its place; `docs/glossary.md` explains the terms."""

WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(PRIVATE)})(?![A-Za-z])", re.IGNORECASE)

NAMES_THAT_STAY = ("processes_lapsed",)
"""The name of an index in databases that exist."""


def found_in(text: str) -> Iterator[str]:
    for name in NAMES_THAT_STAY:
        text = text.replace(name, "")
    for number, line in enumerate(text.splitlines(), 1):
        for match in WORD.finditer(line):
            word = match.group()
            (term,) = (to for of, to in PRIVATE.items() if re.fullmatch(of, word, re.IGNORECASE))
            yield f"line {number}: {word!r}; write: {term}"


def texts() -> list[Path]:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    return [path for path in files if path.name != "glossary.md"]  # which lists the words


@pytest.mark.parametrize(
    "text", ["somebody has it", "self._trouble = x", "def give_way_to", "Lapsed"]
)
def test_private_words_are_found_in_prose_and_in_names(text: str) -> None:
    assert list(found_in(text))


def test_no_private_word_is_left_in_code_or_documents() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {one}"
        for path in texts()
        for one in found_in(path.read_text(encoding="utf-8"))
    ]
    assert found == []
