"""loradash: train LoRA adapters and generate images with them."""

__version__ = "0.1.0"
