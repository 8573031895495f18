"""Ids and names that the shell completes. What can't be asked is left to the user's memory."""

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from loradash.domain.sizes import counted
from loradash.visible_text import visible

if TYPE_CHECKING:
    from loradash.cli.backend import Backend
    from loradash.services.results.views import ModelView

_ANSWERS_S = 3.0
_SHOWN = 50
_MODELS_SHOWN = 200

Completion = tuple[str, str]


def process_ids(incomplete: str) -> list[Completion]:
    """Return the newest processes, with name and status."""
    return _answered(
        incomplete,
        lambda target: (
            (one["id"], f"{one['name']}, {one['status']}")
            for one in target.ask(type="processes", limit=_SHOWN)["processes"]
        ),
    )


def adapter_ids(incomplete: str) -> list[Completion]:
    """Return the trainings that have an adapter."""
    return _answered(
        incomplete,
        lambda target: ((one.file.process_id, one.name) for one in _models(target)),
    )


def adapter_names(incomplete: str) -> list[Completion]:
    """Return the trainings that have an adapter, and the adapters' names."""
    return _answered(
        incomplete,
        lambda target: (
            pair
            for one in _models(target)
            for pair in ((one.file.process_id, one.name), (one.name, one.file.process_id))
        ),
    )


def dataset_names(incomplete: str) -> list[Completion]:
    """Return the stored datasets."""
    return _answered(
        incomplete,
        lambda target: (
            (one.name, counted(one.total_images, "image")) for one in target.datasets()
        ),
    )


def _models(target: "Backend") -> "tuple[ModelView, ...]":
    return target.models(_MODELS_SHOWN, "").models


def _answered(
    incomplete: str, ask: "Callable[[Backend], Iterable[Completion]]"
) -> list[Completion]:
    from loradash.cli.backend import backend
    from loradash.errors import LoradashError
    from loradash.settings import load_settings

    with (
        contextlib.suppress(LoradashError, OSError),
        backend(load_settings(), timeout_s=_ANSWERS_S) as target,
    ):
        return [(name, visible(text)) for name, text in ask(target) if name.startswith(incomplete)]
    return []
