"""What each type of request is answered with, and what stays behind of it."""

import base64
import errno
import json

import pytest

from loradash.domain.process import Status
from loradash.errors import StoreRefused
from loradash.protocol.dispatch import new_request_id
from loradash.protocol.requests import REQUEST_TYPES, parse_request
from loradash.storage.memory import MemoryStore

from .published import content, real_key
from .world import MISSING, URL, BrokenRegistry, World, adapter, logged, picture

CONFIG = "dataset: cats\nbase_model: emoji-base\nname: cat\ntrigger_word: sks\n"
STARTED = {"process_id", "data", "message", "status", "request_id"}
FILE = {"type", "filename", "content_type", "size", "data"}
PROCESS = {
    "id", "process_id", "name", "type", "status", "lost", "phase", "phase_detail", "progress",
    "step", "total_steps", "loss", "learning_rate", "steps_per_s", "eta", "elapsed_time", "gpu_id",
    "elapsed_ms", "device",
    "worker_id", "created_at", "updated_at", "started_at", "ended_at", "attempt", "priority",
    "queue_position", "cancel_requested", "error", "error_message", "error_code", "error_problems",
    "remedy", "resumable", "output_path", "request_id", "origin", "config",
}  # fmt: skip
MODEL = {
    "id", "filename", "name", "path", "s3_key", "process_id", "size", "size_mb", "sha256",
    "created_at", "modified_date", "status", "metadata",
}  # fmt: skip
RESULT_FILE = {
    "id", "filename", "path", "s3_key", "process_id", "made_by", "size", "size_formatted",
    "sha256", "created_at", "type", "result_type",
}  # fmt: skip


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    assert "error" not in world.ask("upload_training_data", dataset_folder="cats", files=files())
    return world


def files():
    return [
        {"filename": "a.png", "content": base64.b64encode(picture()).decode()},
        {"filename": "a.txt", "content": base64.b64encode(b"a cat").decode()},
    ]


def announced_files():
    return [
        {"filename": one["filename"], "size": len(base64.b64decode(one["content"]))}
        for one in files()
    ]


def events(log, name):
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if line["event"] == name]


# The reply of each type


def test_health_tells_the_state_of_each_part(world):
    reply = world.ask("health")
    assert set(reply) == {
        "status", "problems", "services", "version", "worker_id", "environment", "uptime_s",
        "requests", "request_id",
    }  # fmt: skip
    assert set(reply["services"]) == {"process_manager", "storage", "gpu_manager", "disk"}
    assert {"status", "gpus", "count"} <= set(reply["services"]["gpu_manager"])
    assert reply["status"] == "healthy"
    assert reply["environment"] == "local"
    assert reply["requests"]["upload_training_data"]["count"] == 1


@pytest.mark.parametrize("kind", ["train", "train_with_yaml"])
@pytest.mark.parametrize("field", ["config", "yaml_config"])
def test_a_training_is_started_at_once_under_every_name(world, kind, field):
    reply = world.ask(kind, **{field: CONFIG, "priority": 3})
    assert set(reply) == STARTED
    assert reply["data"] == {"process_id": reply["process_id"]}
    assert reply["status"] == "started"
    record = world.registry.get(reply["process_id"])
    assert (record.kind, record.status, record.name, record.priority) == (
        "training", Status.PENDING, "cat", 3,
    )  # fmt: skip
    assert record.request_id == reply["request_id"]
    stored = content(world.store, f"results/{record.id}/config.yaml")
    assert stored.decode() == f"{CONFIG}resolution: 64  # the base model's own size\n"


def test_a_config_keeps_its_comments_and_windows_line_ends(world):
    text = f"# mine\r\n{CONFIG.replace(chr(10), chr(13) + chr(10))}"
    process_id = world.ask("train", config=text)["process_id"]
    stored = content(world.store, f"results/{process_id}/config.yaml").decode()
    assert stored == f"{text}resolution: 64  # the base model's own size\r\n"


def test_a_process_keeps_its_warnings(world):
    waiting = world.waiting(warnings=("this is odd",)).id
    reply = world.ask("process_status", process_id=waiting)
    assert reply["process"]["warnings"] == ["this is odd"]
    assert "warnings" not in reply  # beside a reply they are about the request
    reply = world.ask("process_status", process_id=waiting, zzz=1)
    assert reply["warnings"] == ["unknown field 'zzz' has no effect"]
    sections = {
        "type": "sd_trainer", "model": {"name_or_path": "emoji-base"}, "network": {"type": "lora"},
        "datasets": [{"folder_path": "cats"}],
    }  # fmt: skip
    config = {"job": "extension", "config": {"name": "x", "process": [sections]}}
    started = world.ask("train", config=config)
    shown = world.ask("process_status", process_id=started["process_id"])["process"]
    assert shown["warnings"] == started["warnings"] != []


def test_what_has_no_effect_in_a_config_is_told(world):
    sections = {
        "type": "sd_trainer", "model": {"name_or_path": "emoji-base"}, "train": {"steps": 3},
        "network": {"type": "lora"},
        "datasets": [{"folder_path": "cats"}],
    }  # fmt: skip
    config = {"job": "extension", "config": {"name": "x", "process": [sections]}}
    reply = world.ask("train", config=config, zzz=1)
    assert set(reply) == {*STARTED, "warnings"}
    assert any("train.lr isn't given" in text for text in reply["warnings"])
    assert "unknown field 'zzz' has no effect" in reply["warnings"]


@pytest.mark.parametrize("as_mapping", [True, False])
def test_a_generation_is_started_at_once(world, as_mapping):
    trained = world.trained().id
    config = {"prompts": ["a cat"], "base_model": "emoji-base", "adapters": [{"path": trained}]}
    reply = world.ask("generate", config=config if as_mapping else json.dumps(config))
    assert set(reply) == STARTED
    record = world.registry.get(reply["process_id"])
    assert (record.kind, record.status) == ("generation", Status.PENDING)
    assert record.summary["adapters"] == [{"path": trained, "weight": 1.0}]
    assert record.request_id == reply["request_id"]


def test_a_prompt_alone_is_drawn_with_the_base_model_that_its_adapter_names(world):
    trained = world.trained().id
    reply = world.dispatcher.answer({"prompt": 'it\'s a "cat"\n- x', "lora": trained})
    record = world.registry.get(reply["process_id"])
    assert record.summary["base_model"] == "emoji-base"
    assert record.summary["prompt"] == 'it\'s a "cat"\n- x'
    assert record.summary["seed"] is not None


def test_direct_fields_come_before_those_of_the_config(world):
    config = {"prompts": ["a cat"], "base_model": "emoji-base", "seed": 1, "steps": 3}
    process_id = world.ask("generate", config=config, seed=2, num_images=4)["process_id"]
    record = world.registry.get(process_id)
    assert (record.summary["seed"], record.progress.total_steps) == (2, 4)


def test_a_generation_without_any_base_model_says_how_to_name_one(world):
    text = world.ask("generate", prompt="a cat")["error"]
    assert "base_model: missing" in text
    mute = world.running().id
    world.keep(mute, "lora", "mute.safetensors", adapter(base_model=""))
    world.completed(mute)
    text = world.ask("generate", prompt="a cat", lora=mute)["error"]
    assert "doesn't say which base model" in text


def test_processes_are_listed_by_pages(world):
    ids = [world.waiting().id, world.running(step=5).id, world.failed(world.running().id).id]
    reply = world.ask("processes", limit=2)
    assert set(reply) == {
        "processes", "next_cursor", "counts", "total", "environment", "worker_id",
            "note", "data_sources", "request_id",
    }  # fmt: skip
    assert all(set(one) == PROCESS for one in reply["processes"])
    assert reply["total"] == 3
    assert reply["counts"] == {
        "pending": 1, "running": 1, "completed": 0, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    rest = world.ask("processes", limit=2, cursor=reply["next_cursor"])
    assert rest["next_cursor"] is None
    found = [one["id"] for one in [*reply["processes"], *rest["processes"]]]
    assert sorted(found) == sorted(ids)
    only = world.ask("processes", status="failed", process_type="training")["processes"]
    assert [one["id"] for one in only] == [ids[2]]


def test_a_list_of_processes_has_no_status_of_its_own(world):
    """With one, the published client would show half of each process."""
    assert "status" not in world.ask("processes")


def test_one_process_is_told_with_its_log_and_measurements(world):
    process_id = world.running(step=2).id
    world.said(process_id, "one", "two")
    world.measured(process_id, 1, 2)
    reply = world.ask("process_status", process_id=process_id)
    whole = {*PROCESS, "attempts", "artifacts", "warnings"}
    # A queue would take "error" for a failure, and "warnings" of a reply are about the request.
    assert set(reply) == {*whole, "process"} - {"error", "warnings"}
    assert set(reply["process"]) == whole
    reply = world.ask("process_status", process_id=process_id, log_after=1, metrics_after=0)
    assert [line["text"] for line in reply["log"]] == ["two"]
    assert [row["step"] for row in reply["metrics"]] == [1, 2]
    assert (reply["status"], reply["step"], reply["total_steps"]) == ("running", 2, 10)
    assert reply["config"]["base_model"] == "emoji-base"


def test_cancelling_says_what_became_of_the_process(world):
    waiting, running = world.waiting().id, world.running().id
    reply = world.ask("cancel", process_id=waiting)
    assert set(reply) == {"message", "process_id", "process_status", "request_id"}
    assert (reply["process_status"], reply["message"]) == (
        "cancelled", f"process {waiting} was cancelled",
    )  # fmt: skip
    reply = world.ask("cancel", process_id=running)
    assert (reply["process_status"], reply["message"]) == (
        "running", f"process {running} is being stopped",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["list_models", "lora"])
def test_models_are_listed(world, kind):
    trained = world.trained()
    world.drawn()
    reply = world.ask(kind)
    assert set(reply) == {"models", "count", "next_cursor", "request_id"}
    (model,) = reply["models"]
    assert set(model) == MODEL
    assert (model["process_id"], model["status"]) == (trained.id, "ready")
    assert model["size"] == len(adapter())
    assert model["metadata"] == {"steps": 10, "trigger_word": "sks", "base_model": "emoji-base"}


def test_files_are_listed(world):
    trained, drawn = world.trained(), world.drawn(2)
    reply = world.ask("list_files")
    assert set(reply) == {"lora_files", "image_files", "total_files", "next_cursor", "request_id"}
    entries = [*reply["lora_files"], *reply["image_files"]]
    assert reply["total_files"] == len(entries) == 4
    assert all(set(one) == RESULT_FILE for one in entries)
    assert {one["made_by"] for one in entries} == {trained.id, drawn.id}


@pytest.mark.parametrize("kind", ["download", "download_by_key", "download_file"])
def test_a_download_is_the_file_itself(world, kind):
    trained = world.trained().id
    key = real_key(world.store, f"results/{trained}/lora/cat.safetensors")
    fields = {
        "download": {"process_id": trained}, "download_by_key": {"s3_key": key},
        "download_file": {"file_path": key},
    }  # fmt: skip
    reply = world.ask(kind, **fields[kind])
    assert set(reply) == {*FILE, "s3_key", "request_id"}
    assert (reply["type"], reply["filename"], reply["s3_key"]) == (
        "file_data", "cat.safetensors", key,
    )  # fmt: skip
    assert base64.b64decode(reply["data"]) == adapter()
    assert reply["size"] == len(adapter())


def test_a_bulk_download_has_a_link_to_each_file(world):
    trained, drawn = world.trained().id, world.drawn(2).id
    reply = world.ask("bulk_download", process_ids=[trained, drawn])
    assert set(reply) == {"download_items", "zip_url", "total_files", "total_size", "request_id"}
    assert reply["total_files"] == 4  # with the preview
    wanted = f"process_id={trained}&process_id={drawn}&images=true&loras=true"
    assert reply["zip_url"] == f"{URL}/download/zip?{wanted}"
    for item in reply["download_items"]:
        assert set(item) == {
            "filename", "process_id", "key", "url", "size", "sha256", "type", "content_type",
        }  # fmt: skip
        assert item["url"] == f"{URL}/files/{item['key']}?download=1"
        assert item["type"] in ("lora", "image", "other")
    assert reply["total_size"] == sum(item["size"] for item in reply["download_items"])


def test_deleting_says_what_is_gone(world):
    trained = world.trained().id
    reply = world.ask("delete_results", process_id=trained, result_type="samples")
    assert set(reply) == {
        "status", "message", "result_type", "deleted", "found", "freed_bytes", "request_id",
    }  # fmt: skip
    assert (reply["deleted"], reply["found"], reply["result_type"]) == (1, 1, "samples")
    assert reply["freed_bytes"] == len(picture(1))


def test_an_upload_says_what_is_stored_and_how_to_use_it(world):
    reply = world.ask(
        "upload_training_data", training_name="My cats", trigger_word="sks", files=files()
    )
    assert set(reply) == {
        "uploaded_files", "unchanged_files", "s3_path", "training_folder", "dataset_folder",
        "training_name", "trigger_word", "total_images", "total_captions", "total_size",
        "total_size_formatted", "file_types_summary", "message", "detailed_message", "warnings",
        "left_out", "statistics", "request_id",
    }  # fmt: skip
    assert set(reply["uploaded_files"][0]) == {
        "filename", "size", "size_formatted", "content_type", "file_type", "uploaded_at", "path",
        "folder",
    }  # fmt: skip
    assert set(reply["statistics"]) == {
        "total_files_attempted", "succeeded", "failed", "success_rate", "average_file_size",
    }  # fmt: skip
    assert reply["file_types_summary"] == {"images": 1, "captions": 1, "other": 0}
    started = world.ask("train", config=CONFIG.replace("cats", reply["training_folder"]))
    assert "process_id" in started


def test_an_upload_can_be_announced_and_completed_or_aborted(world):
    plan = world.ask("create_upload", training_name="My cats", files=announced_files())
    assert set(plan) == {
        "upload_id", "dataset_folder", "expires_at", "files", "s3_path", "request_id",
    }  # fmt: skip
    assert all(
        set(one) == {"filename", "key", "state", "method", "url", "headers"}
        for one in plan["files"]
    )
    for one, sent in zip(plan["files"], files(), strict=True):
        world.store.put(one["key"], base64.b64decode(sent["content"]))
    of_upload = {name: plan[name] for name in ("dataset_folder", "upload_id")}
    whole = world.ask("upload_training_data", dataset_folder="whole", files=files())
    reply = world.ask("complete_upload", **of_upload)
    assert set(reply) == set(whole)
    started = world.ask("train", config=CONFIG.replace("cats", reply["training_folder"]))
    assert "process_id" in started
    again = world.ask("create_upload", training_name="other", files=announced_files())
    of_upload = {name: again[name] for name in ("dataset_folder", "upload_id")}
    assert set(world.ask("abort_upload", **of_upload)) == {
        "message", "upload_id", "dataset_folder", "deleted", "request_id",
    }  # fmt: skip


def test_datasets_are_listed(world):
    reply = world.ask("list_dataset_folders")
    assert set(reply) == {"folders", "datasets", "prefix", "request_id"}
    assert (reply["folders"], reply["prefix"]) == (["cats"], "dataset")


def test_clearing_logs_says_which(world):
    (world.workspace.logs / "app.log").write_bytes(b"12345")
    reply = world.ask("clear_logs", log_type="app")
    assert reply.pop("request_id")
    assert reply == {
        "message": "1 log file cleared", "log_type": "app",
        "cleared": [{"name": "app.log", "size": 5}],
    }  # fmt: skip


# Errors


FAILING = {
    "health": None, "list_dataset_folders": None,
    "train": {"config": ""}, "train_with_yaml": {"config": "a: ["},
    "generate": {"prompt": ""}, "processes": {"limit": 0}, "process_status": {},
    "cancel": {"process_id": MISSING}, "download": {"process_id": MISSING},
    "download_by_key": {"s3_key": "results/x"}, "download_file": {"file_path": "/etc/passwd"},
    "bulk_download": {"process_ids": [MISSING]}, "list_models": {"cursor": "x"},
    "lora": {"cursor": "x"}, "list_files": {"path": "../x"}, "delete_results": {},
    "upload_training_data": {"files": []}, "create_upload": {"files": []}, "complete_upload": {},
    "abort_upload": {"dataset_folder": "cats", "upload_id": "x"}, "clear_logs": {"log_type": "x"},
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in REQUEST_TYPES if FAILING[kind] is not None])
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_a_text_and_nothing_else(world, tmp_path, kind, debug):
    other = World(tmp_path / "other", debug=debug)
    reply = other.ask(kind, **FAILING[kind])
    assert list(reply) == ["error"]
    assert isinstance(reply["error"], str)
    assert ("Traceback (most recent call last)" in reply["error"]) is debug
    assert (".py" in reply["error"]) is debug


@pytest.mark.parametrize("kind", REQUEST_TYPES)
@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_an_error_with_the_requests_id_and_its_traceback_in_the_log(
    tmp_path, log, kind, debug
):
    registry = BrokenRegistry()
    world = World(tmp_path, registry=registry, debug=debug)
    requests = everything_works_up_to_the_registry(world)
    registry.broken = True
    if kind in OF_OTHER_PARTS:
        break_what_it_asks(world)
    request_id = new_request_id()
    reply = world.dispatcher.answer({"type": kind, **requests[kind]}, request_id=request_id)
    assert list(reply) == ["error"]
    assert request_id in reply["error"]
    assert "internal error (RuntimeError)" in reply["error"]
    assert ("the bug" in reply["error"]) is debug
    assert ("Traceback" in reply["error"]) is debug
    (broke,) = events(log, "request_broke")
    assert broke["request_id"] == request_id
    assert "Traceback" in broke["exception"]
    assert "the bug" in broke["exception"]
    figures = world.metrics.snapshot()[kind]
    assert (figures.count, figures.errors, figures.invalid) == (1, 1, 0)


OF_OTHER_PARTS = {
    "list_dataset_folders", "upload_training_data", "create_upload", "complete_upload",
    "abort_upload", "clear_logs",
}  # fmt: skip


def everything_works_up_to_the_registry(world):
    world.datasets.upload(_parsed_upload())
    trained = world.trained().id
    of_process = {"process_id": trained}
    announced = {"dataset_folder": "x", "files": announced_files()}
    plan = world.services.uploads.create(parse_request({"type": "create_upload", **announced}))
    of_upload = {"dataset_folder": "x", "upload_id": plan.upload_id}
    return {
        "health": {}, "train": {"config": CONFIG}, "train_with_yaml": {"config": CONFIG},
        "generate": {"prompt": "x", "base_model": "emoji-base"}, "processes": {},
        "process_status": of_process, "cancel": of_process, "download": of_process,
        "download_by_key": {"s3_key": f"results/{trained}/lora/cat.safetensors"},
        "download_file": {"file_path": f"results/{trained}/lora/cat.safetensors"},
        "bulk_download": {"process_ids": [trained]}, "list_models": {}, "lora": {},
        "list_files": {}, "delete_results": of_process, "list_dataset_folders": {},
        "upload_training_data": {"dataset_folder": "x", "files": files()},
        "create_upload": announced, "complete_upload": of_upload, "abort_upload": of_upload,
        "clear_logs": {"log_type": "all"},
    }  # fmt: skip


def break_what_it_asks(world):
    def broken(*_arguments):
        raise RuntimeError("the bug of another part")

    world.store.folders = world.store.put_file = world.store.list = broken
    world.services.log_files.clear = broken


def _parsed_upload():
    request = {"type": "upload_training_data", "dataset_folder": "cats", "files": files()}
    return parse_request(request)


# What stays behind


def test_the_requests_id_is_in_the_reply_the_record_and_the_log(world, log):
    reply = world.dispatcher.answer({"type": "train", "config": CONFIG}, request_id="req_mine")
    assert reply["request_id"] == "req_mine"
    assert world.registry.get(reply["process_id"]).request_id == "req_mine"
    assert world.ask("process_status", process_id=reply["process_id"])["request_id"] != ""
    answered = [one for one in events(log, "request_answered") if one["request_id"] == "req_mine"]
    assert [(one["type"], one["outcome"]) for one in answered] == [("train", "ok")]


def test_requests_without_an_id_get_one_of_their_own(world):
    ids = {world.ask("processes")["request_id"] for _ in range(50)}
    assert len(ids) == 50
    assert all(one.startswith("req_") for one in ids)


def test_a_refused_request_is_in_the_log_with_its_reason_and_without_its_content(world, log):
    world.ask("generate", prompt="x", lora="/my/secret/place.safetensors", base_model="emoji-base")
    world.ask("upload_training_data", files=[{"filename": "a.png", "content": "c2VjcmV0" * 100}])
    refused = events(log, "request_answered")[-2:]
    assert [one["outcome"] for one in refused] == ["invalid", "invalid"]
    assert "not a place that requests may name" in refused[0]["error"]
    assert "c2VjcmV0" not in log.getvalue()


def test_each_type_and_outcome_is_counted(tmp_path):
    world = World(tmp_path)
    for kind in REQUEST_TYPES:
        if FAILING[kind] is not None:
            world.ask(kind, **FAILING[kind])
    world.ask("processes")
    world.ask("nonsense")
    world.dispatcher.answer(None)
    figures = world.metrics.snapshot()
    assert (figures["processes"].count, figures["processes"].invalid) == (2, 1)
    assert figures["unknown"].count == 2
    counted = {kind for kind in REQUEST_TYPES if kind in figures}
    assert counted == {kind for kind in REQUEST_TYPES if FAILING[kind] is not None}
    assert all(figures[kind].invalid == 1 for kind in counted)
    text = world.metrics.render()[0].decode()
    assert 'loradash_requests_total{outcome="invalid",type="cancel"} 1.0' in text


@pytest.mark.parametrize("debug", [False, True])
def test_secrets_in_errors_do_not_reach_the_client(tmp_path, monkeypatch, debug):
    world = World(tmp_path, debug=debug)

    def broken(*_, **__):
        raise StoreRefused("https://s3/b?X-Amz-Signature=0a1b2c {'api_key': 'geheim'}")

    monkeypatch.setattr(world.services.results.lists, "files", broken)
    reply = world.ask("list_files")
    assert reply["error"].startswith("https://s3/b?X-Amz-Signature=*** {'api_key': '***'}")
    assert "0a1b2c" not in reply["error"].partition("Traceback")[0]


def test_a_full_disk_is_no_bug_of_ours(tmp_path, monkeypatch):
    world = World(tmp_path)

    def broken(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(world.services.results.lists, "files", broken)
    assert world.ask("list_files")["error"] == (
        "the quota of the disk is used up\nFree space and retry."
    )
    with world.client() as client:
        monkeypatch.setattr(world.services.processes, "queue", broken)
        response = client.get("/queue")
        assert response.status_code == 507
        assert "quota" in response.json()["error"]


def test_health_shows_no_secrets_of_what_is_away(tmp_path):
    class Away(MemoryStore):
        def list(self, prefix=""):
            raise StoreRefused("https://s3/b?X-Amz-Signature=0a1b2c AKIAIOSFODNN7EXAMPLE")

    shown = json.dumps(World(tmp_path, store=Away()).ask("health"))
    assert "X-Amz-Signature=*** ***" in shown
    assert "0a1b2c" not in shown


def test_what_a_prompt_says_beside_words_is_answered_as_warnings(world):
    reply = world.ask("generate", prompt="(red:1.5) fox <lora:unheard:1>", base_model="emoji-base")
    left_out, drawn = reply["warnings"]
    assert left_out.startswith("prompt: <lora:unheard:1> is left out")
    assert drawn == "prompt: drawn as words: (red:1.5) (a weight)"
