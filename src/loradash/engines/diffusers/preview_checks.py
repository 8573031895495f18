"""What is wrong or unusual in a training's previews, told before the training is submitted."""

from typing import NamedTuple

from loradash.domain.image_size import rounded_side
from loradash.domain.schedulers import find_scheduler
from loradash.domain.training_config import SampleItem, SampleSection, TrainingConfig
from loradash.engines.diffusers.drawing_limits import DrawingLimits


class Findings(NamedTuple):
    """What can't be drawn, and what is drawn otherwise than asked for; a sentence each."""

    problems: list[str]
    warnings: list[str]


def check_previews(config: TrainingConfig, limits: DrawingLimits) -> Findings:
    """Look at the settings of a training's previews.

    A training that is resumed isn't checked again: previews that fail cost it nothing.
    """
    problems: list[str] = []
    warnings: list[str] = []
    sample = config.process.sample
    if config.process.train.disable_sampling or not (sample.prompts or sample.samples):
        return Findings(problems, warnings)
    try:
        found = find_scheduler(sample.sampler)
        warnings += [f"sample.sampler: {found.note}"] if found.note else []
    except ValueError as error:
        problems.append(f"sample.sampler: {error}")
    places: list[tuple[str, SampleSection | SampleItem]] = [
        ("sample", sample),
        *((f"sample.samples[{n}]", item) for n, item in enumerate(sample.samples)),
    ]
    for place, section in places:
        for key in ("width", "height"):
            side = getattr(section, key)
            if side is not None and (used := rounded_side(side)) != side:
                warnings.append(f"{place}.{key}: {side} isn't a multiple of 8; {used} is used")
        if section.sample_steps is not None:
            problem = limits.problem(section.sample_steps, f"{place}.sample_steps")
            problems += [problem] if problem else []
    return Findings(problems, warnings)
