"""What can be told of a base model before it is loaded: all that is wrong with it, at once.

Small files are looked at first, and of weights only the headers; nothing here knows torch.
"""

from pathlib import Path
from typing import NamedTuple

from loradash.engines.diffusers.checkpoint_kinds import Checkpoint, checkpoint_kind
from loradash.engines.diffusers.families import FAMILIES, BaseModelSource
from loradash.engines.diffusers.findings import COMPLETE, Finding, invalid_base_model
from loradash.engines.diffusers.model_files import FolderFiles, ModelFiles, read_json
from loradash.engines.diffusers.pipeline_layout import INDEX, Layout, read_layout
from loradash.engines.diffusers.weights import NotWeights, read_header
from loradash.errors import InvalidBaseModel
from loradash.paths import local_path

_V1_SIZE = 512
_V2_SIZE = 768  # of the configs that diffusers takes for a file of 2.x


class Inspection(NamedTuple):
    """A base model that has passed."""

    native_size: int | None
    """Side in pixels of the images that it was trained on; None if that isn't known."""
    layout: Layout | None = None
    """Of a diffusers pipeline."""
    warnings: tuple[str, ...] = ()


def inspect(source: BaseModelSource) -> Inspection:
    """Look through a base model of this machine. Raises `InvalidBaseModel` with all findings."""
    try:
        if source.kind == "single_file":
            return _single_file(source)
        if source.kind == "hub":
            return Inspection(None)
        return pipeline(source.name, FolderFiles(Path(source.location)))
    except OSError as error:
        text = f"{error.filename or source.location}: {error.strerror or error}"
        raise invalid_base_model(
            source.name, [Finding(text, "check the disk and the permissions")]
        ) from error


def pipeline(name: str, files: ModelFiles) -> Inspection:
    """Look through a diffusers pipeline. Raises `InvalidBaseModel`, and `OSError` of the files."""
    names = files.names()
    if INDEX not in names:
        raise invalid_base_model(name, [_no_pipeline(names)])
    try:
        index = read_json(files, INDEX)
    except ValueError as error:
        finding = Finding(f"{INDEX} {error}", COMPLETE)
        raise invalid_base_model(name, [finding]) from error
    if other := other_family(index.get("_class_name")):
        raise invalid_base_model(name, [other])
    layout = read_layout(files, index)
    if layout.findings:
        raise invalid_base_model(name, layout.findings)
    return Inspection(layout.native_size, layout)


def other_family(pipeline_class: object) -> Finding | None:
    """Say that a pipeline's class is none that this engine can train; None if it is one."""
    supported = sorted(name for family in FAMILIES for name in family.pipelines)
    if isinstance(pipeline_class, str) and pipeline_class in supported:
        return None
    return Finding(
        f"this is a {pipeline_class}, which the diffusers engine can't train yet",
        f"use a base model of: {', '.join(supported)}",
    )


def _no_pipeline(names: frozenset[str]) -> Finding:
    """Say what lies there instead of a pipeline."""
    tops = sorted(name for name in names if "/" not in name)
    if any(name in names for name in ("adapter_config.json", "pytorch_lora_weights.safetensors")):
        return Finding(
            f"there is no {INDEX}; this is an adapter (LoRA), not a base model",
            "give the model that it was trained on",
        )
    if checkpoints := [name for name in tops if name.endswith(".safetensors")]:
        return Finding(
            f"there is no {INDEX}, but {checkpoints[0]}",
            f"give the path of that file on this machine ({checkpoints[0]}), or a diffusers folder",
        )
    for ending, what in ((".gguf", "a GGUF file"), (".ckpt", "a pickle"), (".bin", "a pickle")):
        if found := [name for name in tops if name.endswith(ending)]:
            return Finding(
                f"there is no {INDEX}, but {found[0]}, {what}",
                "use the model's diffusers version with .safetensors files",
            )
    if "config.json" in names:
        return Finding(
            f"there is no {INDEX}: this is one part of a pipeline, or another kind of model",
            "give the top folder of a diffusers pipeline",
        )
    return Finding(
        f"there is no {INDEX}, so this isn't a diffusers pipeline",
        "give the top folder of a diffusers pipeline, or a .safetensors file",
    )


def _single_file(source: BaseModelSource) -> Inspection:
    path = Path(source.location)
    files = FolderFiles(path.parent)
    try:
        kind = checkpoint_kind(read_header(files, path.name))
    except NotWeights as error:
        finding = Finding(f"the file {error.reason}", error.remedy)
        raise invalid_base_model(source.name, [finding]) from error
    if isinstance(kind, Finding):
        raise invalid_base_model(source.name, [kind])
    size = _V2_SIZE if kind.is_v2 else _V1_SIZE
    extras = local_path(source.extras, InvalidBaseModel, "extras") if source.extras else None
    if extras and extras.is_dir():
        size = _extras(source, extras, kind).native_size or size
    return Inspection(size)


def _extras(source: BaseModelSource, folder: Path, kind: Checkpoint) -> Layout:
    """Look through the folder that holds the configs of a single file."""
    files = FolderFiles(folder)
    names = files.names()
    if INDEX not in names:
        raise invalid_base_model(
            source.name, [Finding(f"extras_name_or_path {folder}: there is no {INDEX}",
                                  "give the top folder of a diffusers pipeline of the same kind")]
        )  # fmt: skip
    try:
        index = read_json(files, INDEX)
    except ValueError as error:
        finding = Finding(f"extras_name_or_path {folder}: {INDEX} {error}", "download it again")
        raise invalid_base_model(source.name, [finding]) from error
    if other := other_family(index.get("_class_name")):
        finding = Finding(f"extras_name_or_path {folder}: {other.text}", other.remedy)
        raise invalid_base_model(source.name, [finding])
    wanted = frozenset() if kind.has_text_encoder else frozenset({"text_encoder"})
    layout = read_layout(files, index, with_weights=wanted)
    if layout.findings:
        findings = [
            Finding(f"extras_name_or_path: {one.text}", one.remedy) for one in layout.findings
        ]
        raise invalid_base_model(source.name, findings)
    return layout
