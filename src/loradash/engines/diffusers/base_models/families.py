"""Base models: where one comes from, and whether this engine can train it, told without torch."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loradash.data import EMBEDDED_BASE_MODELS, base_model_folder
from loradash.engines.diffusers.base_models.parts import (
    STABLE_DIFFUSION_PARTS,
    STABLE_DIFFUSION_XL_PARTS,
    Part,
)
from loradash.errors import InvalidBaseModel
from loradash.paths import local_path


@dataclass(frozen=True)
class Family:
    """Base models of one architecture, whatever their size."""

    name: str
    title: str
    """As people call it."""
    pipelines: frozenset[str]
    ai_toolkit_archs: frozenset[str]
    ai_toolkit_flags: frozenset[str]
    parts: tuple[Part, ...]

    @property
    def ordinary(self) -> str:
        """The remedy for a relative of the family that has other inputs or outputs."""
        return f"use an ordinary text-to-image model of {self.title}"


STABLE_DIFFUSION = Family(
    name="stable-diffusion",
    title="Stable Diffusion 1.x or 2.x",
    pipelines=frozenset({"StableDiffusionPipeline"}),
    ai_toolkit_archs=frozenset({"sd1", "sd2", "sd15", "sd"}),
    ai_toolkit_flags=frozenset({"is_v2"}),
    parts=STABLE_DIFFUSION_PARTS,
)
STABLE_DIFFUSION_XL = Family(
    name="stable-diffusion-xl",
    title="Stable Diffusion XL",
    pipelines=frozenset({"StableDiffusionXLPipeline"}),
    ai_toolkit_archs=frozenset({"sdxl"}),
    ai_toolkit_flags=frozenset({"is_xl"}),
    parts=STABLE_DIFFUSION_XL_PARTS,
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)
TRAINABLE = "Stable Diffusion 1.x, 2.x and XL"
"""The families in one phrase, for texts."""


def family_of(pipeline_class: object) -> Family | None:
    """Return the family whose pipeline it is, by the name of its class; None for others."""
    if not isinstance(pipeline_class, str):  # a damaged file may hold anything
        return None
    return next((one for one in FAMILIES if pipeline_class in one.pipelines), None)


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_REMEDY = (
    "Give a diffusers folder, a .safetensors file, a hub id such as 'owner/model', or an embedded "
    f"model ({', '.join(EMBEDDED_BASE_MODELS)})."
)
_FINGERPRINTED = {".json", ".safetensors"}
_BLOCK_BYTES = 65536
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


class BaseModelSource(BaseModel):
    """A base model that was found, or that is on the hub."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["folder", "single_file", "hub"]
    location: str
    extras: str | None = None
    is_v_pred: bool | None = None
    fingerprint: str | None = None
    revision: str | None = None
    """Commit of a hub's repository, so that a training goes on with the same files."""


def find_base_model(
    name: str, *, extras: str | None = None, is_v_pred: bool | None = None
) -> BaseModelSource:
    """Find a base model: an embedded one by name, a local folder or file, or a hub id.

    Raises `InvalidBaseModel` if it is missing or a file that isn't safe to read. What is in it is
    told by `inspection.inspect`.
    """
    if name in EMBEDDED_BASE_MODELS:
        location = base_model_folder(name)
        return BaseModelSource(
            name=name, kind="folder", location=str(location), is_v_pred=is_v_pred
        )
    path = local_path(name, InvalidBaseModel, "base model", _REMEDY)
    if path.is_dir():
        return BaseModelSource(
            name=name, kind="folder", location=str(path.resolve()), is_v_pred=is_v_pred
        )
    if path.is_file():
        if path.suffix != ".safetensors":  # loaders take a file of any other name for a pickle
            raise InvalidBaseModel(
                f"base model {name}: {path.suffix or 'this kind of'} files {_what(path.suffix)}",
                remedy="Use the .safetensors version of the model, or a diffusers folder."
                if path.suffix.lower() != ".safetensors"
                else "Rename it, so that it ends in .safetensors.",
            )
        return BaseModelSource(
            name=name,
            kind="single_file",
            # A link's target may have another ending, as in the hub's cache.
            location=str(path.parent.resolve() / path.name),
            extras=extras,
            is_v_pred=is_v_pred,
        )
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "~")):
        return BaseModelSource(name=name, kind="hub", location=name, is_v_pred=is_v_pred)
    raise InvalidBaseModel(
        f"base model {name} doesn't exist",
        remedy=_REMEDY,
    )


def on_this_machine(source: BaseModelSource) -> BaseModelSource:
    """Return where a base model that another machine has found is here.

    Only an embedded one may be somewhere else: where loradash is installed.
    """
    if source.name not in EMBEDDED_BASE_MODELS:
        return source
    return source.model_copy(update={"location": str(base_model_folder(source.name))})


def fingerprint(source: BaseModelSource) -> str | None:
    """Return a hash that differs for another base model in the same place; None for a hub id.

    Configs are read whole; of weights, the size and 17 blocks: gigabytes take no time, and another
    training of the same network differs everywhere.
    """
    if source.kind == "hub":
        return None
    root = Path(source.location)
    files = [root]
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if path.suffix in _FINGERPRINTED)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            for block in range(17 if path.suffix == ".safetensors" else 1):
                file.seek(size * block // 17)
                digest.update(file.read(_BLOCK_BYTES if path.suffix == ".safetensors" else -1))
    return digest.hexdigest()


def _what(suffix: str) -> str:
    if suffix.lower() in _PICKLE_SUFFIXES:
        return "can run code when they are read"
    if suffix.lower() == ".gguf":
        return "are quantised and can't be trained"
    return "are not base models"
