"""Ids and names that the shell completes. What can't be asked is left to the user's memory."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from loradash.domain.sizes import counted
from loradash.visible_text import visible

_ANSWERS_S = 3.0
_SHOWN = 50

Completion = tuple[str, str]


def process_ids(incomplete: str) -> list[Completion]:
    """Return the newest processes, with name and status."""
    return _answered(
        incomplete,
        {"type": "processes", "limit": _SHOWN},
        lambda reply: (
            (one["id"], f"{one['name']}, {one['status']}") for one in reply["processes"]
        ),
    )


def adapter_ids(incomplete: str) -> list[Completion]:
    """Return the trainings that have an adapter."""
    return _answered(
        incomplete,
        {"type": "list_models"},
        lambda reply: ((one["process_id"], one["name"]) for one in reply["models"]),
    )


def adapter_names(incomplete: str) -> list[Completion]:
    """Return the trainings that have an adapter, and the adapters' names."""
    return _answered(
        incomplete,
        {"type": "list_models"},
        lambda reply: (
            pair
            for one in reply["models"]
            for pair in ((one["process_id"], one["name"]), (one["name"], one["process_id"]))
        ),
    )


def dataset_names(incomplete: str) -> list[Completion]:
    """Return the stored datasets."""
    return _answered(
        incomplete,
        {"type": "list_dataset_folders"},
        lambda reply: (
            (one["name"], counted(one["total_images"], "image")) for one in reply["datasets"]
        ),
    )


def _answered(
    incomplete: str,
    request: dict[str, Any],
    read: Callable[[dict[str, Any]], Iterable[Completion]],
) -> list[Completion]:
    from loradash.cli.backend import backend
    from loradash.errors import LoradashError
    from loradash.settings import load_settings

    with (
        contextlib.suppress(LoradashError, OSError),
        backend(load_settings(), timeout_s=_ANSWERS_S) as target,
    ):
        found = read(target.ask(**request))
        return [(name, visible(text)) for name, text in found if name.startswith(incomplete)]
    return []
