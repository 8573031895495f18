"""The layers of an adapter file, whatever program wrote it: found by their names, without torch.

Programs disagree on names: kohya's ``lora_unet_mid_block_..._to_q.lora_down.weight``, diffusers'
``unet.mid_block....to_q.lora_A.weight`` and, before 0.20, ``...attn1.processor.to_q_lora.down.
weight``, peft's ``base_model.model.mid_block....lora_A.default.weight``. All come down to a part of
the base model, a layer in it, and what of the layer's change a tensor is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loradash.domain.sizes import counted
from loradash.engines.diffusers.adapters.kinds import other_file, unusable_adapter
from loradash.engines.diffusers.adapters.tensor_files import (
    NotTensors,
    StoredTensor,
    TensorFile,
    not_finite,
    read_tensor_file,
)
from loradash.errors import InvalidAdapter

PEFT_SETTINGS = "adapter_config.json"
"""The file in which peft keeps the alpha of the adapter beside it."""

Algorithm = Literal["lora", "loha", "lokr", "full"]
Component = Literal["unet", "text_encoder", "text_encoder_2", ""]

_FLOATS = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
)
_SCALARS = frozenset({"alpha"})
_MAX_EXAMPLES = 3
_AS_FLOATS = "Save the adapter again in fp16, bf16 or fp32."
_ONE_ALPHA = "Save the adapter again with one number as alpha of each layer, as float or integer."
_DAMAGED = "The file is damaged, or was changed by hand: use another copy."

_NAMED = r"(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?$"  # peft puts the adapter's name between
_PARTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (rf"\.(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down){_NAMED}", "down"),
        (rf"\.(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up){_NAMED}", "up"),
        (r"\.lora_mid\.weight$", "mid"),
        (r"\.alpha$", "alpha"),
        (rf"\.(?:dora_scale|lora_magnitude_vector){_NAMED}", "magnitude"),
        (r"\.(hada_(?:w[12]_[ab]|t[12]))$", ""),
        (r"\.(lokr_(?:w[12](?:_[ab])?|t[12]))$", ""),
        (r"\.diff$", "diff"),
    )
)
_OLD_PROCESSOR = re.compile(
    r"^(?P<layer>.+?)(?:\.processor)?\.to_(?P<which>q|k|v|out)_lora\."
    r"(?:(?P<direction>down|up)\.weight|(?P<alpha>alpha))$"
)
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_UNET_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("lora_unet_", "unet"), ("unet.", "unet"), ("diffusion_model.", "unet"),
    ("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"),
    ("text_encoder.", "text_encoder"), ("text_encoder_2.", "text_encoder_2"), ("lycoris_", ""),
)  # fmt: skip


@dataclass(frozen=True)
class AdapterLayer:
    """The change of one layer, in parts; each is a tensor of the file."""

    component: Component
    """Which part of the base model; '' where the file doesn't say."""
    name: str
    """The layer's name as the file writes it, with points or underscores, without prefixes."""
    parts: Mapping[str, str]
    """The tensor's name in the file, by the part that it is."""

    @property
    def flat_name(self) -> str:
        """The name in the one form that all programs' names can be brought to."""
        return self.name.replace(".", "_").removeprefix("text_model_")

    @property
    def algorithm(self) -> Algorithm:
        """How the parts make up the change."""
        if any(part.startswith("hada_") for part in self.parts):
            return "loha"
        if any(part.startswith("lokr_") for part in self.parts):
            return "lokr"
        return "full" if "diff" in self.parts else "lora"


@dataclass(frozen=True)
class AdapterLayout:
    """The layers of an adapter file, and the tensors that belong to none."""

    file: TensorFile
    layers: tuple[AdapterLayer, ...]
    unknown: tuple[str, ...] = ()
    scales: Mapping[str, Any] = field(default_factory=dict)
    """peft's settings, where the file or its neighbour tells them: alpha stands there."""

    def rank(self, layer: AdapterLayer) -> int | None:
        """Rank of a layer, or None if its change isn't of low rank."""
        tensors = self.file.tensors
        if layer.algorithm == "lora":
            return tensors[layer.parts["down"]].shape[0]
        for part in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if part in layer.parts:
                return tensors[layer.parts[part]].shape[0]
        return None

    def is_peft(self, layer: AdapterLayer) -> bool:
        """Whether peft itself wrote the layer, which keeps alpha in another file."""
        return any(key.startswith("base_model.model.") for key in layer.parts.values())

    def told_scale(self, layer: AdapterLayer, rank: int) -> float:
        """Strength of a layer without an alpha of its own: from peft's settings, else 1."""
        settings = _of_component(self.scales, layer.component)
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        patterns = settings.get("alpha_pattern") or {}
        try:
            for pattern, value in patterns.items():
                if _means(pattern, layer.name):
                    alpha = value
                    break
            return 1.0 if alpha is None else _scale(float(alpha), rank, settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidAdapter(
                f"adapter {self.file.path.name}: the alpha of its layers can't be told from its "
                f"settings ({str(error)[:100]})",
                remedy="Save the adapter again in kohya's format, which has an alpha a layer.",
            ) from error


def read_adapter_layout(path: Path, *, values: bool = False) -> AdapterLayout:
    """Read which layers an adapter file changes; with ``values``, also that all are finite.

    Raises `InvalidAdapter` for whatever can't be used, with what it is.
    """
    try:
        file = read_tensor_file(path)
        layout = _layout(file)
        if values and (names := not_finite(file)):
            raise InvalidAdapter(
                f"adapter {path.name}: {counted(len(names), 'tensor')} of {len(file.tensors)} "
                f"{'holds' if len(names) == 1 else 'hold'} NaN or infinity: {some_of(names)}",
                remedy="The training that made it has failed: use an earlier checkpoint of it, or "
                "train again with a lower learning rate.",
            )
    except NotTensors as error:
        raise InvalidAdapter(f"adapter {path}: {error}", remedy=error.remedy) from error
    except OSError as error:
        raise InvalidAdapter(
            f"adapter {path}: {error.strerror or error}", remedy="Check the path and its rights."
        ) from error
    return layout


def _layout(file: TensorFile) -> AdapterLayout:
    name = file.path.name
    if kind := unusable_adapter(file.tensors):
        raise InvalidAdapter(f"adapter {name}: this is {kind.what}", remedy=kind.remedy)
    found: dict[tuple[Component, str], dict[str, str]] = {}
    unknown = []
    for key in file.tensors:
        place = _place(key)
        if place is None:
            unknown.append(key)
        else:
            component, layer, part = place
            parts = found.setdefault((component, layer), {})
            if part in parts:
                raise InvalidAdapter(
                    f"adapter {name}: {parts[part]} and {key} are the same part of one layer",
                    remedy="Save the adapter again with each layer once, and one adapter a file.",
                )
            parts[part] = key
    layers = []
    for (component, layer), parts in found.items():
        if set(parts) <= {"alpha"}:
            unknown += parts.values()
        else:
            layers.append(AdapterLayer(component, layer, parts))
    if not layers:
        raise _not_an_adapter(file)
    for one in layers:
        _check_layer(file, one)
    return AdapterLayout(file, tuple(layers), tuple(unknown), _peft_settings(file))


def _place(key: str) -> tuple[Component, str, str] | None:
    """Component, layer and part of a tensor by its name; None if it isn't one of an adapter."""
    if old := _OLD_PROCESSOR.match(key):
        component, layer = _component(old["layer"])
        is_text = component.startswith("text_encoder") or layer.endswith("self_attn")
        projections = _TEXT_PROJECTIONS if is_text else _UNET_PROJECTIONS
        return component, f"{layer}.{projections[old['which']]}", old["direction"] or "alpha"
    for pattern, part in _PARTS:
        if match := pattern.search(key):
            component, layer = _component(key[: match.start()])
            return (component, layer, part or match[1]) if layer else None
    return None


def _component(layer: str) -> tuple[Component, str]:
    layer = layer.removeprefix("base_model.model.")
    for prefix, component in _PREFIXES:
        if layer.startswith(prefix):
            return component, layer.removeprefix(prefix).removeprefix("base_model.model.")
    return "", layer


def _check_layer(file: TensorFile, layer: AdapterLayer) -> None:
    """Raise `InvalidAdapter` for a layer whose parts are missing or don't belong together."""
    missing = _missing_part(layer)
    if missing:
        raise InvalidAdapter(
            f"adapter {file.path.name}: layer {layer.name} has no {missing}",
            remedy="The file isn't complete: copy or save it again.",
        )
    if foreign := sorted(set(layer.parts) - _allowed_parts(layer)):
        raise InvalidAdapter(
            f"adapter {file.path.name}: layer {layer.name} has {', '.join(foreign)} beside the "
            f"parts of {layer.algorithm}, and which of them counts isn't said",
            remedy="Save the adapter again with one kind of change for each layer.",
        )
    tensors = {part: file.tensors[key] for part, key in layer.parts.items()}
    for part, tensor in tensors.items():
        if found := _problem_of(part, tensor):
            problem, remedy = found
            raise InvalidAdapter(
                f"adapter {file.path.name}: {layer.parts[part]} {problem}", remedy=remedy
            )
    if layer.algorithm == "lora":
        _check_rank(file, layer, tensors)


def _missing_part(layer: AdapterLayer) -> str:
    parts = set(layer.parts)
    wanted: tuple[str, ...] = ()
    if layer.algorithm == "loha":
        wanted = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        if parts & {"hada_t1", "hada_t2"}:
            wanted += ("hada_t1", "hada_t2")
    elif layer.algorithm == "lokr":
        for half in ("lokr_w1", "lokr_w2"):
            wanted += () if half in parts else (f"{half}_a", f"{half}_b")
    elif layer.algorithm == "lora":
        wanted = ("down", "up")
    return next((part for part in wanted if part not in parts), "")


def _allowed_parts(layer: AdapterLayer) -> set[str]:
    """The parts that the layer's algorithm looks at; alpha may be there without any effect."""
    allowed = {"alpha", "magnitude"}
    if layer.algorithm == "loha":
        return allowed | {part for part in layer.parts if part.startswith("hada_")}
    if layer.algorithm == "full":
        return allowed | {"diff"}
    if layer.algorithm == "lora":
        return allowed | {"down", "up", "mid"}
    for half, core in (("lokr_w1", "lokr_t1"), ("lokr_w2", "lokr_t2")):
        allowed |= {half} if half in layer.parts else {f"{half}_a", f"{half}_b", core}
    return allowed


def _problem_of(part: str, tensor: StoredTensor) -> tuple[str, str] | None:
    """What is wrong with a tensor as this part of a layer, and what to do."""
    if part in _SCALARS:
        if tensor.count != 1:
            return f"isn't one number but has shape {list(tensor.shape)}", _ONE_ALPHA
        if tensor.dtype not in _FLOATS and not tensor.dtype.startswith(("I", "U")):
            return f"is of type {tensor.dtype}, which isn't a type of numbers", _ONE_ALPHA
        return None
    if tensor.dtype not in _FLOATS:
        return f"is of type {tensor.dtype}, which isn't a type of weights", _AS_FLOATS
    if not tensor.shape:
        return "is a single number", _DAMAGED
    if not tensor.count:
        return f"is empty (shape {list(tensor.shape)})", _DAMAGED
    return None


def _check_rank(file: TensorFile, layer: AdapterLayer, tensors: Mapping[str, StoredTensor]) -> None:
    down, up = tensors["down"].shape, tensors["up"].shape
    if len(down) < 2 or len(up) < 2 or down[0] != up[1]:
        raise InvalidAdapter(
            f"adapter {file.path.name}: the shapes {list(down)} and {list(up)} of layer "
            f"{layer.name} don't go together",
            remedy=_DAMAGED,
        )


def _not_an_adapter(file: TensorFile) -> InvalidAdapter:
    kind = other_file({name: tensor.shape for name, tensor in file.tensors.items()})
    if kind:
        return InvalidAdapter(f"adapter {file.path.name}: this is {kind.what}", remedy=kind.remedy)
    names = f": its tensors are called {some_of(list(file.tensors))}" if file.tensors else ""
    return InvalidAdapter(
        f"adapter {file.path.name}: holds no LoRA weights{names}",
        remedy="Use a LoRA, LoCon, LoHa, LoKr or DoRA saved as .safetensors.",
    )


def _peft_settings(file: TensorFile) -> Mapping[str, Any]:
    """peft's settings: from the metadata that diffusers writes, or from the file beside it."""
    text = file.metadata.get("lora_adapter_metadata", "")
    neighbour = file.path.with_name(PEFT_SETTINGS)
    try:
        if not text and any(key.startswith("base_model.model.") for key in file.tensors):
            text = neighbour.read_text(encoding="utf-8") if neighbour.is_file() else ""
        settings = json.loads(text) if text else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _of_component(settings: Mapping[str, Any], component: str) -> Mapping[str, Any]:
    """The settings of one part of the base model; diffusers writes ``unet.lora_alpha``."""
    prefix = f"{component}."
    own = {
        key.removeprefix(prefix): value
        for key, value in settings.items()
        if component and key.startswith(prefix)
    }
    return own or settings


def _means(pattern: str, name: str) -> bool:
    """Whether a pattern of peft's names a layer. Those that aren't names raise `ValueError`."""
    literal = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"[\w.-]+", literal):
        raise ValueError(f"alpha_pattern {pattern[:60]!r} isn't the name of a layer")
    return name == literal or name.endswith(f".{literal}")


def _scale(alpha: float, rank: int, settings: Mapping[str, Any]) -> float:
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def some_of(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    rest = len(names) - _MAX_EXAMPLES
    shown = ", ".join(name[:120] for name in names[:_MAX_EXAMPLES])
    return f"{shown} and {rest} more" if rest > 0 else shown
