"""The table of docs/adapters.md that says what becomes of each kind of file."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs/adapters.md"
_ROW = re.compile(r"^\| (?P<kind>[^|]+?) \| (?P<outcome>exact|refused: \"[^\"]+\")[^|]*\|", re.M)


def documented_outcomes() -> dict[str, str | None]:
    """By the kind's name: None if it is used exactly, or words of the text that refuses it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## What loradash makes of files of every make")[1].split("\n## ")[0]
    return {
        row["kind"]: None if row["outcome"] == "exact" else row["outcome"].split('"')[1]
        for row in _ROW.finditer(section)
    }
