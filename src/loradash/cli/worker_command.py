"""``loradash worker``: take jobs from RunPod's queue."""


def worker() -> None:
    """Run a RunPod Serverless worker: jobs from its queue, work on this machine's GPU.

    SIGTERM stops it: what runs writes a checkpoint and is given back.
    """
    import os
    import sys

    from loradash.allocator import return_large_blocks
    from loradash.errors import InvalidSettings
    from loradash.runtime.workspace import Workspace
    from loradash.settings import load_settings
    from loradash.telemetry import logging
    from loradash.wiring.worker import make_worker

    return_large_blocks()
    settings = load_settings()
    if not os.environ.get("RUNPOD_WEBHOOK_GET_JOB"):
        raise InvalidSettings(
            "RUNPOD_WEBHOOK_GET_JOB isn't set: this isn't a RunPod Serverless worker",
            remedy="RunPod sets it. To try a worker here, see `loradash dev queue`; to serve "
            "requests on this machine, use `loradash up`.",
        )
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    logging.configure(workspace.logs, settings.log_level, as_json=True, stream=sys.stderr)
    make_worker(settings)()
