"""Every promise in docs/reference-weaknesses.md has a test that exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs/reference-weaknesses.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| weakness", "| ---"))
]


@cache
def names_in(path):
    """The names of all tests in a file, those in classes too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:60])
def test_every_weakness_has_a_test_that_exists(row):
    _, weakness, instead, test, _ = row.split("|")
    assert weakness.strip().endswith(".")
    assert instead.strip().endswith(".")
    (path, name) = re.fullmatch(r" `(tests/\w+/test_\w+\.py)::(test_\w+)` ", test).groups()
    assert name in names_in(path)


def test_the_table_is_read():
    assert len(ROWS) > 50
