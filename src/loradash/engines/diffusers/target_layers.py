"""Which layers of a network get a LoRA, told by their names alone. No torch."""

from collections.abc import Collection, Iterable, Mapping

from loradash.domain.training_config import NetworkSection, TrainingConfig

# What kohya's and ai-toolkit's trainers adapt by default: every linear layer of the transformers.
UNET_LINEARS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
UNET_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def chosen_layers(
    names: Iterable[str], endings: Collection[str], network: NetworkSection
) -> list[str]:
    """Return the names that end so and that the config's own words for names allow, sorted."""
    only = network.network_kwargs.only_if_contains
    never = network.network_kwargs.ignore_if_contains or []
    return sorted(
        name
        for name in names
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
        and (only is None or any(part in name for part in only))
        and not any(part in name for part in never)
    )


def no_layers(config: TrainingConfig, layers: Mapping[str, Collection[str]]) -> list[str]:
    """Say of which trained network no layer is chosen; ``layers`` are those with a matrix."""
    process = config.process
    network = process.network
    wanted: dict[str, list[str]] = {}
    if process.train.train_unet:
        wanted["unet"] = [*(network.target_modules or UNET_LINEARS)]
    if process.train.train_text_encoder:
        encoders = [part for part in layers if part.startswith("text_encoder")]
        wanted |= {part: [*CLIP_ATTENTION] for part in encoders}
    if network.conv and "unet" in wanted:
        wanted["unet"] += UNET_CONVOLUTIONS
    return [
        f"network: no layer of the {part} matches {', '.join(endings)}; check "
        "network.target_modules, only_if_contains and ignore_if_contains"
        for part, endings in wanted.items()
        if part in layers and not chosen_layers(layers[part], endings, network)
    ]
