"""Data that ships with the package: the small base model and the demo's images."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_BASE_MODELS = ("emoji-base",)


def base_model_folder(name: str) -> Path:
    """Return the folder of an embedded base model, a diffusers pipeline folder."""
    return Path(str(files(__name__))) / name.replace("-", "_") / "model"


def demo_folder() -> Path:
    """Return the folder with the demo's ``logo`` and ``regularization`` images and captions."""
    return Path(str(files(__name__))) / "demo"
