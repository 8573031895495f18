"""Putting a LoRA on a module."""

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from loradash.domain.training_config import NetworkSection
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.engines.diffusers.target_layers import chosen_layers
from loradash.errors import InvalidConfig

ADAPTER_NAME = "default"


def add_lora(adapted: AdaptedModule, network: NetworkSection) -> list[torch.nn.Parameter]:
    """Add a fresh LoRA to a module and return its parameters, in float32, in a fixed order.

    Raises `InvalidConfig` if no layer matches the target modules.
    """
    targets = _target_names(adapted, network)
    convolutions = {
        name
        for name in targets
        if isinstance(layer := adapted.module.get_submodule(name), torch.nn.Conv2d)
        and layer.kernel_size != (1, 1)
    }
    conv_rank = network.conv or network.rank
    conv_alpha = network.conv_alpha or float(conv_rank)
    config = LoraConfig(
        r=network.rank,
        lora_alpha=network.alpha,
        lora_dropout=network.dropout or 0.0,
        target_modules=targets,
        rank_pattern=dict.fromkeys(sorted(convolutions), conv_rank),
        alpha_pattern=dict.fromkeys(sorted(convolutions), conv_alpha),
    )
    adapted.module.add_adapter(config, adapter_name=ADAPTER_NAME)
    parameters = trainable(adapted)
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.float32)
    return list(parameters.values())


def trainable(adapted: AdaptedModule) -> dict[str, torch.nn.Parameter]:
    """The module's LoRA parameters by full name, such as ``unet.mid_block...lora_A.weight``."""
    return {
        f"{adapted.name}.{name}": parameter
        for name, parameter in adapted.module.named_parameters()
        if parameter.requires_grad
    }


def scale_lora(adapted: AdaptedModule, multiplier: float) -> None:
    """Set how strongly the LoRA acts: 1 is as trained."""
    for layer in adapted.module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale(ADAPTER_NAME, multiplier)


def kohya_layer(adapted: AdaptedModule, layer: str) -> str:
    """Return a layer's path as kohya's names have it, with ``_`` for each dot."""
    # transformers 5 dropped the level "text_model" that all readers expect.
    if adapted.is_text:
        layer = f"text_model.{layer.removeprefix('text_model.')}"
    return layer.replace(".", "_")


def _target_names(adapted: AdaptedModule, network: NetworkSection) -> list[str]:
    """Full names of the layers that get a LoRA, sorted."""
    endings = list(network.target_modules or adapted.target_modules)
    if network.target_modules is not None and adapted.is_text:
        endings = list(adapted.target_modules)  # target_modules speaks of the denoiser
    if network.conv:
        endings += adapted.convolutions
    layers = (
        name
        for name, layer in adapted.module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    )
    names = chosen_layers(layers, endings, network)
    if not names:
        raise InvalidConfig(
            f"network: no layer of the {adapted.name} matches {', '.join(endings)}",
            remedy="Check network.target_modules, only_if_contains and ignore_if_contains.",
        )
    return names
