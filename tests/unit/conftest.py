"""What the unit tests share: engines that are ten-line scripts, and images made on the spot."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from loradash.engines.engine import Command
from loradash.settings import Settings
from tests.unit.no_network import network_refused

settings.register_profile(
    "loradash",
    deadline=None,  # the machines that run this are shared and slow
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", parent=settings.get_profile("loradash"),
                          derandomize=False, max_examples=1000)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "loradash"))

TIMEOUT_S = 180
"""For one unit test; the slowest takes a few seconds on an idle machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give unit tests less time than `pyproject.toml` gives the others."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


PRELUDE = """
import json, os, signal, subprocess, sys, time
FD = int(os.environ["LORADASH_EVENTS_FD"])
with open("groups.txt", "a") as file:
    file.write(f"{os.getpid()}\\n")
def emit(type, **fields):
    os.write(FD, (json.dumps({"type": type, **fields}) + "\\n").encode())
"""


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test that tries to reach another machine, even if the code copes with the refusal."""
    with network_refused() as tried:
        yield
    assert tried == []


@pytest.fixture
def engine_script(tmp_path: Path) -> Callable[..., Command]:
    """Return a function that makes the command of an engine from the body of its script."""

    def make(body: str, *arguments: str) -> Command:
        script = tmp_path / "engine_script.py"
        script.write_text(PRELUDE + body, encoding="utf-8")
        return Command(
            argv=(sys.executable, "-S", "-E", str(script), *arguments),
            working_directory=tmp_path,
        )

    return make


@pytest.fixture
def assert_no_survivors(tmp_path: Path) -> Callable[[], None]:
    """Return a check that no process of any group started by `engine_script` is alive."""

    def check() -> None:
        groups = {int(line) for line in (tmp_path / "groups.txt").read_text().split()}
        assert groups
        deadline = time.monotonic() + 2  # a killed grandchild needs a moment to vanish
        while alive := _alive(groups):
            assert time.monotonic() < deadline, f"still alive: {alive}"
            time.sleep(0.02)

    return check


def _alive(groups: set[int]) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _parent, group = text.rpartition(")")[2].split()[:3]
        if int(group) in groups and state not in "ZX":
            found.append(text)
    return found


@pytest.fixture
def save_image(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a plain image below ``tmp_path / "data"``."""

    def save(
        name: str,
        size: tuple[int, int] = (32, 24),
        colour: object = (200, 30, 40),
        mode: str = "RGB",
        caption: str | None = None,
        **options: object,
    ) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return save


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of ours is set, and the working directory holds no ``.env``."""
    known = {name for names in environment_names().values() for name in names}
    for name in list(os.environ):
        if name.upper() in known:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def environment_names() -> dict[str, list[str]]:
    """Each setting with the environment variables that it is read from."""
    names = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = [alias] if isinstance(alias, str) else list(getattr(alias, "choices", [name]))
        names[name] = [str(choice) for choice in choices]
    return names
