"""What the parent hands to the scripted child: a training's job file, a generation's line.

Plain dataclasses in JSON, so that the child imports nothing but the standard library.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loradash.engines.scripted.orders import Orders


@dataclass(frozen=True)
class Picture:
    """A picture to make: a preview of a training, or an image of a generation."""

    index: int
    prompt: str
    seed: int
    width: int
    height: int
    name: str = ""
    """Of the file that a generation writes."""


@dataclass(frozen=True)
class TrainingPlan:
    """A whole training: everything that its result depends on."""

    process_id: str
    engine: Mapping[str, str]
    """Name and version of the engine that wrote this."""
    created_at: str
    name: str
    steps: int
    seed: int
    learning_rate: float
    rank: int
    alpha: float
    dtype: str
    save_every: int
    keep: int
    sample_every: int
    """0: no previews."""
    sample_start: int
    sample_first: bool
    samples: tuple[Picture, ...]
    metadata: Mapping[str, str]
    """What the adapter says about itself, without the number of steps."""
    start_sha256: str = ""
    """Of the adapter that it starts from."""
    before_sha256: str = ""
    """Of the job of the training that this one extends."""
    orders: Orders = field(default_factory=Orders)

    def to_json(self) -> str:
        """Return the text of a job file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "TrainingPlan":
        """Read a job file. Raises `ValueError` or `TypeError` for one that isn't a plan."""
        document: dict[str, Any] = json.loads(text)
        return cls(
            **{
                **document,
                "samples": tuple(Picture(**one) for one in document["samples"]),
                "orders": Orders(**document["orders"]),
            }
        )


@dataclass(frozen=True)
class DrawingPlan:
    """One generation."""

    request_id: str
    folder: str
    pictures: tuple[Picture, ...]
    total: int
    orders: Orders = field(default_factory=Orders)

    def to_json(self) -> str:
        """Return the line for the child's stdin."""
        return json.dumps({"type": "generate", **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "DrawingPlan":
        """Read what `to_json` has written, parsed."""
        fields = {key: value for key, value in document.items() if key != "type"}
        return cls(
            **{
                **fields,
                "pictures": tuple(Picture(**one) for one in document["pictures"]),
                "orders": Orders(**document["orders"]),
            }
        )
