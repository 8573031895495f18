"""Base models on the hub, played by a small server: what is fetched, and what is said when not."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loradash.data import base_model_folder
from loradash.engines.diffusers.base_models import hub as hub_module
from loradash.engines.diffusers.base_models.families import BaseModelSource, find_base_model
from loradash.engines.diffusers.base_models.inspection import Inspection, inspect
from loradash.errors import InvalidBaseModel
from tests.hub_stand_in import COMMIT, HubStandIn, in_place_of_the_hub

pytest.importorskip("huggingface_hub", reason="the hub's library comes with the engine's packages")

EMOJI = base_model_folder("emoji-base")
UNET = "unet/diffusion_pytorch_model.safetensors"
NAME = "fake/sd"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub with one whole model, and an empty cache."""
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.3)
    with in_place_of_the_hub(tmp_path / "cache", monkeypatch) as served:
        served.repositories[NAME] = copied(tmp_path / "served")
        yield served


def copied(folder: Path) -> Path:
    shutil.copytree(EMOJI, folder, copy_function=os.symlink)
    return folder


def replace(hub: HubStandIn, name: str, content: bytes, repository: str = NAME) -> None:
    path = hub.repositories[repository] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def look(name: str = NAME, *, offline: bool = False) -> Inspection:
    return inspect(find_base_model(name), offline=offline)


def refusal(name: str = NAME, *, offline: bool = False) -> str:
    with pytest.raises(InvalidBaseModel) as caught:
        look(name, offline=offline)
    assert caught.value.remedy
    assert "outgoing traffic" not in str(caught.value)
    return str(caught.value)


def test_a_whole_model_passes_by_its_small_files_and_headers(hub: HubStandIn) -> None:
    found = look()
    assert found.native_size == 64
    assert found.hub
    assert found.hub.revision == COMMIT
    assert found.layout
    assert UNET in found.layout.needed
    assert hub.bytes_of(".safetensors") <= 3 * 256 * 1024
    assert not found.warnings


@pytest.mark.parametrize("tells_sizes", [True, False])
@pytest.mark.parametrize("ignores_ranges", [True, False])
def test_a_server_that_tells_no_sizes_or_sends_all_is_understood(
    hub: HubStandIn, tells_sizes: bool, ignores_ranges: bool
) -> None:
    hub.tells_sizes, hub.ignores_ranges = tells_sizes, ignores_ranges
    assert look().native_size == 64


@pytest.mark.parametrize(
    "kind", ["FluxPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusion3Pipeline"]
)
def test_another_family_is_refused_by_its_first_small_file(hub: HubStandIn, kind: str) -> None:
    replace(hub, "model_index.json", json.dumps({"_class_name": kind}).encode())
    assert kind in refusal()
    assert list(hub.sent) == ["", "model_index.json"]


ANSWERS: dict[str, tuple[int, dict[str, str], list[str]]] = {
    "no such model": (404, {"X-Error-Code": "RepoNotFound"},
                      ["there is no model fake/x", "private", "HF_TOKEN"]),
    "private": (401, {"X-Error-Code": "RepoNotFound"}, ["there is no model fake/x", "private"]),
    "gated": (403, {"X-Error-Code": "GatedRepo"},
              ["licence", "gated", "/fake/x", "set HF_TOKEN"]),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}, ["disabled"]),
    "forbidden": (403, {}, ["403", "right to read"]),
    "wrong token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"},
                    ["refuses HF_TOKEN (401)", "valid token"]),
    "no revision": (404, {"X-Error-Code": "RevisionNotFound"}, ["revision"]),
    "rate limit": (429, {"Retry-After": "17"}, ["429", "in 17 seconds"]),
    "rate limit without a time": (429, {}, ["429", "again later"]),
    "server error": (500, {}, ["error of its own (500)", "later"]),
    "bad gateway": (502, {}, ["502"]),
    "not there": (503, {}, ["503"]),
    "not a hub": (200, {}, ["isn't a model hub", "HF_ENDPOINT"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_each_answer_of_the_hub_is_a_sentence_of_its_own(hub: HubStandIn, kind: str) -> None:
    status, headers, words = ANSWERS[kind]
    hub.failures["fake/x"] = (status, headers)
    text = refusal("fake/x")
    assert [word for word in words if word not in text] == [], text


def test_the_causes_differ_from_each_other(hub: HubStandIn) -> None:
    texts = set()
    for number, (status, headers, _) in enumerate(ANSWERS.values()):
        hub.failures[f"fake/m{number}"] = (status, headers)
        texts.add(refusal(f"fake/m{number}").replace(f"fake/m{number}", ""))
    assert len(texts) == len(ANSWERS) - 1  # who may not see a private model can't tell the two


def test_a_gated_model_with_a_token_says_that_the_account_was_not_let_in(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.failures["fake/x"] = (403, {"X-Error-Code": "GatedRepo"})
    assert "account of HF_TOKEN wasn't" in refusal("fake/x")


def test_a_hub_that_is_not_there_is_told_with_its_address(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    text = refusal()
    assert "the hub at http://127.0.0.1:1 can't be reached: " in text
    assert "refused" in text
    assert "check the network" in text.lower()


def test_a_hub_that_hangs_is_told(hub: HubStandIn) -> None:
    hub.hangs_s = 0.8
    assert "didn't answer in time" in refusal()


def test_an_id_that_the_hub_does_not_know_the_form_of_is_told(hub: HubStandIn) -> None:
    assert "isn't an id of the hub" in refusal("fake/a--b")


@pytest.mark.parametrize(
    ("status", "words"), [(503, "error of its own (503)"), (429, "429"), (403, "403")]
)
def test_a_file_that_fails_is_told_by_name_and_cause(
    hub: HubStandIn, status: int, words: str
) -> None:
    hub.failing_files[UNET] = (status, {})
    text = refusal()
    assert UNET in text
    assert words in text


def test_weights_are_judged_by_their_beginning(hub: HubStandIn) -> None:
    replace(hub, UNET, (EMOJI / UNET).read_bytes()[:5_000_000])
    replace(hub, "vae/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/x")
    replace(hub, "text_encoder/model.safetensors", b"")
    with pytest.raises(InvalidBaseModel) as caught:
        look()
    told = " ".join(caught.value.problems)
    assert f"{UNET} is cut off: 5,000,000 of 13,468,464" in told
    assert "Git LFS pointer" in told
    assert "text_encoder/model.safetensors is empty" in told


def test_only_pickled_weights_are_refused_before_they_are_fetched(hub: HubStandIn) -> None:
    root = hub.repositories[NAME]
    (root / UNET).rename(root / "unet/diffusion_pytorch_model.bin")
    assert "run code" in refusal()
    assert hub.bytes_of(".bin") == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter (LoRA)"),
        (["sd15.safetensors", "README.md"], "sd15.safetensors"),
        (["model-Q4.gguf"], "GGUF"),
        ([], "isn't a diffusers pipeline"),
    ],
)
def test_a_repository_of_something_else_is_told_by_what_it_is(
    hub: HubStandIn, tmp_path: Path, files: list[str], words: str
) -> None:
    hub.repositories["fake/other"] = tmp_path / "other"
    hub.repositories["fake/other"].mkdir()
    for name in files:
        replace(hub, name, b"x", "fake/other")
    assert words in refusal("fake/other")
    assert hub.bytes_of(".safetensors") == 0


def test_a_download_that_does_not_fit_is_refused_before_it_begins(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        hub_module.shutil, "disk_usage", lambda path: usage._replace(free=10_000_000)
    )
    text = refusal()
    assert "are to be downloaded" in text
    assert "10.0 MB are free" in text
    assert "HF_HOME" in text


# The cache


def fill_cache(hub: HubStandIn) -> None:
    from huggingface_hub import hf_hub_download

    layout = look().layout
    assert layout
    for name in layout.needed:
        hf_hub_download(NAME, name)


def test_a_model_in_the_cache_needs_no_hub(hub: HubStandIn) -> None:
    fill_cache(hub)
    before = len(hub.requests)
    assert look(offline=True).native_size == 64
    assert len(hub.requests) == before


def test_a_hub_that_fails_is_a_warning_if_the_model_is_in_the_cache(hub: HubStandIn) -> None:
    fill_cache(hub)
    hub.failures[NAME] = (503, {})
    (warning,) = look().warnings
    assert "error of its own (503)" in warning
    assert "the copy in the cache is used" in warning


def test_half_a_model_in_the_cache_says_why_the_rest_is_not_fetched(hub: HubStandIn) -> None:
    look()
    from huggingface_hub import hf_hub_download

    hf_hub_download(NAME, "model_index.json")
    hub.failures[NAME] = (503, {})
    text = refusal()
    assert "error of its own (503)" in text
    assert f"{UNET} is missing" in text
    assert "downloads are off" in refusal(offline=True)


def test_a_model_that_is_not_in_the_cache_says_that_downloads_are_off(hub: HubStandIn) -> None:
    text = refusal(offline=True)
    assert "isn't in the hub's cache" in text
    assert "HF_HUB_OFFLINE" in text
    assert not hub.requests


def test_a_training_keeps_the_commit_that_it_began_with(hub: HubStandIn) -> None:
    source = BaseModelSource(name=NAME, kind="hub", location=NAME, revision="c" * 40)
    inspect(source)
    assert f"GET api/models/{NAME}/revision/{'c' * 40}" in hub.requests


def test_without_the_hubs_library_nobody_asks_the_hub(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "find_spec", lambda name: None)
    assert look().native_size is None
    assert not hub.requests


# Single files, whose configs are another repository's


def test_a_single_file_takes_its_configs_from_a_repository(hub: HubStandIn, tmp_path: Path) -> None:
    from tests.unit.test_base_model_inspection import WHOLE, safetensors

    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(WHOLE))
    found = inspect(find_base_model(str(path), extras=NAME))
    assert found.native_size == 64
    assert found.layout
    assert not any(name.endswith(".safetensors") for name in found.layout.needed)
    with pytest.raises(InvalidBaseModel) as caught:
        inspect(find_base_model(str(path)))
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in caught.value.message
    assert "there is no model" in caught.value.message
    assert "extras_name_or_path" in caught.value.remedy
    with pytest.raises(InvalidBaseModel, match="downloads are off"):
        inspect(find_base_model(str(path)), offline=True)
