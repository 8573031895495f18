"""Requests that are malformed, oversized or mean harm: a clear error, and nothing is written."""

import base64
import json
import math
import os
import shutil
import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradash.api.gateway import json_response
from loradash.data import base_model_folder
from loradash.domain.characters import find_unprintable
from loradash.protocol.requests import REQUEST_TYPES, parse_request
from loradash.storage import keys
from tests.nasty_names import NASTY

from .world import MISSING, World, adapter, logged, picture

READ_ONLY = {
    "health", "processes", "process_status", "lora", "list_models", "list_files",
    "list_dataset_folders", "download", "download_by_key", "download_file", "bulk_download",
}  # fmt: skip
SECRET = b"a secret of this machine"
HUGE = 10**400
UPLOAD_ID = "upload_01k9x3q4zt8m2v7c0hde"


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    """A server with a dataset and processes in every state, and things beside the workspace."""
    world = World(tmp_path)
    assert "error" not in world.dispatcher.answer(upload("cats"))
    world.ids = {
        "waiting": world.waiting().id,
        "running": world.running().id,
        "trained": world.trained().id,
        "drawn": world.drawn(2).id,
        "failed": world.failed(world.running().id).id,
    }
    world.uploads = {"begun": begin_upload(world, "begun"), "whole": begin_upload(world, "whole")}
    key = keys.dataset_file("whole", world.uploads["whole"]["upload_id"], "a.png")
    world.store.put(key, picture())
    root, workspace = tmp_path, world.workspace.root
    for folder in (workspace / "mine", root / "ws2", root / "outside"):
        place_usable_things(folder)
    (root / "secret.txt").write_bytes(SECRET)
    (workspace / "link").symlink_to(root / "outside")
    (workspace / "output/link").symlink_to(root / "outside")
    (workspace / "output/link.safetensors").symlink_to(root / "outside/cat.safetensors")
    (workspace / "output/secret.txt").symlink_to(root / "secret.txt")
    (workspace / "circle").symlink_to(workspace / "circle")
    (workspace / "registry.sqlite3").write_bytes(SECRET)
    (workspace / "logs/app.log").write_bytes(SECRET)
    (workspace / "output/.hidden").write_bytes(SECRET)
    return world


def place_usable_things(folder):
    """A base model, an adapter and a dataset that could be used if only their place allowed it."""
    shutil.copytree(base_model_folder("emoji-base"), folder / "model", copy_function=os.symlink)
    (folder / "cat.safetensors").write_bytes(adapter())
    (folder / "cats").mkdir()
    (folder / "cats/a.png").write_bytes(picture())


def upload(folder="cats", **fields):
    content = base64.b64encode(picture()).decode()
    return {
        "type": "upload_training_data", "dataset_folder": folder,
        "files": [{"filename": "a.png", "content": content}], **fields,
    }  # fmt: skip


def announcement(folder, **fields):
    return {
        "dataset_folder": folder, "files": [{"filename": "a.png", "size": len(picture())}],
        **fields,
    }  # fmt: skip


def begin_upload(world, folder):
    plan = world.ask("create_upload", **announcement(folder))
    return {"dataset_folder": folder, "upload_id": plan["upload_id"]}


def train(**fields):
    return {"dataset": "cats", "base_model": "emoji-base", **fields}


def valid(world):
    """One good request of each type."""
    trained, drawn = world.ids["trained"], world.ids["drawn"]
    key = f"results/{trained}/lora/cat.safetensors"
    return {
        "health": {},
        "train": {"config": "dataset: cats\nbase_model: emoji-base\n", "priority": 1},
        "train_with_yaml": {"yaml_config": train()},
        "generate": {"prompt": "a cat", "lora": trained, "seed": 3, "num_images": 2},
        "processes": {"limit": 10, "kind": "training", "status": ["failed", "completed"]},
        "process_status": {"process_id": trained, "log_after": 0, "metrics_after": 0},
        "cancel": {"process_id": world.ids["running"]},
        "download": {"process_id": drawn},
        "download_by_key": {"s3_key": key},
        "download_file": {"file_path": key},
        "lora": {"limit": 3},
        "list_models": {},
        "list_files": {"path": f"results/{drawn}", "limit": 5},
        "bulk_download": {"process_ids": [trained, drawn], "include_images": False},
        "delete_results": {"process_id": world.ids["failed"], "result_type": "samples"},
        "upload_training_data": upload("dogs", training_name="dogs", trigger_word="sks"),
        "create_upload": announcement("dogs", training_name="dogs", trigger_word="sks"),
        "complete_upload": world.uploads["whole"],
        "abort_upload": world.uploads["begun"],
        "clear_logs": {"log_type": "all"},
        "list_dataset_folders": {},
    }


def refused(world, request, *words):
    """Assert that the request is refused in a short text with these words, and changes nothing."""
    before = world.everything()
    reply = world.dispatcher.answer(request, base_url="http://127.0.0.1")
    assert list(reply) == ["error"], f"{str(request)[:500]} -> {str(reply)[:500]}"
    text = reply["error"]
    assert "internal error" not in text, text
    assert SECRET.decode() not in text
    assert len(text) < 5000
    for word in words:
        assert word in text, text
    assert world.everything() == before
    return text


def deep(depth):
    value = "x"
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value


DEEP = deep(10_000)
NO_TEXT = [3, True, 1.5, [], {}, ["x"], "a\0b", "\ud800", DEEP, HUGE]
NO_ID = [*NO_TEXT, "", "..", "../x", "a/b", "/etc/passwd", "a b", "x" * 10**6, "é"]
NO_UPLOAD = [
    *NO_ID, "x", "upload_", "upload_01k9x3q4zt8m2v7c0hd", "upload_01k9x3q4zt8m2v7c0hde",
    "upload_01K9X3Q4ZT8M2V7C0HDE", "upload_01k9x3q4zt8m2v7c0hde/..", "train_01k9x3q4zt8m2v7c0hde",
]  # fmt: skip
NO_IDS = [3, True, {}, "", [], [3], [[]], ["../x"], [""], ["a"] * 51, ["a\0"], DEEP, HUGE]
NO_COUNT = [-1, True, "1", 1.5, [], {}, math.nan, math.inf, HUGE, 10**5000, DEEP]
NO_FLAG = [0, 1, "true", [], {}, math.nan, DEEP]
NO_CHOICE = ["", "../x", "x" * 10**6, "\0", 3, True, [], {}, DEEP, "\ud800"]
NO_CONFIG = [
    3, True, 1.5, [], "a\0b", "\ud800", {"a": math.nan}, {"a": math.inf}, {"a": HUGE}, {"a": DEEP},
    {"a": "\0"}, {"a\0": 1}, {"a": ["x"] * 30_000}, {"a": "x" * 1_000_001}, "x" * (10 * 2**20 + 1),
]  # fmt: skip
NO_JSON = [math.nan, math.inf, HUGE, DEEP, "a\0b", "\ud800", ["x"] * 30_000]
NO_NUMBER = [*NO_JSON, True, "x", [], {}]

WRONG = {
    "train": {"config": NO_CONFIG, "yaml_config": NO_CONFIG, "priority": [11, *NO_COUNT[1:]],
              "extend": [*NO_JSON, 3, True, "x", [], {}, {"process_id": 3}],
              "idempotency_key": [*NO_TEXT, "", "x" * 201]},
    "train_with_yaml": {"config": NO_CONFIG, "yaml_config": NO_CONFIG, "priority": [-11],
                        "extend": ["x", {}], "idempotency_key": [3]},
    "generate": {
        "config": NO_CONFIG,
        "prompt": [*NO_TEXT, "x" * 10_001],
        "lora": [*NO_TEXT, "", "x" * 4097],
        "base_model": [*NO_JSON, 3, True, [], {}, ""],
        "engine": [*NO_JSON, 3, True, [], {}, "", "otter", "a b", "x" * 33],
        "adapters": [*NO_JSON, "x", 3, [3], [{}], [{"path": 3}], [{"path": "x", "weight": "y"}],
                     [{"path": "x", "weight": 11}], [{"path": "x", "other": 1}],
                     [{"path": "x"}] * 17],
        "negative_prompt": [*NO_JSON, 3, [], "x" * 10_001],
        "num_images": [*NO_NUMBER, 0, 1001, 1.5], "seed": [*NO_NUMBER, -2, 2**63],
        "steps": [*NO_NUMBER, 0, 501], "guidance_scale": [*NO_NUMBER, -1, 101],
        "width": [*NO_NUMBER, 7, 8193], "height": [*NO_NUMBER, 7, 8193],
        "scheduler": [*NO_JSON, "nope", 3, [], ""], "model_path": NO_JSON, "priority": [-11, "1"],
        "idempotency_key": ["", 3, "x" * 201],
    },
    "processes": {
        "limit": [0, 201, *NO_COUNT], "cursor": [*NO_TEXT, "nonsense", "x" * 1001],
        "kind": NO_CHOICE, "process_type": NO_CHOICE,
        "status": ["", 3, True, {}, [[]], [3], ["x"], ["failed", None], ["failed"] * 6, DEEP],
    },
    "process_status": {
        "process_id": [*NO_ID, MISSING, "x"], "log_after": [2**63, *NO_COUNT],
        "log_limit": [0, 2001, *NO_COUNT], "metrics_after": [2**63, *NO_COUNT],
        "metrics_limit": [0, 5001, *NO_COUNT],
    },
    "cancel": {"process_id": [*NO_ID, MISSING]},
    "download": {"process_id": [*NO_ID, MISSING], "s3_key": [*NO_TEXT, "", "x" * 2001]},
    "download_by_key": {"s3_key": [*NO_TEXT, "", "x" * 2001]},
    "download_file": {"file_path": [*NO_TEXT, "", "x" * 2001]},
    "lora": {"limit": [0, 1001, *NO_COUNT], "cursor": [*NO_TEXT, "nonsense"]},
    "list_models": {"limit": [0, 1001, *NO_COUNT], "cursor": [*NO_TEXT, "nonsense"]},
    "list_files": {
        "path": [*NO_TEXT, "x" * 1001], "limit": [0, 1001, *NO_COUNT],
        "cursor": [*NO_TEXT, "nonsense"],
    },
    "bulk_download": {
        "process_ids": [*NO_IDS, [MISSING]], "include_images": NO_FLAG, "include_loras": NO_FLAG,
    },
    "delete_results": {
        "process_id": [*NO_ID, MISSING], "result_type": NO_CHOICE,
    },
    "upload_training_data": {
        "training_name": [*NO_TEXT, "x" * 101], "trigger_word": [*NO_TEXT, "x" * 101],
        "cleanup_existing": NO_FLAG,
        "dataset_folder": [*[one for one in NO_ID if one != ""], ".x", "_x", "x" * 151],
        "files": [3, True, {}, "", [], [3], ["x"], [[]], [{}], DEEP, HUGE, [{"filename": "a.png"}],
                  [{"content": "QQ=="}], [{}] * 1001],
    },
    "create_upload": {
        "training_name": [*NO_TEXT, "x" * 101], "trigger_word": [*NO_TEXT, "x" * 101],
        "cleanup_existing": NO_FLAG,
        "dataset_folder": [*[one for one in NO_ID if one != ""], ".x", "_x", "x" * 151],
        "files": [3, True, {}, "", [], [3], ["x"], [[]], [{}], DEEP, HUGE,
                  [{"filename": "a.png"}], [{"size": 3}], [{}] * 100_001],
    },
    "complete_upload": {
        "dataset_folder": [*NO_ID, ".x", "no-such-dataset"], "upload_id": NO_UPLOAD,
    },
    "abort_upload": {
        "dataset_folder": [*NO_ID, ".x", "no-such-dataset"], "upload_id": NO_UPLOAD,
    },
    "clear_logs": {"log_type": NO_CHOICE},
}  # fmt: skip

NAMED_OTHERWISE = {
    "cursor": "cursor", "lora": "adapter", "process_id": "process", "process_ids": "process",
    "num_images": "images", "dataset_folder": "dataset", "upload_id": "upload",
}  # fmt: skip


def test_wrong_values_are_there_for_every_field_of_every_type(world):
    for kind, fields in valid(world).items():
        names = set(type(parse_request({"type": kind, **fields})).known_fields()) - {"type"}
        assert names - {"process_ids"} <= set(WRONG.get(kind, ())) | {"process_id"}, kind


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in WRONG for field in WRONG[kind]]
)
def test_a_wrong_value_of_any_field_is_refused_by_its_name(world, kind, field):
    good = valid(world)[kind]
    rivals = {"config": "yaml_config", "yaml_config": "config", "adapters": "lora",
              "process_type": "kind", "process_ids": "process_id"}  # fmt: skip
    for value in WRONG[kind][field]:
        others = {name: one for name, one in good.items() if name != rivals.get(field)}
        reply = refused(world, {"type": kind, **others, field: value})
        assert field in reply or NAMED_OTHERWISE.get(field, field) in reply, (value, reply)


def test_every_type_refuses_to_be_no_mapping_and_no_type(world):
    for data in (None, [], 3, "x", DEEP, b"{}", math.nan, HUGE, {}, {"type": None}, {"type": DEEP}):
        refused(world, data)
    for kind in ("", "Train", "train\0", "../train", "\ud800", "x" * 10**7, HUGE, ["train"]):
        refused(world, {"type": kind}, "type: ")


def test_fields_nobody_knows_do_no_harm_in_any_type(world):
    harmful = {"__class__": DEEP, "../x": HUGE, "\ud800": math.nan, "x" * 10**6: [], "\0": None}
    for kind in sorted(READ_ONLY):
        before = world.everything()
        reply = world.dispatcher.answer({"type": kind, **valid(world)[kind], **harmful})
        assert len(reply["warnings"]) == 5
        assert len(json_response(reply).body) < 100_000
        assert world.everything() == before


# Paths


def hostile_paths(world):
    root, workspace = world.root, world.workspace.root
    return [
        "../secret.txt", "../../../../etc/passwd", "..", "/", "/etc/passwd", "/proc/self/environ",
        "/dev/zero", "/dev/stdin", "~", "~root/.ssh/id_rsa", "~nobody-there/x", "file:///etc/passwd",
        "https://example.org/x.safetensors", "s3://other/results/x", "s3:///etc/passwd",
        "..\\..\\x", "C:\\x.safetensors", "./x/../../..", "results/../../etc/passwd",
        f"results/{world.ids['trained']}/../../secret.txt", f"results/{MISSING}/lora/x.safetensors",
        "dataset/../results", "dataset/cats/_training_info.json", "results//x", "x" * 300,
        f"{root}/ws2/model", f"{root}/ws2/cat.safetensors", f"{root}/ws2/cats",
        f"{workspace}/../ws2/model", f"{workspace}/../ws2/cat.safetensors",
        f"{workspace}/../ws2/cats", f"{workspace}2/model", f"{workspace}2/cats",
        f"{workspace}/link/model", f"{workspace}/link/cat.safetensors", f"{workspace}/link/cats",
        f"{workspace}/output/link/cats", f"{workspace}/output/link.safetensors",
        f"{workspace}/output/secret.txt", f"{workspace}/circle", f"{workspace}/circle/x",
        f"{root}/secret.txt", f"{workspace}/logs/app.log", f"{workspace}/registry.sqlite3",
        f"{workspace}/output/.hidden", f"{workspace}/output", f"{workspace}/run/../logs/app.log",
    ]  # fmt: skip


def config_with(**sections):
    process = {
        "type": "sd_trainer", "network": {"type": "lora"}, "train": {"steps": 1},
        "model": {"name_or_path": "emoji-base"}, "datasets": [{"folder_path": "cats"}], **sections,
    }  # fmt: skip
    return {"job": "extension", "config": {"name": "x", "process": [process]}}


NAMING_PATHS = {
    "train: dataset": lambda path: {"type": "train", "config": train(dataset=path)},
    "train: regularization": lambda path: {"type": "train", "config": train(regularization=path)},
    "train: base_model": lambda path: {"type": "train", "config": train(base_model=path)},
    "train: folder_path": lambda path: {
        "type": "train", "config": config_with(datasets=[{"folder_path": path}]),
    },
    "train: second dataset": lambda path: {
        "type": "train",
        "config": config_with(datasets=[{"folder_path": "cats"}, {"folder_path": path}]),
    },
    "train: name_or_path": lambda path: {
        "type": "train", "config": config_with(model={"name_or_path": path}),
    },
    "train: extras": lambda path: {
        "type": "train",
        "config": config_with(model={"name_or_path": "emoji-base", "extras_name_or_path": path}),
    },
    "train: pretrained_lora_path": lambda path: {
        "type": "train", "config": config_with(network={"pretrained_lora_path": path}),
    },
    "generate: lora": lambda path: {"type": "generate", "prompt": "x", "lora": path},
    "generate: adapters": lambda path: {
        "type": "generate", "prompt": "x", "base_model": "emoji-base",
        "adapters": [{"path": path, "weight": 0.5}],
    },
    "generate: base_model": lambda path: {"type": "generate", "prompt": "x", "base_model": path},
    "generate: config": lambda path: {
        "type": "generate",
        "config": {"prompts": ["x"], "base_model": "emoji-base", "adapters": [{"path": path}]},
    },
    "download": lambda path: {"type": "download", "process_id": MISSING, "s3_key": path},
    "download_by_key": lambda path: {"type": "download_by_key", "s3_key": path},
    "download_file": lambda path: {"type": "download_file", "file_path": path},
    "upload": lambda path: upload(path),
    "create_upload": lambda path: {"type": "create_upload", **announcement(path)},
    "complete_upload": lambda path: {
        "type": "complete_upload", "dataset_folder": path, "upload_id": UPLOAD_ID,
    },
    "abort_upload": lambda path: {
        "type": "abort_upload", "dataset_folder": path, "upload_id": UPLOAD_ID,
    },
    "delete_results": lambda path: {"type": "delete_results", "process_id": path},
    "process_status": lambda path: {"type": "process_status", "process_id": path},
}  # fmt: skip


@pytest.mark.parametrize("way", NAMING_PATHS)
def test_a_path_out_of_the_workspace_is_refused_wherever_it_is_named(
    world, way, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path / "outside")  # relative names must not become local files here
    names = ["cats", "model", "cat.safetensors"]
    for path in [*hostile_paths(world), *names]:
        if way in OF_DATASETS and path in ("cats", f"{world.workspace.root}/output"):
            continue  # one is stored, the other lies in the workspace
        if way in ("upload", "create_upload") and path in names:
            continue  # names for a new dataset
        if way == "train: extras" and (path in UNREAD_EXTRAS or is_in_workspace(world, path)):
            continue
        refused(world, NAMING_PATHS[way](path))


def is_in_workspace(world, path):
    """Whether a path names something in the workspace, links and detours followed."""
    root = world.workspace.root
    real = os.path.realpath(path)
    return path.startswith("/") and real.startswith(f"{root.resolve()}/") and "circle" not in path


OF_DATASETS = {
    "train: dataset",
    "train: regularization",
    "train: folder_path",
    "train: second dataset",
}
UNREAD_EXTRAS = {
    "file:///etc/passwd", "https://example.org/x.safetensors", "s3://other/results/x",
    "s3:///etc/passwd", "..\\..\\x", "C:\\x.safetensors", "x" * 300, "results//x",
    "dataset/cats/_training_info.json", f"results/{MISSING}/lora/x.safetensors",
}  # fmt: skip
"""Names of nothing on this machine: the engine would look for them on the hub."""


def test_the_same_things_in_the_workspace_can_be_used(world):
    mine = world.workspace.root / "mine"
    for request in (
        {"type": "train", "config": train(dataset=f"{mine}/cats", base_model=f"{mine}/model")},
        {
            "type": "train",
            "config": config_with(network={"pretrained_lora_path": f"{mine}/cat.safetensors"}),
        },
        {"type": "generate", "prompt": "x", "lora": f"{mine}/cat.safetensors"},
        {"type": "generate", "prompt": "x", "base_model": f"{mine}/model"},
    ):
        reply = world.dispatcher.answer(request)
        assert "process_id" in reply, reply


@pytest.mark.parametrize("ending", ["/../../secret", "../x", ".txt/x", "..", "txt/../../x"])
def test_an_ending_of_captions_can_not_lead_to_other_files(world, ending):
    datasets = [{"folder_path": "cats", "caption_ext": ending}]
    refused(world, {"type": "train", "config": config_with(datasets=datasets)}, "caption_ext")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "", ".x", "x" * 101, "a\nb", "é\0"])
def test_the_name_of_a_training_is_no_path(world, name):
    refused(world, {"type": "train", "config": train(name=name)}, "name")


# YAML


def bomb(levels=12, width=10):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


YAMLS = {
    "billion laughs": bomb(),
    "laughs of ten megabytes": bomb() + "\n" + "b: [*a11]\n#" + "x" * (10 * 2**20 - 2000),
    "aliases of one megabyte": "a: &a [1]\nb: [" + "*a, " * 200_000 + "1]",
    "ten thousand levels": "a: " + "[" * 10_000 + "]" * 10_000,
    "ten thousand levels of keys": "\n".join(" " * n + "a:" for n in range(1000)),
    "a python object": "!!python/object/apply:os.system ['touch pwned']",
    "a tag": "dataset: !!binary QUFB\nbase_model: emoji-base",
    "an environment variable": "dataset: ${HOME}\nbase_model: emoji-base",
    "two documents": "a: 1\n---\nb: 2",
    "no mapping": "[1, 2]",
    "no yaml": "a: b: c: [",
    "a key twice": "dataset: cats\ndataset: dogs\nbase_model: emoji-base",
    "its own anchor": "a: &a [*a]",
    "a huge number": f"dataset: cats\nbase_model: emoji-base\nsteps: {'9' * 5000}",
    "an endless number": "dataset: cats\nbase_model: emoji-base\nlearning_rate: 1e400",
    "no number": "dataset: cats\nbase_model: emoji-base\nlearning_rate: .nan",
    "an unknown key": "dataset: cats\nbase_model: emoji-base\ntraining_data: x",
    "an upload to a hub": "job: extension\nconfig:\n  process:\n  - type: sd_trainer\n"
    "    save: {push_to_hub: true}\n",
    "another job": "job: mod\nconfig: {}",
    "spaces": " " * 1000,
}


@pytest.mark.parametrize("kind", ["train", "train_with_yaml", "generate"])
@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_that_means_harm_is_refused_at_once(world, kind, name):
    began_s = time.monotonic()
    refused(world, {"type": kind, "config": YAMLS[name]})
    assert time.monotonic() - began_s < 10


# Uploads


def file(filename="a.png", content=None, **fields):
    content = base64.b64encode(picture()).decode() if content is None else content
    return {"filename": filename, "content": content, **fields}


def bomb_png(side=30_000):
    """A PNG of a few hundred kilobytes that says it has a billion pixels."""
    row = b"\0" + b"\0" * (side // 8)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(row * side, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def encoded(data):
    return base64.b64encode(data).decode()


BAD_FILES = {
    "garbage": file(content="!!!!"),
    "no padding": file(content="QUFBQ"),
    "url alphabet": file(content="-_-_"),
    "a data url": file(content="data:image/png;base64,QUFB"),
    "no text": file(content=3),
    "not ascii": file(content="é" * 8),
    "surrogates": file(content="\ud800" * 4),
    "no image": file(content=encoded(b"GIF89a nonsense")),
    "half an image": file(content=encoded(picture()[:40])),
    "empty": file(content=""),
    "a bomb": file(content=encoded(bomb_png())),
    "another size": file(size=3),
    "a negative size": file(size=-1),
    "a caption that is no text": file("good.txt", encoded(b"\xff\xfe\0")),
    "only a folder": file("images/"),
    "dots": file(".."),
    "NUL": file("a\0.png"),
    "a line break": file("a\n.png"),
    "a surrogate": file("\ud800.png"),
    "a long name": file("x" * 300 + ".png"),
    "a name of many bytes": file("é" * 120 + ".png"),
    "a name that is no text": file(["a.png"]),
    "no file": "a.png",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_one_bad_file_and_nothing_of_the_upload_is_stored(world, name):
    bad = BAD_FILES[name]
    files = [file("good.png"), bad]
    reply = refused(world, upload("dogs", files=files))
    assert "files[1]" in reply or f"{bad['filename']}: " in reply
    refused(world, upload("cats", files=files))
    refused(world, upload("cats", files=files, cleanup_existing=False))


@pytest.mark.parametrize(
    ("one", "two"),
    [("a.png", "a.png"), ("a.png", "./a.png"), ("a.png", "..\\a.png"),
     ("\u00e9.png", "e\u0301.png")],
)  # fmt: skip
def test_two_files_of_one_name_are_refused(world, one, two):
    refused(world, upload("dogs", files=[file(one), file(two)]), "files: ")


def test_folders_that_lead_out_of_a_dataset_are_left_out(world):
    names = ["../../../../etc/a.png", "/etc/b.png", "C:\\x\\c.png", "dataset/cats/d.png"]
    reply = world.dispatcher.answer(upload("dogs", files=[file(name) for name in names]))
    keys = [info.key for info in world.store.list("dataset/dogs")]
    assert reply["total_images"] == 4
    assert {key.rpartition("/")[2] for key in keys} == {
        "a.png", "b.png", "c.png", "d.png", "_training_info.json",
    }  # fmt: skip
    assert all(key.startswith("dataset/dogs/") for key in keys)


ANNOUNCED = {
    "no size": {"filename": "a.png"},
    "a negative size": {"filename": "a.png", "size": -1},
    "a size that is no number": {"filename": "a.png", "size": "3"},
    "a huge size": {"filename": "a.png", "size": 2**62},
    "an endless size": {"filename": "a.png", "size": HUGE},
    "a large file": {"filename": "a.png", "size": 100 * 2**20 + 1},
    "no hash": {"filename": "a.png", "size": 3, "sha256": "x" * 64},
    "half a hash": {"filename": "a.png", "size": 3, "sha256": "0f" * 16},
    "a nested hash": {"filename": "a.png", "size": 3, "sha256": DEEP},
    "our own name": {"filename": "_upload.json", "size": 3},
    "our own name in another case": {"filename": "/_Upload.JSON", "size": 3},
    **{
        name: {"filename": BAD_FILES[name]["filename"], "size": 3}
        for name in ("only a folder", "dots", "NUL",
                     "a line break", "a surrogate", "a long name", "a name of many bytes",
                     "a name that is no text")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ANNOUNCED)
def test_one_bad_file_and_nothing_of_the_announcement_is_stored(world, name):
    bad = ANNOUNCED[name]
    files = [{"filename": "good.png", "size": 3}, bad]
    for folder in ("dogs", "cats"):
        reply = refused(world, {"type": "create_upload", **announcement(folder, files=files)})
        assert "files[1]" in reply or f"{bad['filename']}: " in reply


def test_nothing_is_deleted_that_was_not_named(world):
    refused(world, {"type": "delete_results"}, "process_id: missing")
    refused(world, {"type": "delete_results", "result_type": "all"}, "process_id: missing")
    both = {"process_id": world.ids["trained"], "process_ids": [world.ids["drawn"]]}
    refused(world, {"type": "delete_results", **both}, "process_id")
    for name in ("running", "waiting"):
        ids = [world.ids["trained"], world.ids[name]]
        refused(world, {"type": "delete_results", "process_ids": ids}, world.ids[name])


def test_only_the_servers_own_logs_are_cleared(world):
    before = world.everything()
    other = world.workspace.logs / "mine.txt"
    other.write_bytes(SECRET)
    link = world.workspace.logs / "errors.log"
    link.symlink_to(world.root / "secret.txt")
    assert world.ask("clear_logs", log_type="all")["cleared"] == [
        {"name": "app.log", "size": len(SECRET)}
    ]
    assert (other.read_bytes(), (world.root / "secret.txt").read_bytes()) == (SECRET, SECRET)
    assert world.everything() == before


# Anything


VALUES_OF_SIZE = {1: deep(50), 2: deep(3000), 3: [[]] * 100}
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", "../x", "/etc/passwd", "s3://x/y", "nan", "*", "x" * 5000, MISSING, *NASTY]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([HUGE, -HUGE, 2**63, -0.0])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
) | st.sampled_from([1, 2, 3]).map(VALUES_OF_SIZE.get)


def texts_in(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in (*value, *(value.values() if isinstance(value, dict) else ())):
            yield from texts_in(part)


def check_answer(world, request):
    """Assert what holds for the answer to anything at all; return it."""
    kind = request.get("type") if isinstance(request, dict) else None
    before = world.everything()
    reply = world.dispatcher.answer(request, base_url="http://127.0.0.1")
    assert isinstance(reply, dict)
    json.loads(json_response(reply).body)
    if "error" in reply and list(reply) == ["error"]:
        assert isinstance(reply["error"], str)
        assert "internal error" not in reply["error"]
        assert len(reply["error"]) < 10_000
        assert world.everything() == before
    else:
        assert "request_id" in reply
        if kind in READ_ONLY | {"clear_logs"}:
            assert world.everything() == before
    return reply


@given(data=JSON_VALUES)
def test_anything_at_all_gets_an_answer(world, data):
    check_answer(world, data)


@given(kind=st.sampled_from(REQUEST_TYPES), fields=st.dictionaries(TEXTS, JSON_VALUES, max_size=4))
def test_any_fields_of_any_type_get_an_answer(world, kind, fields):
    check_answer(world, {**fields, "type": kind})


@settings(max_examples=200)
@given(data=st.data())
def test_good_requests_with_changed_fields_get_an_answer(world, data):
    kind = data.draw(st.sampled_from(REQUEST_TYPES))
    good = valid(world)[kind]
    names = sorted(set(WRONG.get(kind, ())) | set(good)) or ["x"]
    changes = data.draw(st.dictionaries(st.sampled_from(names), JSON_VALUES, max_size=2))
    check_answer(world, {"type": kind, **good, **changes})


@given(data=st.data())
def test_a_training_config_with_changed_values_gets_an_answer(world, data):
    document = config_with(sample={"prompts": ["x"]}, save={"save_every": 3})
    section = data.draw(st.sampled_from(["network", "train", "model", "sample", "save"]))
    process = document["config"]["process"][0]
    names = st.sampled_from(["steps", "lr", "name_or_path", "type", "linear", "prompts", "x"])
    changes = data.draw(st.dictionaries(names | TEXTS, JSON_VALUES, max_size=3))
    process[section] = {**process[section], **changes}
    check_answer(world, {"type": "train", "config": document})


@given(data=st.data())
def test_an_upload_with_changed_files_gets_an_answer(world, data):
    changed = st.fixed_dictionaries(
        {"filename": TEXTS | st.just("b.png"), "content": TEXTS | st.just("QUFB")},
        optional={"size": SCALARS, "content_type": SCALARS, "x": JSON_VALUES},
    )
    files = data.draw(st.lists(changed | JSON_VALUES, max_size=3))
    check_answer(world, upload("dogs", files=[file(), *files]))


@given(
    text=st.text(alphabet=st.sampled_from("ab:{}[]&*!<>-|#'\"\n \t,?%@`0.e\ufeff\x85"), max_size=60)
)
def test_any_yaml_gets_an_answer(world, text):
    for kind in ("train", "generate"):
        check_answer(world, {"type": kind, "config": text})


@pytest.mark.parametrize("character", ["\0", "\x1b[2J", "\x9b", "\ud800", "\uffff"])
@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_no_field_of_any_type_takes_what_is_no_text(world, kind, character):
    """Where a field takes it, it is a name, of which one line is made, and not kept as it came."""
    good = valid(world)[kind]
    for field, value in good.items():
        if isinstance(value, str):
            check_answer(world, {"type": kind, **good, field: value + character})
    for record in world.registry.page().records:
        stored = json.loads(record.model_dump_json())
        assert not [text for text in texts_in(stored) if find_unprintable(text)]


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_the_good_requests_of_these_tests_are_good(world, kind):
    assert list(check_answer(world, {"type": kind, **valid(world)[kind]})) != ["error"]


def test_pictures_of_these_tests_are_pictures():
    assert len(bomb_png()) < 500_000
    assert picture().startswith(b"\x89PNG")
