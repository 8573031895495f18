"""What a worker process must find in its environment to work for the emulated queue."""

from pathlib import Path


def worker_environment(
    base_url: str, endpoint: str, worker_id: str, home: str | Path
) -> dict[str, str]:
    """Return the variables for one worker with RunPod's SDK, beside those it has anyway.

    ``base_url`` is the emulator's address, with or without ``/v2``. ``home`` should be an empty
    folder: a key in ``~/.runpod/config.toml`` would win over the one given here. The SDK reads all
    this when it is imported.
    """
    url = f"{base_url.rstrip('/').removesuffix('/v2')}/v2/{endpoint}"
    return {
        # Each needs a "?": the SDK appends "&..." blindly. In the first one "$ID" is the worker.
        "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
        "RUNPOD_PING_INTERVAL": "1000",  # milliseconds; less than 1000 makes a hot loop
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_ENDPOINT_ID": endpoint,
        "RUNPOD_AI_API_KEY": "emulated",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "HOME": str(home),
    }
