"""Names in a training's folder that our own engines share, for their children too: no imports."""

JOB_FILE = "job.json"
CHECKPOINTS_FOLDER = "checkpoints"
SAMPLES_FOLDER = "samples"
ADAPTER_FOLDER = "lora"
