"""The parts of a diffusers pipeline that training and drawing need, family by family."""

from typing import Literal, NamedTuple

SCHEDULER_CONFIG = "scheduler_config.json"

PartKind = Literal["scheduler", "tokenizer", "clip", "autoencoder", "unet"]


class Part(NamedTuple):
    """A part of a pipeline: a folder below it."""

    name: str
    kind: PartKind
    classes: frozenset[str]
    """Of diffusers or transformers; none stand for any."""
    config: str = ""
    weights: str = ""
    """Stem of its weights' file name, '' for a part without any."""
    text_encoder: str = ""
    """Of a tokenizer: the part that reads its tokens."""


_SCHEDULER = Part("scheduler", "scheduler", frozenset(), SCHEDULER_CONFIG)
_VAE = Part(
    "vae", "autoencoder", frozenset({"AutoencoderKL"}), "config.json", "diffusion_pytorch_model"
)
_UNET = Part(
    "unet", "unet", frozenset({"UNet2DConditionModel"}), "config.json", "diffusion_pytorch_model"
)


def _tokenizer(name: str, text_encoder: str) -> Part:
    classes = frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})
    return Part(name, "tokenizer", classes, text_encoder=text_encoder)


def _clip(name: str, kind: str) -> Part:
    return Part(name, "clip", frozenset({kind}), "config.json", "model")


STABLE_DIFFUSION_PARTS = (
    _SCHEDULER,
    _tokenizer("tokenizer", "text_encoder"),
    _clip("text_encoder", "CLIPTextModel"),
    _VAE,
    _UNET,
)
STABLE_DIFFUSION_XL_PARTS = (
    _SCHEDULER,
    _tokenizer("tokenizer", "text_encoder"),
    _tokenizer("tokenizer_2", "text_encoder_2"),
    _clip("text_encoder", "CLIPTextModel"),
    _clip("text_encoder_2", "CLIPTextModelWithProjection"),
    _VAE,
    _UNET,
)
