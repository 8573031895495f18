"""Where things live in the object store. Keys are built here and nowhere else."""

from typing import Literal

from loradash.storage.store import check_key

ResultKind = Literal["lora", "samples", "images", "checkpoints", "logs"]


def result(process_id: str, kind: ResultKind, name: str) -> str:
    """Key of one result file of a process."""
    return check_key(f"results/{process_id}/{kind}/{name}")


def results(process_id: str) -> str:
    """Prefix of all results of a process."""
    return check_key(f"results/{process_id}")


def result_config(process_id: str) -> str:
    """Key of the config that a process ran with."""
    return check_key(f"results/{process_id}/config.yaml")


def manifest(process_id: str) -> str:
    """Key of the list of a process's results, so that nothing must be found by listing."""
    return check_key(f"results/{process_id}/manifest.json")
