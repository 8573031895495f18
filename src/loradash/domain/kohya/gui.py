"""The JSON of bmaltais' GUI for sd-scripts: other names for some of the same settings."""

from typing import Any

_RENAMED = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "model_list": "",
    "lr_scheduler_num_cycles": "lr_scheduler_num_cycles",
    "LoRA_type": "",
    "epoch": "",
    "lr_warmup": "",
    "conv_dim": "",
    "conv_alpha": "",
    "LyCORIS_preset": "",
}
_MODULES = {
    "Standard": ("networks.lora", False),
    "Kohya LoCon": ("networks.lora", True),
    "LyCORIS/LoCon": ("lycoris.kohya", True),
}


def is_gui(values: dict[str, Any]) -> bool:
    """Whether settings are those of the GUI."""
    return "LoRA_type" in values


def as_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same settings under sd-scripts' names."""
    result = {_RENAMED.get(key, key): value for key, value in values.items()}
    result.pop("", None)
    kind = str(values.get("LoRA_type"))
    module, has_conv = _MODULES.get(kind, (f"LoRA_type {kind}", False))
    result["network_module"] = module
    arguments = ["algo=locon"] if module == "lycoris.kohya" else []
    if has_conv and values.get("conv_dim"):
        arguments += [f"conv_dim={values['conv_dim']}"]
        arguments += [f"conv_alpha={values['conv_alpha']}"] if values.get("conv_alpha") else []
    if module == "lycoris.kohya" and values.get("LyCORIS_preset"):
        arguments.append(f"preset={values['LyCORIS_preset']}")
    result["network_args"] = arguments
    if not _number(values.get("max_train_steps")) and not _number(values.get("max_train_epochs")):
        result["max_train_epochs"] = values.get("epoch")
    if "lr_warmup" in values and not _number(values.get("lr_warmup_steps")):
        result["lr_warmup_steps"] = _number(values["lr_warmup"]) / 100
    return result


def _number(value: Any) -> float:
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return 0.0
