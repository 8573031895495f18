"""Types of results, as clients name them in requests, and the kinds of artifacts that they are."""

from loradash.domain.requests import ResultType
from loradash.registry.registry import ArtifactKind

KINDS_OF_TYPE: dict[ResultType, tuple[ArtifactKind, ...]] = {
    "lora": ("lora",),
    "samples": ("sample",),
    "images": ("image",),
    "checkpoints": ("checkpoint",),
    "logs": ("log", "metrics"),
    "all": ("lora", "sample", "image", "checkpoint", "log", "metrics", "config", "job"),
}

TYPE_OF_KIND: dict[ArtifactKind, ResultType] = {
    kind: name for name, kinds in KINDS_OF_TYPE.items() if name != "all" for kind in kinds
}
