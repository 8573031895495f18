"""Reading what people have for kohya's sd-scripts: its TOML, bmaltais' JSON, and image folders."""

import json
import tomllib
from pathlib import Path
from typing import Any

from loradash.datasets.inventory import take_inventory
from loradash.domain.dataset_files import file_reason, file_type
from loradash.domain.kohya.conversion import Conversion, convert
from loradash.domain.kohya.folders import repeats_and_caption
from loradash.domain.text_files import decoded
from loradash.errors import InvalidConfig, InvalidDataset, LoradashError
from loradash.paths import local_path

_MAX_BYTES = 5_000_000
_NO_CONFIG = {
    "network_module": "networks.lora", "network_dim": 16, "network_alpha": 16,
    "network_train_unet_only": True, "learning_rate": 1e-4, "max_train_steps": 1000, "seed": 0,
    "resolution": 512, "caption_extension": ".txt", "output_name": "my_lora", "enable_bucket": True,
    "lr_scheduler": "cosine", "gradient_checkpointing": True, "mixed_precision": "auto",
    "save_precision": "fp16",
}  # fmt: skip
"""Where only images or a dataset config are given: what our short form takes."""


class LocalFiles:
    """What a conversion looks up, on this machine."""

    def folders(self, path: str) -> list[str] | None:
        """Names of the folders in a folder, without hidden ones, sorted."""
        try:
            return sorted(
                one.name
                for one in Path(path).expanduser().iterdir()
                if one.is_dir() and not one.name.startswith(".")
            )
        except OSError:
            return None

    def images(self, path: str) -> int | None:
        """How many images are in a folder and below it."""
        try:
            return len(take_inventory(Path(path).expanduser()).images)
        except LoradashError:
            return None

    def images_beside(self, path: str) -> int:
        """How many images are in a folder itself."""
        try:
            names = [one.name for one in Path(path).expanduser().iterdir() if one.is_file()]
        except OSError:
            return 0
        return sum(file_type(name) == "image" and file_reason(name) is None for name in names)

    def text(self, path: str) -> str | None:
        """The text of a file."""
        try:
            file = Path(path).expanduser()
            return decoded(file.read_bytes()) if _is_small(file) else None
        except (OSError, ValueError):
            return None


def convert_file(path: Path, dataset_config: Path | None, base_model: str) -> Conversion:
    """Convert a config of sd-scripts, a dataset config alone, or a folder with ``10_name`` folders.

    ``base_model`` replaces the config's own, and must be given where there is no training config.
    Raises `InvalidConfig`, or `InvalidDataset` for a folder without such folders.
    """
    path = local_path(path, InvalidConfig, "config")
    settings: dict[str, Any] = {}
    datasets = _read(dataset_config) if dataset_config else None
    if path.is_dir():
        if not any(_has_repeats(name) for name in LocalFiles().folders(str(path)) or ()):
            raise InvalidDataset(
                f"folder {path} has no folder such as 10_name",
                remedy="Give it to `loradash train --dataset` as it is, or a config file here.",
            )
        settings = {**_NO_CONFIG, "train_data_dir": str(path)}
    else:
        found = _read(path)
        if "job" in found:
            raise InvalidConfig(
                f"{path} is a config of ai-toolkit, which needs no conversion",
                remedy=f"Use it as it is: `loradash train {path}`.",
            )
        if isinstance(found.get("datasets"), list):
            settings, own = _split(found)
            if datasets is not None:
                raise InvalidConfig(
                    f"{path} has datasets, and --dataset-config is given too",
                    remedy="Leave one of them out.",
                )
            datasets = own
        else:
            settings = _flat(found)
    if base_model:
        settings["pretrained_model_name_or_path"] = base_model
    elif "pretrained_model_name_or_path" not in settings:
        raise InvalidConfig(
            f"{path} names no base model",
            remedy="Give it with --base-model, or give the training config with --dataset-config "
            "for this file.",
        )
    named = settings.get("dataset_config")
    if datasets is None and isinstance(named, str) and named:
        beside = path.parent / named
        datasets = _read(beside if beside.is_file() else Path(named))
    return convert(settings, datasets, LocalFiles())


def _has_repeats(name: str) -> bool:
    return repeats_and_caption(name) is not None


def _split(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the training and of the datasets, of a file that may hold both.

    ``[general]`` belongs to the datasets, as in a dataset config. Where that is all that there is,
    the training is what our short form makes of it.
    """
    own = {key: value for key, value in config.items() if key in ("general", "datasets")}
    rest = {key: value for key, value in config.items() if key not in own}
    return (_flat(rest) if rest else dict(_NO_CONFIG)), own


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Sections of a training config only group its settings."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _read(path: Path) -> dict[str, Any]:
    """Parse a TOML or JSON file. Raises `InvalidConfig` with the place of an error."""
    try:
        if not _is_small(path):
            raise InvalidConfig(
                f"{path}: larger than {_MAX_BYTES:,} bytes", remedy="Give a config file."
            )
        text = decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfig(f"{path}: {reason}", remedy="Check the file.") from error
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(
            f"{path}: neither TOML nor JSON ({str(error)[:200]})",
            remedy="Give a config of sd-scripts; configs of ai-toolkit need no conversion.",
        ) from error
    if not isinstance(data, dict):
        raise InvalidConfig(f"{path}: not a config", remedy="Give a config of sd-scripts.")
    return data


def _is_small(path: Path) -> bool:
    return path.stat().st_size <= _MAX_BYTES
