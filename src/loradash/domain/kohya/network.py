"""The network of sd-scripts: which modules and arguments are a LoRA as it's trained here."""

from typing import Any

from loradash.domain.kohya.keys import UNSUPPORTED
from loradash.domain.kohya.source import Source, assignments, is_on

_LORA = "networks.lora"
_LYCORIS = "lycoris.kohya"
_ARGUMENTS = {
    _LORA: frozenset({"conv_dim", "conv_alpha"}),
    _LYCORIS: frozenset({"algo", "preset", "conv_dim", "conv_alpha", "dropout"}),
}
_OTHER_MODELS = {
    "networks.lora_flux": "FLUX models",
    "networks.lora_sd3": "SD3 models",
    "networks.lora_lumina": "Lumina models",
    "networks.lora_anima": "Anima models",
    "networks.lora_hunyuan_image": "HunyuanImage models",
}


def network_of(source: Source) -> dict[str, Any]:
    """Return our ``network`` section; what isn't a LoRA becomes a problem of ``source``."""
    module = source.text("network_module")
    arguments = assignments(source.take("network_args"))
    rank = source.whole("network_dim", 4) or 4
    alpha = source.number("network_alpha", 1.0) or float(rank)
    network: dict[str, Any] = {"type": "lora", "linear": rank, "linear_alpha": alpha}
    dropout = source.number("network_dropout")
    if weights := source.take("network_weights"):
        network["pretrained_lora_path"] = weights
    if module is None or module not in _ARGUMENTS:
        source.problems.append(f"network_module: {_why_not(module)}")
        return network
    for key, value in arguments.items():
        if key not in _ARGUMENTS[module] and is_on(value):
            reason = UNSUPPORTED.get(key, "isn't an argument that is known here")
            source.problems.append(f"network_args: {key}: {reason}")
    if module == _LYCORIS:
        _check_lycoris(source, arguments)
    values = Source(dict(arguments))
    conv = values.whole("conv_dim", rank if module == _LYCORIS else None)
    if conv:
        default = alpha if module == _LYCORIS else 1.0
        network |= {"conv": conv, "conv_alpha": values.number("conv_alpha", default) or conv}
    if (own := values.number("dropout")) is not None:
        dropout = own
    if dropout:
        network["dropout"] = dropout
    source.problems += [f"network_args: {problem}" for problem in values.problems]
    return network


def _why_not(module: str | None) -> str:
    if module is None:
        return "missing, which is a fine-tuning of the whole model; only LoRAs are trained here"
    if module in _OTHER_MODELS:
        return f"{module} is for {_OTHER_MODELS[module]}, which can't be trained here yet"
    return f"{module[:80]} isn't trained here; networks.lora is"


def _check_lycoris(source: Source, arguments: dict[str, str]) -> None:
    algorithm = arguments.get("algo", "lora").lower()
    if algorithm not in ("lora", "locon"):
        source.problems.append(
            f"network_args: algo={algorithm} is another kind of network, which isn't trained here; "
            "lora and locon are"
        )
    preset = arguments.get("preset", "full").lower()
    if preset != "full":
        source.problems.append(
            f"network_args: preset={preset} chooses other layers; give them as target_modules"
        )
