"""What can be told of a base model before it is loaded: all that is wrong with it, at once.

Small files are looked at first, and of weights only the headers; nothing here knows torch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from loradash.engines.diffusers.base_models.checkpoint_kinds import Checkpoint, checkpoint_kind
from loradash.engines.diffusers.base_models.families import (
    FAMILIES,
    BaseModelSource,
    Family,
    family_of,
)
from loradash.engines.diffusers.base_models.findings import (
    COMPLETE,
    Finding,
    invalid_base_model,
    sentence,
)
from loradash.engines.diffusers.base_models.hub import (
    HubFiles,
    HubModel,
    can_ask,
    no_room,
    open_model,
)
from loradash.engines.diffusers.base_models.model_files import FolderFiles, ModelFiles, read_json
from loradash.engines.diffusers.base_models.pipeline_layout import INDEX, Layout, read_layout
from loradash.engines.diffusers.base_models.weights import NotWeights, read_header
from loradash.errors import InvalidBaseModel
from loradash.paths import local_path

_Looked = TypeVar("_Looked")


class Inspection(NamedTuple):
    """A base model that has passed."""

    native_size: int | None
    """Side in pixels of the images that it was trained on; None if that isn't known."""
    layout: Layout | None = None
    """Of a diffusers pipeline."""
    hub: HubModel | None = None
    """The repository with the model, or with a single file's configs."""

    @property
    def revision(self) -> str | None:
        """The commit of a model on the hub; None for others."""
        return self.hub.revision if self.hub else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return (self.hub.warning,) if self.hub and self.hub.warning else ()


def inspect(source: BaseModelSource, *, offline: bool = False) -> Inspection:
    """Look through a base model, wherever it is. Raises `InvalidBaseModel` with all findings.

    Of the hub's files the small ones are fetched, and the beginnings of the weights are read. With
    ``offline``, the hub's cache is looked through instead. Nothing is known of a model on the hub
    where the hub's library isn't installed.
    """
    try:
        if source.kind == "single_file":
            return _single_file(source, offline)
        if source.kind == "hub":
            return _on_the_hub(source, offline) if can_ask() else Inspection(None)
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
    family = _known_family(name, index.get("_class_name"))
    layout = read_layout(files, index, family)
    if layout.findings:
        raise invalid_base_model(name, layout.findings)
    return Inspection(layout.native_size, layout)


def _known_family(name: str, pipeline_class: object) -> Family:
    """Return the family of a pipeline's class. Raises `InvalidBaseModel` if it isn't ours."""
    if family := family_of(pipeline_class):
        return family
    supported = sorted(name for family in FAMILIES for name in family.pipelines)
    finding = Finding(
        f"this is a {pipeline_class}, which the diffusers engine can't train yet",
        f"use a base model of: {', '.join(supported)}",
    )
    raise invalid_base_model(name, [finding])


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


def _on_the_hub(source: BaseModelSource, offline: bool) -> Inspection:
    hub = open_model(source.location, revision=source.revision, offline=offline)
    inspection = _told_by_cause(hub, lambda: pipeline(source.name, hub.files))
    if isinstance(hub.files, HubFiles) and inspection.layout:
        needed = inspection.layout.needed
        if full := no_room(hub.files, needed):
            raise invalid_base_model(source.name, [full])
    return inspection._replace(hub=hub)


def _told_by_cause(hub: HubModel, look: Callable[[], _Looked]) -> _Looked:
    """Look at a copy in the cache; if it lacks something, say why it isn't fetched."""
    try:
        return look()
    except InvalidBaseModel as error:
        if hub.not_asked is None:
            raise
        raise InvalidBaseModel(
            f"base model {hub.name}: {hub.not_asked.text}, and the copy in the hub's cache can't "
            "be used",
            problems=error.problems or [error.message],
            remedy=sentence(hub.not_asked.remedy),
        ) from error


def checkpoint_of(source: BaseModelSource) -> Checkpoint:
    """Return what a single file is. Raises `InvalidBaseModel` if it can't be a base model here."""
    path = Path(source.location)
    try:
        kind = checkpoint_kind(read_header(FolderFiles(path.parent), path.name))
    except NotWeights as error:
        finding = Finding(f"the file {error.reason}", error.remedy)
        raise invalid_base_model(source.name, [finding]) from error
    if isinstance(kind, Finding):
        raise invalid_base_model(source.name, [kind])
    return kind


def _single_file(source: BaseModelSource, offline: bool) -> Inspection:
    kind = checkpoint_of(source)
    size = kind.native_size
    folder = local_path(source.extras, InvalidBaseModel, "extras") if source.extras else None
    if folder and folder.is_dir():
        layout = _extras(source.name, str(folder), FolderFiles(folder), kind)
        return Inspection(layout.native_size or size, layout)
    if not can_ask():
        return Inspection(size)
    repository = source.extras or kind.configs
    try:
        hub = open_model(repository, revision=None, offline=offline)
        layout = _told_by_cause(hub, lambda: _extras(source.name, repository, hub.files, kind))
    except InvalidBaseModel as error:
        raise InvalidBaseModel(
            f"base model {source.name}: a single file holds no configuration, and that of "
            f"{repository} isn't there: {error.message.removeprefix(f'base model {repository}: ')}",
            problems=error.problems,
            remedy=f"{error.remedy} Or give the folder of a model of the same kind as "
            "model.extras_name_or_path.",
        ) from error
    return Inspection(layout.native_size or size, layout, hub)


def _extras(name: str, where: str, files: ModelFiles, kind: Checkpoint) -> Layout:
    """Look through the pipeline that gives a single file its configs."""
    if INDEX not in files.names():
        raise _of_extras(
            name, where, [Finding(f"there is no {INDEX}",
                                  "give the top folder of a diffusers pipeline of the same kind")]
        )  # fmt: skip
    try:
        index = read_json(files, INDEX)
    except ValueError as error:
        raise _of_extras(name, where, [Finding(f"{INDEX} {error}", COMPLETE)]) from error
    if index.get("_class_name") not in kind.family.pipelines:
        finding = Finding(
            f"this is a {index.get('_class_name')}, and the file is of {kind.family.title}",
            f"use a pipeline of: {', '.join(sorted(kind.family.pipelines))}",
        )
        raise _of_extras(name, where, [finding])
    encoders = frozenset(part.name for part in kind.family.parts if part.kind == "clip")
    wanted = frozenset() if kind.has_text_encoders else encoders
    layout = read_layout(files, index, kind.family, with_weights=wanted)
    if layout.findings:
        raise _of_extras(name, where, layout.findings)
    return layout


def _of_extras(name: str, where: str, findings: Sequence[Finding]) -> InvalidBaseModel:
    prefix = f"extras_name_or_path {where}: "
    return invalid_base_model(name, [Finding(prefix + one.text, one.remedy) for one in findings])
