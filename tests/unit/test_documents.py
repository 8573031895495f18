"""What the documents say is what the program does."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from loradash.cli.app import app
from loradash.domain.short_training_config import ShortTrainingConfig
from loradash.domain.training_text import parse_training_text

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def commands() -> list[str]:
    """Every call of the program in a code block or between backticks."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found += re.findall(r"`(loradash [^`\n]+)`", text)
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split(" # ")[0] for line in lines if line.startswith("loradash ")]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)[1:]
    place: Any = typer.main.get_command(app)
    while words and hasattr(place, "commands") and not words[0].startswith("-"):
        assert words[0] in place.commands, command
        place = place.commands[words.pop(0)]
    known = {option for parameter in place.params for option in parameter.opts} | {"--help"}
    assert [word for word in words if word.startswith("-") and word not in known] == []


def test_documents_mention_commands() -> None:
    assert len(commands()) > 5


def test_every_key_of_the_short_form_stands_in_its_table_and_no_other() -> None:
    text = (ROOT / "docs/training-config.md").read_text(encoding="utf-8")
    table = text.split("## Short form")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(
        ShortTrainingConfig.known_keys()
    )


def test_config_in_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    parsed = parse_training_text(config)
    assert parsed.trigger_word == "sks"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_guide_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    package = ROOT / "src/loradash"
    for name in re.findall(r"`([\w/]+\.py)`", text):
        if "NAME" in name:
            continue
        places = (package / name, package / "engines/diffusers" / name, ROOT / name)
        assert any(path.is_file() for path in places), name


def test_ci_runs_on_each_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    named = [one.removeprefix(prefix) for one in project["classifiers"] if one.startswith(prefix)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["quick"]["strategy"]["matrix"]["python"] == named


def test_ci_and_contributors_are_told_of_targets_that_make_has() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in ("CONTRIBUTING.md", ".github/workflows/ci.yml", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        calls = re.findall(r"(?:`|run: |^)make ([a-z ]+)", text, flags=re.MULTILINE)
        assert calls
        assert {word for call in calls for word in call.split()} - targets == set(), name
