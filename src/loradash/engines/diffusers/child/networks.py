"""Loading the networks of a pipeline's folder, and noticing what the libraries only log.

They start what has no weight with random numbers and go on; such a model would train and draw
without a word, and wrongly.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from loradash.engines.diffusers.base_models.findings import COMPLETE, Finding
from loradash.engines.diffusers.base_models.parts import PartKind
from loradash.engines.diffusers.base_models.pipeline_layout import Layout

_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
}
_SHOWN = 3


def load_networks(
    folder: Path,
    layout: Layout,
    dtype: torch.dtype,
    findings: list[Finding],
    kinds: Collection[PartKind] = ("clip", "autoencoder", "unet"),
) -> dict[str, Any]:
    """Return the networks of these kinds by their names in the pipeline.

    What is wrong is added to ``findings``.
    """
    networks = {}
    for part in layout.family.parts:
        if part.kind not in kinds or not part.weights:
            continue
        name, (kind,) = part.name, part.classes
        weights = layout.weights[name]
        options = {"ignore_mismatched_sizes": True} if part.kind == "clip" else {}
        network, told = _CLASSES[kind].from_pretrained(
            folder / name,
            dtype=dtype,
            variant=weights.variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        where = weights.index_file or weights.files[0]
        findings += _told(where, told)
        networks[name] = network
    return networks


def not_finite(networks: dict[str, Any], dtype: torch.dtype) -> Iterator[Finding]:
    """Name the tensors that hold NaN or infinite values, or have none at all."""
    for part, network in networks.items():
        tensors = dict((*network.named_parameters(), *network.named_buffers()))
        if empty := [name for name, one in tensors.items() if one.is_meta]:
            yield Finding(f"{part} lacks {_shown(empty)}", COMPLETE)
            continue
        bad = [
            name
            for name, one in tensors.items()
            if one.is_floating_point() and not torch.isfinite(one).all()
        ]
        if bad and dtype == torch.float16 and not _has_nan(tensors, bad):
            yield Finding(
                f"{part}: {_shown(bad)} can't be held in fp16: values become infinite",
                "use precision bf16 or fp32; or its weights are damaged",
            )
        elif bad:
            yield Finding(
                f"{part}: {_shown(bad)} hold NaN or infinite values"
                if len(bad) > 1
                else f"{part}: {bad[0]} holds NaN or infinite values",
                "use another copy or version of the model; this one draws black pictures",
            )


def _has_nan(tensors: dict[str, Any], names: Collection[str]) -> bool:
    return any(bool(torch.isnan(tensors[name]).any()) for name in names)


def _told(where: str, told: dict[str, Any]) -> Iterator[Finding]:
    """What the library says about the names and shapes of what it has loaded."""
    if missing := sorted(map(str, told["missing_keys"])):
        unused = sorted(map(str, told["unexpected_keys"]))
        instead = f" (it holds {_shown(unused)}, which have no place)" if unused else ""
        yield Finding(
            f"{where} doesn't match the names that the network expects: it lacks "
            f"{_shown(missing)}{instead}",
            "use weights and config of the same model, saved by a recent version of the library",
        )
    if wrong := sorted(_name_of(one) for one in told["mismatched_keys"]):
        yield Finding(
            f"{where} doesn't fit its config: {_shown(wrong)} has another shape",
            "use weights and config of the same model",
        )


def _name_of(entry: Any) -> str:
    return str(entry[0]) if isinstance(entry, tuple) else str(entry)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
