"""Modules and functions stay small enough to be read at once; what is larger is named here."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src/loradash"
MODULE_LINES = 500
FUNCTION_LINES = 60

LARGE_MODULES = {
    "domain/process.py": 520,
    "domain/training_config.py": 670,
    "protocol/requests.py": 565,
    "runtime/attempt.py": 525,
    "services/training/service.py": 635,
}
LONG_FUNCTIONS = {
    "engines/diffusers/child/run_training.py:prepare": 80,
}
"""What is above the limits, and how large it may be. Make it smaller, then take it off."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> Iterator[tuple[str, str]]:
    """Each module's path in the package, and its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each function's name, and the lines of its body without those of functions inside it."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node.name, _lines(node)


def _lines(function: Function) -> int:
    first = function.body[1:] if ast.get_docstring(function) else function.body
    if not first:
        return 0
    inside: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, Function) and node is not function:
            inside |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    body = range(first[0].lineno, (function.end_lineno or first[0].lineno) + 1)
    return len(set(body) - inside)


OUTER = '''
def outer(
    a,
):
    """What.

    How."""
    b = a

    def inner():
        c

    return b
'''


def test_lines_of_a_function_are_those_of_its_own_body() -> None:
    assert dict(functions(ast.parse(OUTER))) == {"outer": 4, "inner": 1}


def above(sizes: dict[str, int], allowed: dict[str, int], limit: int) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > allowed.get(name, limit)}


def test_no_module_is_too_large() -> None:
    sizes = {name: text.count("\n") for name, text in modules()}
    assert above(sizes, LARGE_MODULES, MODULE_LINES) == {}


def test_no_function_is_too_long() -> None:
    sizes = {
        f"{name}:{function}": lines
        for name, text in modules()
        for function, lines in functions(ast.parse(text))
    }
    assert {
        name: size
        for name, size in sizes.items()
        if size > LONG_FUNCTIONS.get(name, FUNCTION_LINES)
    } == {}
