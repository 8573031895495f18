"""A diffusers pipeline by its files: which ones are needed, and what is wrong with them.

Everything that loading would stumble over is looked for in the configs and in the headers of the
weights, the small files first. The layout is that of diffusers and transformers, as
``save_pretrained`` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loradash.engines.diffusers.base_models.families import Family
from loradash.engines.diffusers.base_models.findings import COMPLETE, Finding, Findings
from loradash.engines.diffusers.base_models.model_files import ModelFiles, read_json
from loradash.engines.diffusers.base_models.network_parts import missing_parts
from loradash.engines.diffusers.base_models.noise_schedule import schedule_findings
from loradash.engines.diffusers.base_models.parts import Part, PartKind
from loradash.engines.diffusers.base_models.weights import NotWeights, Tensor, read_header
from loradash.engines.diffusers.base_models.weights_choice import Weights, weights_of

INDEX = "model_index.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
INPUT_CHANNELS = {
    9: "an inpainting model (its UNet takes 9 channels: an image and its mask too)",
    8: "a model that edits images, such as InstructPix2Pix (its UNet takes 8 channels)",
    7: "an upscaler (its UNet takes 7 channels)",
    5: "a depth-to-image model (its UNet takes 5 channels)",
}


@dataclass
class Layout:
    """What is known of a pipeline."""

    family: Family
    findings: list[Finding] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    """The files that are read, as far as they are there."""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of parts whose config can be read."""
    weights: dict[str, Weights] = field(default_factory=dict)
    layers: dict[str, frozenset[str]] = field(default_factory=dict)
    """Of parts whose weights were looked at: the names of the layers that have a matrix."""

    @property
    def native_size(self) -> int | None:
        """Side in pixels of the images that the model was trained on; None if that isn't said."""
        return native_size(self.configs.get("unet", {}), self.configs.get("vae", {}))

    def find(self, text: str, remedy: str = COMPLETE) -> None:
        """Note something that is wrong."""
        self.findings.append(Finding(text, remedy))


def read_layout(
    files: ModelFiles,
    index: Mapping[str, Any],
    family: Family,
    with_weights: frozenset[str] | None = None,
) -> Layout:
    """Judge the parts that a pipeline's index names; of the weights, those of some parts or all.

    Raises `OSError` if files can't be read.
    """
    layout = Layout(family, needed=[INDEX])
    names = files.names()
    parts = [part for part in family.parts if _is_named(part, index, layout)]
    for part in parts:
        _read_config(part, files, names, layout)
    _check_configs(layout)
    for part in parts:
        is_wanted = with_weights is None or part.name in with_weights
        if part.kind == "tokenizer":
            _read_tokenizer(part, files, names, layout)
        elif part.weights and part.name in layout.configs and is_wanted:
            _read_weights(part, files, names, layout)
    return layout


def native_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int | None:
    """Return the side in pixels that these configs tell: latents' side times the VAE's factor."""
    sample_size, channels = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(sample_size, list) and sample_size:
        sample_size = sample_size[0]
    if not isinstance(sample_size, int) or not isinstance(channels, list) or not channels:
        return None
    size = sample_size * 2 ** (len(channels) - 1)
    return size if 8 <= size <= 8192 else None


def _is_named(part: Part, index: Mapping[str, Any], layout: Layout) -> bool:
    entry = index.get(part.name)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if not isinstance(kind, str):
        layout.find(f"{INDEX} names no {part.name}")
        return False
    if part.classes and kind not in part.classes:
        layout.find(
            f"{part.name} is a {kind}, not a {min(part.classes)}",
            layout.family.ordinary,
        )
        return False
    if part.kind == "scheduler" and kind.startswith("FlowMatch"):
        layout.find(f"{part.name} is a {kind}, which is for flow models", layout.family.ordinary)
        return False
    return True


def _read_config(part: Part, files: ModelFiles, names: frozenset[str], layout: Layout) -> None:
    if not part.config:
        return
    name = f"{part.name}/{part.config}"
    if name not in names:
        layout.find(f"{name} is missing")
        return
    try:
        layout.configs[part.name] = config = read_json(files, name)
    except ValueError as error:
        layout.find(f"{name} {error}")
        return
    layout.needed.append(name)
    kind = config.get("_class_name")
    if part.classes and isinstance(kind, str) and kind not in part.classes:
        layout.find(f"{name} is of a {kind}, not of a {min(part.classes)}", layout.family.ordinary)
    if config.get("quantization_config"):
        layout.find(
            f"{name}: the {part.name} is quantised", "use the model's version that isn't quantised"
        )


def _check_configs(layout: Layout) -> None:
    """Whether the parts fit together, as their configs describe them."""
    unet, vae = layout.configs.get("unet", {}), layout.configs.get("vae", {})
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if isinstance(channels, int) and isinstance(latents, int) and channels != latents:
        what = INPUT_CHANNELS.get(channels)
        layout.find(
            f"unet/config.json: this is {what}" if what
            else f"unet/config.json: the UNet takes {channels} channels, the VAE's latents have "
            f"{latents}",
            layout.family.ordinary,
        )  # fmt: skip
    _check_text_width(unet, layout)
    layout.findings += schedule_findings(
        layout.configs.get("scheduler", {}), layout.family.ordinary
    )


def _check_text_width(unet: Mapping[str, Any], layout: Layout) -> None:
    """Whether the UNet reads as much of a caption as the text encoders give."""
    encoders = [part.name for part in layout.family.parts if part.kind == "clip"]
    configs = [layout.configs.get(name, {}) for name in encoders]
    facts = [("text of width", unet.get("cross_attention_dim"),
              [config.get("hidden_size") for config in configs])]  # fmt: skip
    if len(encoders) > 1:  # the pooled text comes beside six numbers about the image's size
        step = unet.get("addition_time_embed_dim")
        sizes = 6 * step if isinstance(step, int) else None
        facts.append(("sizes and pooled text of width",
                      unet.get("projection_class_embeddings_input_dim"),
                      [sizes, configs[-1].get("projection_dim")]))  # fmt: skip
    for what, read, given in facts:
        widths = [width for width in given if isinstance(width, int)]
        if isinstance(read, int) and len(widths) == len(given) and read != sum(widths):
            layout.find(
                f"unet/config.json: the UNet reads {what} {read}, the text "
                f"{'encoder gives' if len(encoders) == 1 else 'encoders give'} {sum(widths)}",
                f"use unet and {' and '.join(encoders)} of the same model",
            )


def _read_tokenizer(part: Part, files: ModelFiles, names: frozenset[str], layout: Layout) -> None:
    folder = part.name
    there = [f"{folder}/{name}" for name in _TOKENIZER_FILES if f"{folder}/{name}" in names]
    layout.needed += there
    vocabulary = f"{folder}/tokenizer.json"
    if vocabulary not in there:
        vocabulary = f"{folder}/vocab.json"
        if missing := [
            name for name in (vocabulary, f"{folder}/merges.txt") if name not in there
        ]:  # fmt: skip
            layout.find(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
            return
    for name in there:
        try:
            content = read_json(files, name) if name.endswith(".json") else {}
        except ValueError as error:
            layout.find(f"{name} {error}")
            continue
        if name == vocabulary:
            _check_vocabulary(part, name, content, layout)
    if f"{folder}/merges.txt" in there and not files.size(f"{folder}/merges.txt"):
        layout.find(f"{folder}/merges.txt is empty")


def _check_vocabulary(part: Part, name: str, content: dict[str, Any], layout: Layout) -> None:
    tokens: Any = content
    if name.endswith("tokenizer.json"):  # the vocabulary is a part of it
        model = content.get("model")
        tokens = model.get("vocab") if isinstance(model, dict) else None
    numbers = [number for number in tokens.values() if isinstance(number, int)] if isinstance(
        tokens, dict
    ) else []  # fmt: skip
    if not numbers:
        layout.find(f"{name} holds no vocabulary")
        return
    encoder = part.text_encoder
    size = layout.configs.get(encoder, {}).get("vocab_size")
    if isinstance(size, int) and max(numbers) >= size:
        layout.find(
            f"{name} has tokens up to {max(numbers)}, the {encoder.replace('_', ' ')} knows {size}",
            f"use {part.name} and {encoder} of the same model",
        )


def _read_weights(part: Part, files: ModelFiles, names: frozenset[str], layout: Layout) -> None:
    try:
        found = weights_of(part.name, part.weights, files, names)
    except Findings as error:
        layout.findings += error.findings
        return
    layout.weights[part.name] = found
    layout.needed += [*([found.index_file] if found.index_file else []), *found.files]
    tensors: dict[str, Tensor] = {}
    is_whole = True
    for name in found.files:
        try:
            tensors |= read_header(files, name)
        except NotWeights as error:
            layout.find(f"{name} {error.reason}", error.remedy)
            is_whole = False
    if not is_whole:
        return
    if quantised := [key for key, one in tensors.items() if _is_quantised(key, one)]:
        layout.find(
            f"{found.files[0]}: {quantised[0]} is quantised ({tensors[quantised[0]].dtype})",
            "use the model's version that isn't quantised",
        )
        return
    layout.layers[part.name] = frozenset(
        key.removesuffix(".weight")
        for key, one in tensors.items()
        if key.endswith(".weight") and len(one.shape) > 1
    )
    where = found.files[0] if len(found.files) == 1 else found.index_file
    if missing := missing_parts(part.kind, layout.configs[part.name], tensors):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        layout.find(
            f"{where} lacks what {part.name}/config.json describes: {', '.join(missing[:3])}{more}",
            "use weights and config of the same model, and download both completely",
        )
    _check_shapes(part, where, tensors, layout)


def _is_quantised(key: str, tensor: Tensor) -> bool:
    return key.endswith(".weight") and tensor.dtype in ("U8", "I8")


_SHAPES: Mapping[PartKind, tuple[tuple[str, int, str], ...]] = {
    "unet": (("conv_in.weight", 1, "in_channels"),),
    "autoencoder": (("decoder.conv_in.weight", 1, "latent_channels"),),
    "clip": (
        ("embeddings.token_embedding.weight", 0, "vocab_size"),
        ("embeddings.token_embedding.weight", 1, "hidden_size"),
        ("embeddings.position_embedding.weight", 0, "max_position_embeddings"),
    ),
}


def _check_shapes(part: Part, where: str, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    config = layout.configs[part.name]
    for ending, axis, key in _SHAPES[part.kind]:
        shape = next(
            (
                one.shape
                for name, one in tensors.items()
                if name in (ending, f"text_model.{ending}")
            ),
            None,
        )
        expected = config.get(key)
        if not isinstance(expected, int) or shape is None or len(shape) <= axis:
            continue
        if shape[axis] != expected:
            what = INPUT_CHANNELS.get(shape[axis]) if key == "in_channels" else None
            layout.find(
                f"{where}: {ending} has shape {list(shape)}, {part.name}/config.json says {key} "
                f"{expected}" + (f"; the weights are of {what}" if what else ""),
                "use weights and config of the same model",
            )
