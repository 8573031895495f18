"""Kinds of work: what differs between trainings, generations, and whatever else runs as a process.

One table. Who needs to know how a kind differs from another one asks its entry, and never by name;
`docs/kinds.md` says what a new one needs.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from loradash.domain.artifacts import ArtifactKind


@dataclass(frozen=True)
class Lane:
    """The part of a slot in which processes of some kinds run, one at a time."""

    name: str
    keeps_pipeline: bool
    """Whether a warm pipeline stays in the slot's memory after a process here, idle."""
    first: int
    """Among the lanes of a slot that is free, the one with the lower number starts first."""


TRAINING_LANE = Lane("training", keeps_pipeline=False, first=0)
GENERATION_LANE = Lane("generation", keeps_pipeline=True, first=1)
LANES = (TRAINING_LANE, GENERATION_LANE)


@dataclass(frozen=True)
class KindOfWork:
    """One kind of processes."""

    name: str
    id_prefix: str
    """Ids are ``<id_prefix>_<20 characters>``."""
    request_types: tuple[str, ...]
    """The requests that start one."""
    folder: str
    """Folder of its processes' own folders in the workspace."""
    lane: Lane
    uses_pipeline: bool
    """It works in the slot's warm pipeline, which is unloaded before any other kind starts."""
    working_phases: frozenset[str]
    """Phases of its progress in which it has taken all of its memory."""
    memory_setting: str
    """The setting with the free memory in MB that must be there before it starts."""
    ram_share: float
    """Of a CPU slot's memory, no more than this share is asked for."""
    timeout_setting: str
    """The setting with the seconds that it may take."""
    timeout_variable: str
    """The environment variable of ``timeout_setting``, for texts."""
    main_artifact: ArtifactKind
    """What its results are downloaded as."""
    is_resumable: bool
    """Whether it goes on from a checkpoint after a failure, instead of beginning again."""
    doing: str
    """As the running work is called: "training", "generating"."""


TRAINING = KindOfWork(
    name="training",
    id_prefix="train",
    request_types=("train", "train_with_yaml"),
    folder="output/training",
    lane=TRAINING_LANE,
    uses_pipeline=False,
    working_phases=frozenset({"training", "sampling", "saving"}),
    memory_setting="training_memory_mb",
    ram_share=0.25,
    timeout_setting="training_timeout_s",
    timeout_variable="TRAINING_TIMEOUT",
    main_artifact="lora",
    is_resumable=True,
    doing="training",
)
GENERATION = KindOfWork(
    name="generation",
    id_prefix="gen",
    request_types=("generate",),
    folder="output/generation",
    lane=GENERATION_LANE,
    uses_pipeline=True,
    working_phases=frozenset({"generating"}),
    memory_setting="generation_memory_mb",
    ram_share=0.125,
    timeout_setting="generation_timeout_s",
    timeout_variable="GENERATION_TIMEOUT",
    main_artifact="image",
    is_resumable=False,
    doing="generating",
)

KINDS: dict[str, KindOfWork] = {kind.name: kind for kind in (TRAINING, GENERATION)}
"""All kinds by name. Fixed, but for tests that add one."""


def _known(name: str) -> str:
    if name not in KINDS:
        *others, last = map(repr, KINDS)
        raise ValueError(f"must be one of {', '.join(others)} or {last}")
    return name


Kind = Annotated[str, AfterValidator(_known)]
"""The name of a kind of work, one of `KINDS`."""


def kind_names() -> tuple[Kind, ...]:
    """Return the names of all kinds, in a fixed order."""
    return tuple(KINDS)


def kind_of_id(process_id: str) -> KindOfWork | None:
    """Return the kind of work that a process's id tells; None for any other text."""
    prefix = process_id.partition("_")[0]
    return next((kind for kind in KINDS.values() if kind.id_prefix == prefix), None)


def kind_started_by(request_type: object) -> KindOfWork | None:
    """Return the kind of work that a type of request starts; None for any other value."""
    return next((kind for kind in KINDS.values() if request_type in kind.request_types), None)


def kinds_in(lane: Lane) -> tuple[KindOfWork, ...]:
    """Return the kinds that run in a lane."""
    return tuple(kind for kind in KINDS.values() if kind.lane == lane)
