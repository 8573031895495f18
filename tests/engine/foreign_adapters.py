"""Adapter files as other programs write them, with the change of each layer that they mean.

Made anew from the description of each format, without any of our own reading or writing code, so
that both can be tested against it. `make` returns tensors, metadata, and the exact change of every
weight by the layer's name in the pipeline (``unet.mid_block...``), in float64.

Formats: kohya's sd-scripts (``lora_down``, ``lora_up``, ``alpha``), LyCORIS (LoCon, LoHa, LoKr,
DoRA), diffusers before and since peft, and peft itself.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.linalg import vector_norm

_LINEARS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
RANK = 4
ALPHA = 2.0


@dataclass
class ForeignAdapter:
    """An adapter of another program."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    """What is added to each layer's weight; empty if it can't be said (an embedding)."""
    metadata: dict[str, str] | None = None
    beside: dict[str, str] = field(default_factory=dict)
    """Other files of the same folder, by name."""

    def write(self, path: Path) -> Path:
        """Write it as a safetensors file, with its companions in the same folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, metadata=self.metadata)
        for name, text in self.beside.items():
            (path.parent / name).write_text(text, encoding="utf-8")
        return path


@dataclass
class _Layer:
    """A layer of the base model under the names of every program."""

    module: str
    """``unet`` or ``text_encoder``."""
    path: str
    weight: Tensor

    @property
    def full(self) -> str:
        return f"{self.module}.{self.path}"

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def published(self) -> str:
        """Its path with the level that transformers 5 has dropped and all files have."""
        if self.module == "text_encoder":
            return f"text_model.{self.path.removeprefix('text_model.')}"
        return self.path

    @property
    def kohya(self) -> str:
        prefix = "lora_te" if self.module == "text_encoder" else "lora_unet"
        return f"{prefix}_{self.published.replace('.', '_')}"

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=_generator(f"{self.full}{shape}")) * 0.2


def make(kind: str, pipeline: Any) -> ForeignAdapter:
    """Make an adapter of a kind in `KINDS` that fits the pipeline."""
    return KINDS[kind](pipeline)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(ord(c) * (n + 1) for n, c in enumerate(name)))


def _layers(pipeline: Any, *endings: str, module: str = "unet") -> Iterator[_Layer]:
    for path, layer in getattr(pipeline, module).named_modules():
        if any(path.endswith(f".{ending}") for ending in endings):
            yield _Layer(module, path, layer.weight.detach())


def _kohya_layer(
    made: ForeignAdapter, layer: _Layer, rank: int = RANK, alpha: float | None = ALPHA,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """kohya's two factors and alpha: the change is up @ down * alpha / rank."""
    ones = (1,) * len(layer.kernel)
    down = layer.draw(rank, layer.inputs, *layer.kernel).to(dtype)
    up = layer.draw(layer.outputs, rank, *ones).to(dtype)
    made.tensors[f"{layer.kohya}.lora_down.weight"] = down
    made.tensors[f"{layer.kohya}.lora_up.weight"] = up
    if alpha is not None:
        made.tensors[f"{layer.kohya}.alpha"] = torch.tensor(alpha).to(dtype)
    made.deltas[layer.full] = _product(up, down, layer) * ((alpha or rank) / rank)


def _product(up: Tensor, down: Tensor, layer: _Layer) -> Tensor:
    product = up.double().flatten(1) @ down.double().flatten(1)
    return product.reshape(layer.weight.shape)


def kohya_lora(pipeline: Any, **options: Any) -> ForeignAdapter:
    """sd-scripts' networks.lora: linear layers of the UNet and of the text encoder."""
    made = ForeignAdapter(metadata={"ss_network_module": "networks.lora", "ss_network_dim": "4",
                                    "ss_network_alpha": "2.0"})  # fmt: skip
    for layer in _everywhere(pipeline):
        _kohya_layer(made, layer, **options)
    return made


def _everywhere(pipeline: Any) -> Iterator[_Layer]:
    yield from _layers(pipeline, *_LINEARS)
    yield from _layers(pipeline, *_TEXT, module="text_encoder")


def _no_metadata(pipeline: Any) -> ForeignAdapter:
    made = kohya_lora(pipeline)
    made.metadata = None
    return made


def _text_encoder_only(pipeline: Any) -> ForeignAdapter:
    made = ForeignAdapter()
    for layer in _layers(pipeline, *_TEXT, module="text_encoder"):
        _kohya_layer(made, layer)
    return made


def _locon(pipeline: Any) -> ForeignAdapter:
    made = kohya_lora(pipeline)
    for layer in _layers(pipeline, *_CONVOLUTIONS):
        _kohya_layer(made, layer, rank=2, alpha=1.0)
    return made


def _locon_tucker(pipeline: Any) -> ForeignAdapter:
    """LoCon with a core: 1x1 down, the kernel in ``lora_mid``, 1x1 up."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, "conv1", "conv2"):
        down = layer.draw(RANK, layer.inputs, 1, 1)
        mid = layer.draw(RANK, RANK, *layer.kernel)
        up = layer.draw(layer.outputs, RANK, 1, 1)
        made.tensors |= {
            f"{layer.kohya}.lora_down.weight": down, f"{layer.kohya}.lora_mid.weight": mid,
            f"{layer.kohya}.lora_up.weight": up, f"{layer.kohya}.alpha": torch.tensor(ALPHA),
        }  # fmt: skip
        made.deltas[layer.full] = torch.einsum(
            "or,rshw,si->oihw", up[..., 0, 0].double(), mid.double(), down[..., 0, 0].double()
        ) * (ALPHA / RANK)
    return made


def _resized(pipeline: Any) -> ForeignAdapter:
    """sd-scripts' resize_lora.py with a dynamic rank: rank and alpha differ from layer to layer."""
    made = ForeignAdapter(metadata=dict.fromkeys(("ss_network_dim", "ss_network_alpha"), "Dynamic"))
    for n, layer in enumerate(_everywhere(pipeline)):
        rank = 1 + n % 4
        _kohya_layer(made, layer, rank=rank, alpha=rank * (0.5 if n % 3 else 0.25))
    return made


def _loha(pipeline: Any) -> ForeignAdapter:
    """Product by elements of two low-rank matrices."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, *_LINEARS, *_CONVOLUTIONS):
        columns = layer.weight[0].numel()
        parts = [
            layer.draw(layer.outputs, RANK), layer.draw(RANK, columns),
            layer.draw(layer.outputs, RANK) + 0.1, layer.draw(RANK, columns) - 0.1,
        ]  # fmt: skip
        for name, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), parts, strict=True):
            made.tensors[f"{layer.kohya}.hada_{name}"] = part
        made.tensors[f"{layer.kohya}.alpha"] = torch.tensor(ALPHA)
        first, second, third, fourth = (part.double() for part in parts)
        delta = (first @ second) * (third @ fourth) * (ALPHA / RANK)
        made.deltas[layer.full] = delta.reshape(layer.weight.shape)
    return made


def _loha_tucker(pipeline: Any) -> ForeignAdapter:
    """LoHa of convolutions with cores ``hada_t1`` and ``hada_t2``."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, "conv1", "conv2"):
        rebuilt = []
        for n in (1, 2):
            core = layer.draw(RANK, RANK, *layer.kernel) + 0.05 * n
            first = layer.draw(RANK, layer.outputs) - 0.05 * n
            second = layer.draw(RANK, layer.inputs) + 0.02 * n
            made.tensors |= {
                f"{layer.kohya}.hada_t{n}": core, f"{layer.kohya}.hada_w{n}_a": first,
                f"{layer.kohya}.hada_w{n}_b": second,
            }  # fmt: skip
            rebuilt.append(
                torch.einsum("pqhw,po,qi->oihw", core.double(), first.double(), second.double())
            )
        made.tensors[f"{layer.kohya}.alpha"] = torch.tensor(ALPHA)
        made.deltas[layer.full] = rebuilt[0] * rebuilt[1] * (ALPHA / RANK)
    return made


def _lokr(pipeline: Any, *, full: bool = False) -> ForeignAdapter:
    """Kronecker product of a small matrix and a low-rank one; alpha is unused if both are whole."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, *_LINEARS, *_CONVOLUTIONS):
        small = layer.draw(2, 2)
        rows, columns = layer.outputs // 2, layer.inputs // 2
        kernel = layer.kernel
        name = f"{layer.kohya}.lokr"
        if full:
            large = layer.draw(rows, columns, *kernel)
            made.tensors[f"{name}_w2"] = large
            second, scale = large.double(), 1.0
        else:
            left = layer.draw(rows, RANK)
            right = layer.draw(RANK, columns * max(1, torch.Size(kernel).numel()))
            made.tensors |= {f"{name}_w2_a": left, f"{name}_w2_b": right}
            second = (left.double() @ right.double()).reshape(rows, columns, *kernel)
            scale = ALPHA / RANK
        made.tensors |= {f"{name}_w1": small, f"{layer.kohya}.alpha": torch.tensor(ALPHA)}
        first = small.double().reshape(2, 2, *(1 for _ in kernel))
        made.deltas[layer.full] = torch.kron(first, second).reshape(layer.weight.shape) * scale
    return made


def _dora(pipeline: Any, *, over_outputs: bool = False) -> ForeignAdapter:
    """LyCORIS' DoRA: the sum of weight and change gets the norms ``dora_scale``.

    Its norms are taken over the outputs, one an input; with ``wd_on_out`` one an output, as in the
    paper and in peft.
    """
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, *_LINEARS):
        _kohya_layer(made, layer)
        weight = layer.weight.double()
        merged = weight + made.deltas[layer.full]
        dims = tuple(dim for dim in range(weight.dim()) if dim != (0 if over_outputs else 1))
        scale = (vector_norm(weight, dim=dims, keepdim=True) * 1.1).float()
        made.tensors[f"{layer.kohya}.dora_scale"] = scale
        new = merged * (scale.double() / vector_norm(merged, dim=dims, keepdim=True))
        made.deltas[layer.full] = new - weight
    return made


def _diffusers_dora(pipeline: Any) -> ForeignAdapter:
    """peft's DoRA under diffusers' names: one magnitude an output."""
    made = ForeignAdapter()
    for layer in _layers(pipeline, "to_q", "to_k", "to_v", "to_out.0"):
        down, up = layer.draw(RANK, layer.inputs), layer.draw(layer.outputs, RANK)
        weight = layer.weight.double()
        merged = weight + _product(up, down, layer)
        magnitude = (vector_norm(weight, dim=1) * 0.9).float()
        made.tensors |= {
            f"{layer.full}.lora_A.weight": down, f"{layer.full}.lora_B.weight": up,
            f"{layer.full}.lora_magnitude_vector": magnitude,
        }  # fmt: skip
        norms = vector_norm(merged, dim=1, keepdim=True)
        made.deltas[layer.full] = merged * (magnitude.double()[:, None] / norms) - weight
    return made


def _pair(
    made: ForeignAdapter, layer: _Layer, down: str, up: str, scale: float = 1.0
) -> None:  # fmt: skip
    """Two factors under the given names, without any alpha beside them."""
    first = layer.draw(RANK, layer.inputs, *layer.kernel)
    second = layer.draw(layer.outputs, RANK, *(1 for _ in layer.kernel))
    made.tensors |= {down: first, up: second}
    made.deltas[layer.full] = _product(second, first, layer) * scale


def _diffusers_new(pipeline: Any, alpha: float | None = None) -> ForeignAdapter:
    """diffusers since peft: no alpha, but in the metadata since 0.34 if it isn't the rank."""
    made = ForeignAdapter()
    for layer in _everywhere(pipeline):
        name = f"{layer.module}.{layer.published}"
        scale = (alpha or RANK) / RANK
        _pair(made, layer, f"{name}.lora_A.weight", f"{name}.lora_B.weight", scale)
    if alpha is not None:
        config = {}
        for module, endings in (("unet", _LINEARS), ("text_encoder", _TEXT)):
            config[f"{module}.r"] = RANK
            config[f"{module}.lora_alpha"] = alpha
            config[f"{module}.target_modules"] = list(endings)
        made.metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    return made


def _diffusers_down_up(pipeline: Any) -> ForeignAdapter:
    """diffusers' own names for what peft has trained, as its scripts saved them."""
    made = ForeignAdapter()
    for layer in _everywhere(pipeline):
        lora = "lora_linear_layer" if layer.module == "text_encoder" else "lora"
        name = f"{layer.module}.{layer.published}.{lora}"
        _pair(made, layer, f"{name}.down.weight", f"{name}.up.weight")
    return made


def _diffusers_old(pipeline: Any, *, prefix: str = "unet.") -> ForeignAdapter:
    """diffusers before peft: LoRA of the attention processors, at first without ``unet.``."""
    made = ForeignAdapter()
    for layer in _layers(pipeline, "to_q", "to_k", "to_v", "to_out.0"):
        attention, _, name = layer.path.removesuffix(".0").rpartition(".")
        start = f"{prefix}{attention}.processor.{name}_lora"
        _pair(made, layer, f"{start}.down.weight", f"{start}.up.weight")
    if prefix:
        for layer in _layers(pipeline, *_TEXT, module="text_encoder"):
            start = f"text_encoder.{layer.published}.lora_linear_layer"
            _pair(made, layer, f"{start}.down.weight", f"{start}.up.weight")
    return made


def _peft(pipeline: Any) -> ForeignAdapter:
    """peft's own folder of a UNet: ``adapter_model.safetensors`` and ``adapter_config.json``."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [*_LINEARS]}
    made = ForeignAdapter(metadata={"format": "pt"})
    made.beside = {"adapter_config.json": json.dumps(config)}
    for layer in _layers(pipeline, *_LINEARS):
        name = f"base_model.model.{layer.path}"
        _pair(made, layer, f"{name}.lora_A.weight", f"{name}.lora_B.weight", ALPHA / RANK)
    return made


def _full(pipeline: Any) -> ForeignAdapter:
    """LyCORIS' full: the change itself, as large as the weight."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, "to_q", "conv1"):
        delta = layer.draw(*layer.weight.shape)
        made.tensors[f"{layer.kohya}.diff"] = delta
        made.deltas[layer.full] = delta.double()
    return made


def _lycoris_names(pipeline: Any) -> ForeignAdapter:
    """SimpleTuner's: LyCORIS under ``lycoris_`` and the layer's name, without a part's name."""
    made = ForeignAdapter()
    for layer in _layers(pipeline, *_LINEARS):
        _kohya_layer(made, layer)
    made.tensors = {
        key.replace("lora_unet_", "lycoris_"): value for key, value in made.tensors.items()
    }
    return made


def _scaling(pipeline: Any) -> ForeignAdapter:
    """LyCORIS' (IA)3, which scales outputs and adds nothing."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, "to_k", "to_v"):
        made.tensors[f"{layer.kohya}.weight"] = layer.draw(layer.outputs, 1)
        made.tensors[f"{layer.kohya}.on_input"] = torch.tensor(False)
    return made


def _rotating(pipeline: Any) -> ForeignAdapter:
    """LyCORIS' OFT, which rotates weights."""
    made = ForeignAdapter(metadata={"ss_network_module": "lycoris.kohya"})
    for layer in _layers(pipeline, "to_q"):
        made.tensors[f"{layer.kohya}.oft_blocks"] = layer.draw(4, layer.outputs // 4, 8)
        made.tensors[f"{layer.kohya}.alpha"] = torch.tensor(ALPHA)
    return made


def _flux(pipeline: Any) -> ForeignAdapter:
    """A LoRA of FLUX in diffusers' names."""
    made = ForeignAdapter()
    for n in range(2):
        name = f"transformer.single_transformer_blocks.{n}.attn.to_q"
        made.tensors[f"{name}.lora_A.weight"] = torch.ones(RANK, 3072)
        made.tensors[f"{name}.lora_B.weight"] = torch.ones(3072, RANK)
    return made


def _whole_model(pipeline: Any) -> ForeignAdapter:
    """A UNet, given for an adapter by mistake."""
    tensors = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    return ForeignAdapter(tensors=tensors)


def _embedding(pipeline: Any) -> ForeignAdapter:
    """A textual inversion, which is no adapter of layers."""
    width = pipeline.text_encoder.config.hidden_size
    return ForeignAdapter(tensors={"emb_params": torch.zeros(2, width)})


def _sdxl(pipeline: Any) -> ForeignAdapter:
    """A LoRA of SDXL: two text encoders and the UNet in the original block numbers."""
    names = ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
             "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
             "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q")  # fmt: skip
    made = ForeignAdapter(metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    for name in names:
        made.tensors |= {
            f"{name}.lora_down.weight": torch.ones(RANK, 640),
            f"{name}.lora_up.weight": torch.ones(640, RANK),
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return made


KINDS: dict[str, Callable[[Any], ForeignAdapter]] = {
    "kohya LoRA": kohya_lora,
    "kohya LoRA without metadata": _no_metadata,
    "kohya LoRA without alpha": lambda pipeline: kohya_lora(pipeline, alpha=None),
    "kohya LoRA, text encoder only": _text_encoder_only,
    "kohya LoRA in fp16": lambda pipeline: kohya_lora(pipeline, dtype=torch.float16),
    "kohya LoRA in bf16": lambda pipeline: kohya_lora(pipeline, dtype=torch.bfloat16),
    "kohya LoRA in fp8": lambda pipeline: kohya_lora(pipeline, dtype=torch.float8_e4m3fn),
    "kohya LoRA, resized": _resized,
    "LoCon": _locon,
    "LoCon with a core (lora_mid)": _locon_tucker,
    "LoHa": _loha,
    "LoHa with cores (hada_t1)": _loha_tucker,
    "LoKr": _lokr,
    "LoKr of whole matrices": lambda pipeline: _lokr(pipeline, full=True),
    "DoRA": _dora,
    "DoRA with norms per output": lambda pipeline: _dora(pipeline, over_outputs=True),
    "diffusers (lora_A, lora_B)": _diffusers_new,
    "diffusers with alpha in its metadata": lambda pipeline: _diffusers_new(pipeline, ALPHA),
    "diffusers (lora.down, lora.up)": _diffusers_down_up,
    "diffusers before peft": _diffusers_old,
    "diffusers before peft, UNet only": lambda pipeline: _diffusers_old(pipeline, prefix=""),
    "diffusers DoRA": _diffusers_dora,
    "peft": _peft,
    "LyCORIS full difference": _full,
    "LyCORIS under lycoris_ names": _lycoris_names,
    "textual inversion": _embedding,
    "(IA)3": _scaling,
    "OFT": _rotating,
    "LoRA of FLUX": _flux,
    "UNet of a base model": _whole_model,
    "LoRA of SDXL": _sdxl,
}
