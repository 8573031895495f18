"""Which files hold a part's weights, of all that a folder may hold; and what lies there instead."""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from loradash.engines.diffusers.base_models.findings import COMPLETE, Finding, Findings
from loradash.engines.diffusers.base_models.model_files import ModelFiles, read_json

_SAFE = (
    "use a version of the model whose weights are .safetensors files; .bin, .ckpt and .pt files "
    "can run code when they are read"
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_ELSEWHERE = (".onnx", ".msgpack", ".h5", ".gguf", ".xml")
_PREFERRED = ("", "fp16", "bf16")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


class Weights(NamedTuple):
    """The files that hold a part's weights: one, or shards with the path of their index."""

    variant: str
    """Such as ``fp16``; '' for the plain files."""
    files: tuple[str, ...]
    index_file: str = ""


def weights_of(part: str, stem: str, files: ModelFiles, names: Collection[str]) -> Weights:
    """Return a part's plain weights, else those of a variant, half precision first.

    ``stem`` is the beginning of the files' names within the part's folder. Raises `Findings`.
    """
    inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
    for variant in _variants(stem, inside):
        dotted = f".{variant}" if variant else ""
        single = f"{stem}{dotted}.safetensors"
        if single in inside:
            return Weights(variant, (f"{part}/{single}",))
        index = f"{stem}.safetensors.index{dotted}.json"
        if index in inside:
            return Weights(variant, _shards(part, index, files, inside), f"{part}/{index}")
    raise Findings([_instead(part, stem, inside)])


def _variants(stem: str, inside: Iterable[str]) -> list[str]:
    form = re.compile(
        rf"{re.escape(stem)}(?:\.(\w+))?\.safetensors|"
        rf"{re.escape(stem)}\.safetensors\.index(?:\.(\w+))?\.json"
    )
    found = {match[1] or match[2] or "" for name in inside if (match := form.fullmatch(name))}
    return [*(one for one in _PREFERRED if one in found), *sorted(found - set(_PREFERRED))]


def _shards(part: str, index: str, files: ModelFiles, inside: set[str]) -> tuple[str, ...]:
    name = f"{part}/{index}"
    try:
        shards = sorted({str(shard) for shard in read_json(files, name)["weight_map"].values()})
    except ValueError as error:
        raise Findings([Finding(f"{name} {error}", COMPLETE)]) from error
    except (LookupError, AttributeError, TypeError) as error:
        raise Findings([Finding(f"{name} names no shards (weight_map)", COMPLETE)]) from error
    missing = [shard for shard in shards if shard not in inside]
    if missing or not shards:
        raise Findings(
            [Finding(f"{part}/{shard} is missing, which {index} names", COMPLETE)
             for shard in missing] or [Finding(f"{name} names no shards", COMPLETE)]
        )  # fmt: skip
    return tuple(f"{part}/{shard}" for shard in shards)


def _instead(part: str, stem: str, inside: set[str]) -> Finding:
    """Say what lies there instead of the weights that are wanted."""
    wanted = f"{part}/{stem}.safetensors"
    if shards := sorted(name for name in inside if _SHARD.search(name)):
        return Finding(
            f"{wanted}.index.json is missing, which says what is in {shards[0]} and the other "
            "shards",
            COMPLETE,
        )
    if named := sorted(name for name in inside if name.endswith(".safetensors")):
        return Finding(
            f"{wanted} is missing; there is {named[0]}", f"rename it if it is the {part}'s"
        )
    if pickles := sorted(name for name in inside if name.endswith(_PICKLES)):
        return Finding(f"{part}: its weights are only there as {pickles[0]}", _SAFE)
    if others := sorted(name for name in inside if name.endswith(_ELSEWHERE)):
        return Finding(
            f"{part}: its weights are only there for other programs ({others[0]})",
            "use the model's diffusers version with .safetensors files",
        )
    return Finding(f"{wanted} is missing", COMPLETE)
