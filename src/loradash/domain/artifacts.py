"""Kinds of artifacts: the files that processes produce, and how each is stored and asked for.

One table for engines, registries, object keys and clients.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

ArtifactKind = Literal["lora", "sample", "image", "checkpoint", "config", "log", "metrics", "job"]
ResultFolder = Literal[
    "lora", "samples", "images", "checkpoints", "logs", "config", "job", "manifest"
]
"""Folders below a process's results in the object store."""
ResultType = Literal["lora", "samples", "images", "checkpoints", "logs", "all"]
"""Types of results as clients name them in requests."""


@dataclass(frozen=True)
class ArtifactFacts:
    """What is to be known of a kind of artifacts."""

    folder: ResultFolder
    """Where it lies below its process's results."""
    result_type: ResultType | None
    """As what clients ask for it or delete it; None: only together with everything else."""
    is_adapter: bool = False
    """Whether lists show it among the adapters."""
    is_picture: bool = False
    """Whether lists show it among the images."""
    is_result: bool = False
    """What the work was done for, in contrast to previews, logs and what a resume needs."""
    is_folder_shown: bool = True
    """Whether the folder is part of the name that clients know it by."""


ARTIFACTS = MappingProxyType[ArtifactKind, ArtifactFacts](
    {
        "lora": ArtifactFacts("lora", "lora", is_adapter=True, is_result=True),
        "sample": ArtifactFacts("samples", "samples", is_picture=True),
        "image": ArtifactFacts("images", "images", is_picture=True, is_result=True),
        "checkpoint": ArtifactFacts("checkpoints", "checkpoints"),
        "log": ArtifactFacts("logs", "logs"),
        "metrics": ArtifactFacts("logs", "logs"),
        "config": ArtifactFacts("config", None, is_folder_shown=False),
        "job": ArtifactFacts("job", None, is_folder_shown=False),
    }
)
ARTIFACT_KINDS: tuple[ArtifactKind, ...] = get_args(ArtifactKind)
ADAPTER_KINDS = tuple(kind for kind, facts in ARTIFACTS.items() if facts.is_adapter)
PICTURE_KINDS = tuple(kind for kind, facts in ARTIFACTS.items() if facts.is_picture)
LISTED_KINDS = ADAPTER_KINDS + PICTURE_KINDS
"""What lists of files show."""
RESULT_KINDS = tuple(kind for kind, facts in ARTIFACTS.items() if facts.is_result)


def result_type_of(kind: str) -> ResultType | None:
    """Return what clients call artifacts of this kind, if they have a word for it."""
    return next((facts.result_type for name, facts in ARTIFACTS.items() if name == kind), None)


def kinds_of(result_type: ResultType) -> tuple[ArtifactKind, ...]:
    """Return the kinds of artifacts that a client's type of results stands for."""
    return tuple(
        kind
        for kind, facts in ARTIFACTS.items()
        if result_type == "all" or facts.result_type == result_type
    )
