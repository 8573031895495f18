"""Captions and sample prompts that a base model's text encoder doesn't read to their end."""

from collections.abc import Sequence

from loradash.datasets.captions import with_trigger
from loradash.domain.dataset import DatasetReport
from loradash.domain.text_length import cut_captions
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.engines.diffusers.token_count import CutOf
from loradash.engines.sample_prompts import sample_prompts


def cut_texts(
    config: TrainingConfig,
    data: Sequence[tuple[DatasetSection, DatasetReport]],
    cut: CutOf,
) -> list[str]:
    """Return a sentence about all captions that are cut, and one for each sample prompt that is."""
    captions = [
        (image.relative_path, cut(caption_of(image.caption, section, config.trigger_word)))
        for section, report in data
        for image in report.images
    ]
    found = [text] if (text := cut_captions(captions)) else []
    process = config.process
    prompts = (
        []
        if process.train.disable_sampling
        else sample_prompts(process.sample, config.trigger_word)
    )
    return found + [lost.sentence(prompt.place) for prompt in prompts if (lost := cut(prompt.text))]


def caption_of(caption: str | None, section: DatasetSection, trigger_word: str) -> str:
    """The text that an image is trained on: with the trigger word, if its dataset has one."""
    word = "" if section.is_reg else (section.trigger_word or trigger_word).strip()
    text = caption if caption is not None else section.default_caption or ""
    return with_trigger(text, word, add=True)
