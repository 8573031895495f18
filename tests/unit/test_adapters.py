"""Trained LoRAs as things that a user keeps: found by name, shown, renamed, deleted, fetched."""

import hashlib
import json
import struct

import pytest
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.cli.backend import HttpBackend, LocalBackend
from loradash.errors import InvalidAdapter, InvalidSettings, LoradashError, NotFound
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.adapters.uses import users_of

from .tensor_bytes import tensors
from .world import URL, World

run = CliRunner().invoke
METADATA = {
    "loradash.base_model": "emoji-base", "modelspec.architecture": "stable-diffusion-v1/lora",
    "loradash.rank": "8", "loradash.alpha": "4.5", "loradash.trigger_word": "sks",
    "loradash.steps": "10",
}  # fmt: skip


def lora(metadata=METADATA, prefix="lora_unet_x", padding=0):
    shapes = {f"{prefix}.lora_down.weight": (1, 8), f"{prefix}.lora_up.weight": (8, 1)}
    return tensors(shapes, {**metadata, "padding": "x" * padding}, dtype="F16")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def client(world):
    return world.client()


class Local(LocalBackend):
    """The command's own backend on the parts of a world."""

    def __init__(self, world):
        self._dispatcher, self._core = world.dispatcher, world

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(params=["local", "server"])
def commands(request, world, monkeypatch, tmp_path):
    """Commands that work on a world: in this program, or through its server."""
    if request.param == "local":
        target = Local(world)
    else:
        target = HttpBackend(URL)
        monkeypatch.setattr(target, "_http", world.client())
    monkeypatch.setattr("loradash.cli.backend.backend", lambda *_, **__: target)
    monkeypatch.setattr(HttpBackend, "__exit__", lambda *_: None)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return lambda *arguments, **options: run(app, ["adapters", *arguments], **options)


def finished(world, name, data=None, key="lora"):
    process_id = world.running("training", name, step=10).id
    world.keep(process_id, key, f"{name}.safetensors", data or lora())
    return world.completed(process_id)


def uses(world, reference, status="pending"):
    """A generation that waits or runs with an adapter."""
    summary = {"base_model": "emoji-base", "adapters": [{"path": reference, "weight": 1.0}]}
    record = (world.waiting if status == "pending" else world.running)("generation", "image")
    world.registry.change(record.id, lambda one: one.model_copy(update={"summary": summary}))
    return record.id


def ask_json(commands, *arguments):
    shown = commands(*arguments, "--json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout.splitlines()[-1])  # structlog writes there in tests


# Commands, here and through a server


def test_an_adapter_is_shown_by_id_and_name_with_what_its_file_says(world, commands):
    record = finished(world, "cat", lora(padding=70_000))
    shown = ask_json(commands, "show", record.id)
    assert ask_json(commands, "show", "CAT") == shown
    told = shown["metadata"]
    assert (told["base_model"], told["rank"], told["alpha"]) == ("emoji-base", 8, 4.5)
    assert (told["family"], told["key_names"], told["dtype"]) == (
        "Stable Diffusion 1.x", "kohya", "F16",
    )  # fmt: skip
    assert shown["sha256"] == hashlib.sha256(lora(padding=70_000)).hexdigest()
    assert "ComfyUI" in shown["works_in"]
    assert (told["layers"], shown["path"]) == (1, shown["s3_key"])
    text = commands("show", "cat").stdout
    assert shown["path"] in text  # nothing is cut off
    for part in (record.id, shown["sha256"], "rank 8 alpha 4.5", "sks", "A1111"):
        assert part in text


def test_an_adapter_whose_weights_mean_nothing_works_nowhere(world, commands):
    record = finished(world, "cat", lora({**METADATA, "loradash.engine": "scripted"}))
    assert ask_json(commands, "show", record.id)["works_in"] == []


def test_adapters_are_listed_by_pages(world, commands):
    ids = [finished(world, name).id for name in ("cat", "dog", "owl")]
    first = ask_json(commands, "list", "--limit", "2")
    assert [one["process_id"] for one in first["models"]] == ids[:0:-1]
    rest = ask_json(commands, "list", "--cursor", first["next_cursor"])
    assert [one["process_id"] for one in rest["models"]] == ids[:1]
    told = commands("list", "--limit", "2")
    assert "owl" in told.stdout
    assert "--cursor" in told.stderr


def test_an_adapter_is_renamed_unless_another_one_has_the_name(world, commands):
    cat, dog = finished(world, "cat").id, finished(world, "dog").id
    assert ask_json(commands, "rename", "cat", "my cat") == {"process_id": cat, "name": "my cat"}
    assert ask_json(commands, "rename", "my cat", "My cat")["name"] == "My cat"
    refused = commands("rename", dog, "MY CAT")
    assert isinstance(refused.exception, LoradashError)
    assert cat in str(refused.exception)
    assert world.registry.get(dog).name == "dog"


@pytest.mark.parametrize("name", ["", " cat", "cat ", "a/b", "a\nb", "x" * 101, "{dog}", "-x"])
def test_what_can_be_no_name_is_refused(world, commands, name):
    cat, dog = finished(world, "cat").id, finished(world, "dog").id
    refused = commands("rename", cat, "--", name.format(dog=dog))
    assert "can't be used" in str(refused.exception)
    assert world.registry.get(cat).name == "cat"


def test_an_adapter_is_deleted_only_when_the_user_says_yes(world, commands):
    cat = finished(world, "cat").id
    asked = commands("delete", "cat", input="n\n")
    assert asked.exit_code == 1
    assert cat in asked.output
    assert world.registry.artifacts(cat, ["lora"])
    assert ask_json(commands, "delete", "cat", "--yes")["deleted"] == 1
    assert not world.registry.artifacts(cat, ["lora"])
    assert not list(world.store.list(f"results/{cat}/lora"))
    assert isinstance(commands("delete", cat, "--yes").exception, LoradashError)


@pytest.mark.parametrize("status", ["pending", "running"])
def test_an_adapter_that_a_generation_needs_is_not_deleted(world, commands, status):
    cat = finished(world, "cat").id
    generation = uses(world, cat, status)
    assert ask_json(commands, "show", "cat")["used_by"] == [generation]
    refused = commands("delete", "cat", "--yes")
    assert generation in str(refused.exception)
    assert world.registry.artifacts(cat, ["lora"])


def test_adapters_are_downloaded_whole_and_nothing_is_written_over(world, commands, tmp_path):
    cat, dog = finished(world, "cat"), finished(world, "dog", lora({"a": "b"}))
    (tmp_path / "cwd" / "cat.safetensors").write_text("mine")
    files = ask_json(commands, "download", cat.id, "dog")["files"]
    names = ["cat-2.safetensors", "dog.safetensors"]
    assert [one["path"] for one in files] == [str(tmp_path / "cwd" / name) for name in names]
    assert (tmp_path / "cwd" / "cat-2.safetensors").read_bytes() == lora()
    assert (tmp_path / "cwd" / "cat.safetensors").read_text() == "mine"
    assert files[1]["sha256"] == hashlib.sha256(lora({"a": "b"})).hexdigest()
    commands("download", "cat", "-o", "new/mine.safetensors")
    assert (tmp_path / "cwd/new/mine.safetensors").read_bytes() == lora()
    taken = commands("download", dog.id, "-o", "new/mine.safetensors")
    assert isinstance(taken.exception, InvalidSettings)
    assert (tmp_path / "cwd/new/mine.safetensors").read_bytes() == lora()


def test_a_damaged_object_is_not_downloaded(world, commands, tmp_path):
    cat = finished(world, "cat")
    (entry,) = world.registry.artifacts(cat.id, ["lora"])
    data = bytearray(lora())
    data[-1] ^= 1
    world.store.put(entry.key, bytes(data))
    refused = commands("download", "cat")
    assert isinstance(refused.exception, LoradashError)
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("action", [("show",), ("rename",), ("delete", "--yes"), ("download",)])
def test_what_is_no_adapter_is_told_with_what_to_do(world, commands, action):
    waiting = world.waiting("training", "cat").id
    name, *rest = action
    rest += ["new"] if name == "rename" else []
    for reference in ("cat", waiting, "train_01k9x3q4zt8m2v7c0hde", "../x", "results/x", "%2e"):
        refused = commands(name, reference, *rest)
        assert isinstance(refused.exception, LoradashError), refused.output
        assert "loradash" in str(refused.exception)


# Names


def test_a_name_of_several_adapters_is_refused_with_their_ids(world):
    ids = [finished(world, "cat").id for _ in range(2)]
    stored = StoredAdapters(world.registry, world.store)
    with pytest.raises(InvalidAdapter, match="2 trained LoRAs") as refused:
        stored.find("cat")
    assert all(any(one in line for line in refused.value.problems) for one in ids)


def test_a_file_of_this_machine_comes_before_a_name(world, tmp_path, monkeypatch):
    finished(world, "cat")
    monkeypatch.chdir(tmp_path)
    stored = StoredAdapters(world.registry, world.store)
    assert stored.require("cat").name == "cat.safetensors"
    (tmp_path / "cat").write_text("a file")
    assert stored.find("cat") is None
    with pytest.raises(NotFound):
        stored.require("./cat")


def test_a_generation_keeps_the_adapter_that_was_meant_when_the_name_goes_to_another(world):
    first = finished(world, "cat").id
    reply = world.ask("generate", prompt="a cat", lora="cat")
    generation = world.registry.get(reply["process_id"])
    assert [one["path"] for one in generation.summary["adapters"]] == [first]
    assert generation.summary["base_model"] == "emoji-base"


def test_an_adapter_is_used_by_id_by_key_and_by_address(world):
    cat = finished(world, "cat").id
    (entry,) = world.registry.artifacts(cat, ["lora"])
    published = f"results/{cat}/lora/cat.safetensors"
    users = [uses(world, one) for one in (cat, entry.key, published, f"s3://b/p/{published}")]
    uses(world, finished(world, "dog").id)
    uses(world, f"results/{cat}/samples/x.png")
    assert {one.id for one in users_of(world.registry, cat, "lora")} == set(users)
    assert users_of(world.registry, cat, "checkpoints") == []
    assert users_of(world.registry, cat, "samples") == []


@pytest.mark.parametrize("result_type", ["lora", "all"])
def test_a_request_to_delete_results_keeps_what_is_needed_too(world, result_type):
    cat = finished(world, "cat").id
    generation = uses(world, cat)
    before = world.everything()
    refused = world.ask("delete_results", process_ids=[cat], result_type=result_type)
    assert generation in refused["error"]
    assert world.everything() == before
    world.ask("cancel", process_id=generation)
    assert world.ask("delete_results", process_ids=[cat], result_type=result_type)["deleted"]


def test_a_stored_file_that_is_no_adapter_is_told(world, client):
    cat = finished(world, "cat", struct.pack("<Q", 2**40) + b"junk").id
    shown = client.get(f"/models/{cat}")
    assert shown.status_code == 400
    assert "cat.safetensors" in shown.json()["error"]


def test_the_former_name_of_the_command_still_works(world, commands):
    finished(world, "cat")
    assert "cat" in run(app, ["models"]).stdout
    assert run(app, ["models", "rename", "cat", "dog"]).exit_code == 0
    assert run(app, ["models", "rm", "dog", "--yes"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "key_names"),
    [
        ("lora_unet_x.lora_down.weight", "kohya"),
        ("unet.x.attn1.processor.to_q_lora.down.weight", "diffusers"),
        ("unet.x.to_q.lora_A.weight", "diffusers"),
        ("text_encoder.x.lora_linear_layer.down.weight", "diffusers"),
        ("base_model.model.x.lora_A.default.weight", "other"),
    ],
)
def test_layers_and_rank_are_told_of_files_with_any_names_and_without_metadata(
    world, client, name, key_names
):
    up = name.replace("down", "up").replace("lora_A", "lora_B")
    header = {
        name: {"dtype": "F16", "shape": [8, 1], "data_offsets": [0, 16]},
        up: {"dtype": "F16", "shape": [1, 8], "data_offsets": [16, 32]},
    }
    text = json.dumps(header).encode()
    cat = finished(world, "cat", struct.pack("<Q", len(text)) + text + bytes(32)).id
    told = client.get(f"/models/{cat}").json()["metadata"]
    assert (told["layers"], told["rank"], told["key_names"]) == (1, 8, key_names)
