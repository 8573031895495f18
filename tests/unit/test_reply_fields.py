"""Every field that the dashboard's protocol has in a reply is there; clients read them by name."""

import base64

import pytest

from loradash.domain.process import Status
from loradash.protocol.job_json import ended_job

from .world import World, picture

FILE = {"id", "filename", "path", "s3_key", "process_id", "size", "size_formatted", "created_at",
        "type", "result_type"}  # fmt: skip
MODEL = {"id", "filename", "name", "path", "s3_key", "process_id", "size_mb", "modified_date",
         "status"}  # fmt: skip
UPLOADED = {
    "uploaded_files", "s3_path", "training_name", "trigger_word", "total_images", "total_captions",
    "total_size", "total_size_formatted", "file_types_summary", "message", "detailed_message",
    "warnings", "statistics",
}  # fmt: skip
FIELDS = {
    "health": {"status", "services", "worker_id", "environment"},
    "generate": {"process_id", "message", "status"},
    "processes": {"processes", "worker_id", "environment", "note", "data_sources"},
    "process_status": {"process_id", "status", "config"},
    "cancel": {"message"},
    "download": {"type", "filename", "size"},
    "lora": {"models"},
    "list_models": {"models"},
    "upload_training_data": UPLOADED,
    "bulk_download": {"download_items", "zip_url", "total_files", "total_size"},
    "list_files": {"lora_files", "image_files", "total_files"},
    "delete_results": {"status", "result_type", "deleted", "found"},
    "list_dataset_folders": {"folders", "prefix"},
}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def ask(world, kind):
    trained, waiting = world.trained(), world.waiting()
    world.drawn()
    image = base64.b64encode(picture()).decode()
    fields = {
        "generate": {"prompt": "a cat", "base_model": "emoji-base"},
        "process_status": {"process_id": trained.id},
        "cancel": {"process_id": waiting.id},
        "download": {"process_id": trained.id},
        "upload_training_data": {
            "training_name": "cats", "files": [{"filename": "0.png", "content": image}],
        },
        "bulk_download": {"process_ids": [trained.id]},
        "delete_results": {"process_id": trained.id, "result_type": "lora"},
    }.get(kind, {})  # fmt: skip
    return world.ask(kind, **fields)


@pytest.mark.parametrize("kind", FIELDS)
def test_a_reply_has_all_fields_of_the_protocol(world, kind):
    reply = ask(world, kind)
    assert "error" not in reply
    assert set(reply) >= FIELDS[kind]


def test_the_entries_of_lists_have_all_fields_of_the_protocol(world):
    models, files = ask(world, "list_models"), ask(world, "list_files")
    bulk = ask(world, "bulk_download")
    uploaded = ask(world, "upload_training_data")
    assert all(set(one) >= MODEL for one in models["models"])
    # An image is downloaded by its key where a process has several, so it may name it as its id.
    for one in (*files["lora_files"], *files["image_files"]):
        assert set(one) >= FILE
    assert all(set(one) >= {"filename", "url", "size", "type"} for one in bulk["download_items"])
    assert set(uploaded["uploaded_files"][0]) >= {
        "filename", "size", "size_formatted", "content_type", "file_type", "uploaded_at",
    }  # fmt: skip
    assert set(uploaded["statistics"]) >= {
        "total_files_attempted", "succeeded", "failed", "success_rate", "average_file_size",
    }  # fmt: skip


def test_processes_are_counted_by_where_their_records_are(world):
    reply = ask(world, "processes")
    sources = reply["data_sources"]
    assert (sources["s3_processes"], sources["local_processes"]) == (0, reply["total"])
    assert sources["total"] == reply["total"]
    assert "status" not in reply  # the published client would drop half of each process


@pytest.mark.parametrize("kind", ["training", "generation"])
def test_the_last_reply_of_a_job_says_in_words_how_it_ended(world, kind):
    record = world.trained() if kind == "training" else world.drawn()
    assert record.status is Status.COMPLETED
    reply = ended_job(record)
    assert reply["message"] == f"{kind} {record.id} is completed"
    assert {"process_id", "message", "status"} <= set(reply)
