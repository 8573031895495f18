"""What an adapter file says about itself, in the metadata fields that other programs read.

Fields: Stability AI's ModelSpec 1.0.0 (``modelspec.*``), kohya's ``ss_*`` that A1111 and ComfyUI
show, and our own ``loradash.*``. All values are text, as safetensors wants them.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

import loradash


class AdapterDescription(BaseModel):
    """Facts about one trained adapter."""

    model_config = ConfigDict(frozen=True)

    name: str
    process_id: str
    created_at: datetime
    base_model: str
    architecture: str
    rank: int
    alpha: float
    trigger_word: str
    steps: int
    batch_size: int
    learning_rate: float
    resolution: int
    prediction_type: str
    dataset_sha256: str
    dataset_images: int
    seed: int

    def metadata(self, tensors_sha256: str) -> dict[str, str]:
        """Return the safetensors metadata; ``tensors_sha256`` is the hash of the tensor bytes."""
        prediction = "v" if self.prediction_type == "v_prediction" else self.prediction_type
        return {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{self.architecture}/lora",
            "modelspec.implementation": "https://github.com/huggingface/diffusers",
            "modelspec.title": self.name,
            "modelspec.date": self.created_at.isoformat(timespec="seconds"),
            "modelspec.resolution": f"{self.resolution}x{self.resolution}",
            "modelspec.prediction_type": prediction,
            "modelspec.trigger_phrase": self.trigger_word,
            "modelspec.hash_sha256": f"0x{tensors_sha256}",
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": f"{self.alpha:g}",
            "ss_output_name": self.name,
            "ss_base_model_version": self.architecture,
            "ss_sd_model_name": self.base_model,
            "ss_steps": str(self.steps),
            "ss_max_train_steps": str(self.steps),
            "ss_batch_size_per_device": str(self.batch_size),
            "ss_learning_rate": f"{self.learning_rate:g}",
            "ss_seed": str(self.seed),
            "ss_num_train_images": str(self.dataset_images),
            "ss_v2": "False",
            "loradash.version": loradash.__version__,
            "loradash.process_id": self.process_id,
            "loradash.base_model": self.base_model,
            "loradash.rank": str(self.rank),
            "loradash.alpha": f"{self.alpha:g}",
            "loradash.trigger_word": self.trigger_word,
            "loradash.steps": str(self.steps),
            "loradash.dataset_sha256": self.dataset_sha256,
        }
