"""The main job as a user of RunPod's own Python client writes it; run as a program of its own.

Arguments: the server's address and a folder with a dataset. Prints a JSON object at the end.
"""

import base64
import hashlib
import json
import sys
import time
from pathlib import Path

import runpod

URL, FOLDER = sys.argv[1], Path(sys.argv[2])

runpod.api_key = "x"
runpod.endpoint_url_base = f"{URL}/v2"
endpoint = runpod.Endpoint("local")

uploaded = endpoint.run_sync(
    {
        "input": {
            "type": "upload_training_data",
            "training_name": "from the client",
            "trigger_word": "sks",
            "files": [
                {"filename": path.name, "content": base64.b64encode(path.read_bytes()).decode()}
                for path in sorted(FOLDER.iterdir())
            ],
        }
    }
)
assert uploaded["dataset_folder"] == "from-the-client", uploaded

CONFIG = f"""
dataset: {uploaded["dataset_folder"]}
base_model: emoji-base
name: client
trigger_word: sks
steps: 20
rank: 4
batch_size: 2
resolution: [64]
precision: fp32
gradient_checkpointing: false
"""
job = endpoint.run({"input": {"type": "train", "config": CONFIG}})
states = [job.status()]
seen = []
for chunk in job.stream():
    seen.append(chunk)
    states.append(job.status())
states.append(job.status())
output = job.output()
assert output["process_id"] == output["data"]["process_id"] == job.job_id
assert output["status"] == "completed"
assert output["progress"] == 100

models = endpoint.run_sync({"input": {"type": "list_models"}})["models"]
model = next(one for one in models if one["process_id"] == job.job_id)
adapter = endpoint.run_sync({"input": {"type": "download", "process_id": job.job_id}})

drawing = endpoint.run(
    {
        "input": {
            "type": "generate", "prompt": "a sks triangle", "lora": job.job_id, "steps": 2,
            "seed": 5,
        }
    }
)  # fmt: skip
assert drawing.output(timeout=120)["status"] == "completed"
[image] = [one for one in drawing.output()["artifacts"] if one["kind"] == "image"]
picture = endpoint.run_sync({"input": {"type": "download", "process_id": drawing.job_id}})


def fetched(file: dict) -> dict:
    data = base64.b64decode(file["data"])
    return {
        "key": file["s3_key"],
        "sha256": hashlib.sha256(data).hexdigest(),
        "data": file["data"],
    }


long = {"type": "train", "config": CONFIG.replace("steps: 20", "steps: 4000")}
running, queued = endpoint.run({"input": long}), endpoint.run({"input": long})
deadline = time.monotonic() + 60
while running.status() == "IN_QUEUE" and time.monotonic() < deadline:
    time.sleep(0.1)
health = endpoint.health()
cancelled = [queued.cancel()["status"], queued.status()]
running.cancel()
while running.status() not in ("CANCELLED", "FAILED") and time.monotonic() < deadline:
    time.sleep(0.1)

refused = endpoint.run({"input": {"type": "train", "config": "steps: many"}})
deleted = endpoint.run_sync({"input": {"type": "delete_results", "process_id": job.job_id}})
models = endpoint.run_sync({"input": {"type": "list_models"}})["models"]
print(
    json.dumps(
        {
            "process_id": job.job_id,
            "states": states,
            "seen": seen,
            "adapter": fetched(adapter),
            "adapter_listed": {"key": model["s3_key"], "sha256": model["sha256"]},
            "image": fetched(picture),
            "image_listed": {"key": image["key"], "sha256": image["sha256"]},
            "health": health,
            "cancelled": [*cancelled, running.status()],
            "refused": refused.status(),
            "deleted": deleted["deleted"],
            "models_left": [one["process_id"] for one in models],
        }
    )
)
