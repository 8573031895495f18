"""What a file of tensors is if it isn't an adapter that can be used, told by its names alone."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_OTHER_PROGRAM = "Use it in a program that supports it, or train a LoRA instead."
_AS_BASE_MODEL = "Give it as the base model; an adapter is what was trained on top of one."
_OTHER_BASE = "Use an adapter that was trained on Stable Diffusion 1.x, 2.x or XL."


class Kind(NamedTuple):
    """What a file is, as the end of "this is ...", and what to do."""

    what: str
    remedy: str


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    kind: Kind


def _rule(pattern: str, what: str, remedy: str) -> _Rule:
    return _Rule(re.compile(pattern), Kind(what, remedy))


# What has the names of an adapter's layers and can't be used as one: most of these are adapters
# that don't add to weights but multiply, rotate or replace them.
_OTHER_ADAPTERS = (
    _rule(
        r"^(parameter|optimizer|average)/",
        "the state of a training, from which it goes on",
        "The adapter of a checkpoint is adapter.safetensors, in the same folder.",
    ),
    _rule(
        r"\.on_input$|(^|\.)ia3_l(\.|$)",
        "an (IA)3 adapter, which scales activations instead of adding to weights",
        _OTHER_PROGRAM,
    ),
    _rule(
        r"\.(oft_blocks|oft_diag|oft_r|oft_R|oft_s|boft_R|boft_s)(\.|$)",
        "an OFT or BOFT adapter, which rotates weights instead of adding to them",
        _OTHER_PROGRAM,
    ),
    _rule(
        r"(^|[._])glora_|\.(a1|b1)\.weight$",
        "a GLoRA adapter, which also rescales the base model's weights",
        _OTHER_PROGRAM,
    ),
    _rule(r"\.vera_lambda", "a VeRA adapter, whose matrices aren't in the file", _OTHER_PROGRAM),
    _rule(
        r"_custom_diffusion\.",
        "an adapter of Custom Diffusion, which replaces weights of the attention",
        _OTHER_PROGRAM,
    ),
    _rule(r"^lllite_", "a ControlNet-LLLite", _OTHER_PROGRAM),
    _rule(
        r"\.(scale_weight|weight_scale|scale_input|scale_b)$",
        "an adapter whose weights are quantised, with separate scales",
        "Use the file in fp16, bf16 or fp32.",
    ),
)

# Adapters for base models that this engine doesn't draw with, by the names of their layers.
_ARCHITECTURES = (
    _rule(r"^lora_prior_unet_", "an adapter for Stable Cascade", _OTHER_BASE),
    _rule(
        r"double_blocks|single_blocks|single_transformer_blocks",
        "an adapter for FLUX or a relative of it",
        _OTHER_BASE,
    ),
    _rule(r"joint_blocks", "an adapter for Stable Diffusion 3", _OTHER_BASE),
    _rule(r"[._](img_mlp|txt_mlp|img_mod|txt_mod)[._]", "an adapter for Qwen-Image", _OTHER_BASE),
    _rule(
        r"(^|[._])blocks[._]\d+[._](cross_attn|self_attn)[._]", "an adapter for Wan", _OTHER_BASE
    ),
    _rule(
        r"motion_modules[._]",
        "a motion adapter of AnimateDiff",
        _OTHER_PROGRAM,
    ),
    _rule(
        r"^(lora_)?transformer[._]|^diffusion_model\.(layers|blocks|transformer_blocks)\."
        r"|(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN)",
        "an adapter for a transformer such as Stable Diffusion 3, FLUX or Z-Image",
        _OTHER_BASE,
    ),
    _rule(
        r"(^|\.)model\.layers\.\d+\.(self_attn|mlp)\.",
        "an adapter for a language model",
        _OTHER_BASE,
    ),
)

# Files that are no adapter at all.
_OTHER_FILES = (
    _rule(
        r"^(control_model\.|controlnet_|input_hint_block\.)",
        "a ControlNet",
        _OTHER_PROGRAM,
    ),
    _rule(r"^(image_proj|ip_adapter)\.", "an IP-Adapter", _OTHER_PROGRAM),
    _rule(
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
        "a whole checkpoint, that is a base model",
        _AS_BASE_MODEL,
    ),
    _rule(
        r"^(unet\.)?(down_blocks|mid_block|up_blocks|conv_in|time_embedding)\.",
        "the UNet of a base model",
        "Give the whole base model as base model; an adapter is what was trained on top of one.",
    ),
    _rule(
        r"^(quant_conv|post_quant_conv|encoder\.(conv_in|down|mid)|decoder\.)",
        "the autoencoder (VAE) of a base model",
        "Give the whole base model as base model; an adapter is what was trained on top of one.",
    ),
    _rule(
        r"^(text_model|text_encoder\.text_model|embeddings|shared|encoder\.(layers|block))\.",
        "the text encoder of a base model",
        "Give the whole base model as base model; an adapter is what was trained on top of one.",
    ),
    _rule(
        r"^(latents|parameters)(_|$)", "a file of cached latents", "Give the adapter's own file."
    ),
)
_EMBEDDING = re.compile(r"^(emb_params|clip_[lg]|string_to_param.*|t5xxl|<.+>|\*)$")
_EMBEDDING_KIND = Kind(
    "a textual inversion embedding, which adds a word and no layers",
    "Embeddings can't be used yet: use a LoRA, or a program that reads embeddings.",
)


def unusable_adapter(names: Iterable[str]) -> Kind | None:
    """Return the kind of an adapter that can't be used here, by any of its tensors' names."""
    return _first((*_OTHER_ADAPTERS, *_ARCHITECTURES), names)


_XL = re.compile(
    r"^lora_te2_|(^|\.)text_encoder_2\.|add_embedding|label_emb"
    r"|(attentions|put_blocks_\d+|put_blocks\.\d+|middle_block)[._]\d+[._]transformer_blocks"
    r"[._][2-9]"
)


def made_for(names: Iterable[str]) -> str:
    """Return the base models that an adapter was made for, as far as its names tell; or ''."""
    return "Stable Diffusion XL" if any(_XL.search(name) for name in names) else ""


def other_file(shapes: dict[str, tuple[int, ...]]) -> Kind | None:
    """Return the kind of a file without a layer of an adapter; None if it isn't known."""
    names = list(shapes)
    if any(_EMBEDDING.match(name) for name in names) or _looks_like_embedding(shapes):
        return _EMBEDDING_KIND
    return _first(_OTHER_FILES, names)


def _first(rules: tuple[_Rule, ...], names: Iterable[str]) -> Kind | None:
    names = list(names)
    for rule in rules:
        if any(rule.pattern.search(name) for name in names):
            return rule.kind
    return None


def _looks_like_embedding(shapes: dict[str, tuple[int, ...]]) -> bool:
    """A few vectors of one length that have the names of words."""
    return 0 < len(shapes) <= 4 and all(
        1 <= len(shape) <= 2 and shape[-1] >= 64 and (len(shape) == 1 or shape[0] <= 75)
        for shape in shapes.values()
    ) and not any(re.search(r"[._](weight|bias|alpha)$", name) for name in shapes)  # fmt: skip
