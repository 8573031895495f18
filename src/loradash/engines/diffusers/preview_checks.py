"""What is wrong or unusual in a training's previews, told before the training is submitted."""

from typing import NamedTuple

from loradash.domain.image_size import rounded_side
from loradash.domain.schedulers import find_scheduler
from loradash.domain.training_config import TrainingConfig
from loradash.engines.diffusers.drawing_limits import DrawingLimits
from loradash.engines.sample_prompts import sample_prompts


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
    for key in ("width", "height"):
        side = getattr(sample, key)
        if (used := rounded_side(side)) != side:
            warnings.append(f"sample.{key}: {side} isn't a multiple of 8; {used} is used")
    if problem := limits.problem(sample.sample_steps, "sample.sample_steps"):
        problems.append(problem)
    for prompt in sample_prompts(sample, config.trigger_word):
        problems += [f"{prompt.place}: {problem}" for problem in prompt.problems]
        warnings += [f"{prompt.place}: {note}" for note in prompt.notes]
        steps = prompt.settings.steps
        if steps and (problem := limits.problem(steps, prompt.place)):
            problems.append(problem)
    return Findings(problems, warnings)
