"""Examples of requests for the API's documentation; tests send each of them."""

from typing import Any

_TRAINING = """dataset: my_photos
base_model: emoji-base  # small, ships with loradash; or a hub id, a folder, a .safetensors file
name: my_lora
trigger_word: sks
steps: 200
rank: 16
sample_prompts: ["a photo of [trigger]"]
"""

_ID = "train_01k9x3q4zt8m2v7c0hde"

_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAAA1BMVEX/gAAiYZF8AAAAD0lEQVR42mNgGAWjgHwAAAJA"
    "AAHgTR1EAAAAAElFTkSuQmCC"
)
_PIXEL_SHA256 = "2510265fdc88fdf71bd72abae4ecd75f7d52cd06dada3156afebf7a8a624808d"

_UPLOAD_ID = "upload_01k9x3q4zt8m2v7c0hde"


def _example(summary: str, **fields: Any) -> dict[str, Any]:
    return {"summary": summary, "value": {"input": fields}}


EXAMPLES: dict[str, dict[str, Any]] = {
    "health": _example("Check the server's health", type="health"),
    "upload_training_data": _example(
        "Store a dataset",
        type="upload_training_data",
        training_name="my_photos",
        trigger_word="sks",
        files=[
            {"filename": "1.png", "content": _PIXEL, "content_type": "image/png"},
            {"filename": "1.txt", "content": "YSBwaG90byBvZiBza3M=", "content_type": "text/plain"},
        ],
    ),
    "create_upload": _example(
        "Announce a dataset's files and get an upload URL for each",
        type="create_upload",
        training_name="my_photos",
        trigger_word="sks",
        files=[
            {"filename": "1.png", "size": 87, "sha256": _PIXEL_SHA256},
            {"filename": "1.txt", "size": 14},
        ],
    ),
    "complete_upload": _example(
        "Complete an upload",
        type="complete_upload", dataset_folder="my_photos", upload_id=_UPLOAD_ID,
    ),
    "abort_upload": _example(
        "Abort an upload",
        type="abort_upload", dataset_folder="my_photos", upload_id=_UPLOAD_ID,
    ),
    "list_dataset_folders": _example("List the datasets", type="list_dataset_folders"),
    "train": _example("Start a training", type="train", config=_TRAINING),
    "train_with_yaml": _example(
        "Start a training (the published client's name for it)",
        type="train_with_yaml",
        config=_TRAINING,
    ),
    "generate": _example(
        "Generate images with a trained LoRA",
        type="generate", prompt="a photo of sks on the moon", lora=_ID, num_images=2, seed=7,
    ),
    "processes": _example("List processes, the newest first", type="processes", limit=20),
    "process_status": _example(
        "Show one process with its log", type="process_status", process_id=_ID, log_after=0
    ),
    "cancel": _example("Cancel a process", type="cancel", process_id=_ID),
    "list_models": _example("List the trained LoRAs", type="list_models"),
    "lora": _example("List the trained LoRAs (older name)", type="lora"),
    "list_files": _example("List result files", type="list_files", path=f"results/{_ID}"),
    "download": _example("Download a process's result", type="download", process_id=_ID),
    "download_by_key": _example(
        "Download a result by its key",
        type="download_by_key", s3_key=f"results/{_ID}/lora/my_lora.safetensors",
    ),
    "download_file": _example(
        "Download a file by its path from a list",
        type="download_file", file_path=f"results/{_ID}/lora/my_lora.safetensors",
    ),
    "bulk_download": _example("Links to many results", type="bulk_download", process_ids=[_ID]),
    "delete_results": _example(
        "Delete results", type="delete_results", process_id=_ID, result_type="samples"
    ),
    "clear_logs": _example("Clear the server's logs", type="clear_logs", log_type="all"),
}  # fmt: skip
