"""What is known of a trained adapter; `adapter_metadata` puts it into the file."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loradash.domain.engine_use import EngineUse
from loradash.domain.training_config import DatasetSection, TrainingConfig


class BaseModelNames(BaseModel):
    """What others call the kind of a base model."""

    model_config = ConfigDict(frozen=True)

    modelspec: str
    """ModelSpec's architecture, such as ``stable-diffusion-v2-768-v``."""
    kohya: str
    """sd-scripts' ``ss_base_model_version``, such as ``sd_v2_v``."""
    is_v2: bool
    """Stable Diffusion 2: A1111 shows an adapter only for base models of the same kind."""


class DatasetSummary(BaseModel):
    """One dataset of a training as the engine has read it."""

    model_config = ConfigDict(frozen=True)

    section: DatasetSection
    images: int
    items_per_epoch: int
    """Images by sizes, mirrored ones and repeats: how many are drawn in an epoch."""
    buckets: tuple[tuple[tuple[int, int], int], ...]
    """Width and height in pixels, and how many images (with repeats) are trained at that size."""
    tags: tuple[tuple[str, int], ...]
    """Tags of the captions with their number, the most frequent ones first."""

    @property
    def folder(self) -> str:
        """The last part of the folder's path, or the stored dataset's name."""
        return last_part(self.section.folder_path)

    @property
    def images_with_repeats(self) -> int:
        """Images times repeats, which is what sd-scripts counts."""
        return self.images * self.section.num_repeats


class AdapterDescription(BaseModel):
    """Facts about one adapter at one step of its training.

    Nothing here may depend on the attempt that writes the file: the same training gives the same
    bytes, whoever ends it.
    """

    model_config = ConfigDict(frozen=True)

    process_id: str
    engine: EngineUse
    """What trained it, in the version that wrote its job."""
    created_at: datetime
    """When the process was created, not when this attempt began."""
    config: TrainingConfig
    base_model: str
    base_model_is_local: bool
    names: BaseModelNames
    prediction_type: str
    zero_terminal_snr: bool
    precision: Literal["fp32", "bf16", "fp16"]
    optimizer: str
    """Its class and options, as sd-scripts writes them."""
    caption_tokens: int | None
    """How many tokens of a caption the text encoder takes."""
    datasets: tuple[DatasetSummary, ...]
    dataset_sha256: str
    steps: int = 0
    scale_in_weights: bool = False
    """Whether alpha / rank has been multiplied into the weights, so that no alpha is left."""
    thumbnail: str | None = None
    """A small picture as a data URL."""

    @property
    def alpha(self) -> float:
        """Alpha by which the file's linear layers are meant."""
        network = self.config.process.network
        return float(network.rank) if self.scale_in_weights else network.alpha

    @property
    def conv_alpha(self) -> float | None:
        """Alpha of the file's 3x3 convolutions, if it has any."""
        network = self.config.process.network
        if network.conv is None:
            return None
        return float(network.conv) if self.scale_in_weights else network.conv_alpha or network.conv

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every image has been used as often as it is repeated."""
        concept = sum(data.items_per_epoch for data in self.datasets if not data.section.is_reg)
        prior = sum(data.items_per_epoch for data in self.datasets if data.section.is_reg)
        # Prior images are cycled until there are as many of them as of the others.
        items = 2 * concept if concept and prior else concept or prior
        return max(1, -(-items // self.config.process.train.batch_size))

    def epoch_of(self, steps: int) -> int:
        """The epoch, from 1, in which a step falls."""
        return max(1, -(-steps * self.config.process.train.accumulation // self.batches_per_epoch))


def last_part(path: str) -> str:
    """Return what stands after the last slash or backslash of a path."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
