"""The previews of a training: each prompt with the settings that are its own."""

from dataclasses import dataclass

from loradash.datasets.captions import with_trigger
from loradash.domain.image_size import rounded_side
from loradash.domain.prompt_text import PromptSettings, read_as_words, read_options, take_tags
from loradash.domain.training_config import RANDOM_SEED, SampleItem, SampleSection


@dataclass(frozen=True)
class SamplePrompt:
    """One preview, what is wrong with it, and what is read otherwise than it may be meant."""

    place: str
    """Where it stands in the config, such as ``sample.prompts[0]``."""
    text: str
    settings: PromptSettings
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sample_prompts(sample: SampleSection, trigger_word: str) -> list[SamplePrompt]:
    """Return the previews in the order in which they are drawn.

    Options in a prompt (``--n``, ``--w``, ...) are followed, as by kohya's scripts and ai-toolkit,
    and come before the fields beside it. One that can't be read leaves its prompt as it stands.
    """
    items = [(f"sample.samples[{n}]", item) for n, item in enumerate(sample.samples)]
    items += [
        (f"sample.prompts[{n}]", SampleItem(prompt=text)) for n, text in enumerate(sample.prompts)
    ]
    return [_read(place, item, trigger_word) for place, item in items]


def _read(place: str, item: SampleItem, trigger_word: str) -> SamplePrompt:
    text = with_trigger(item.prompt, trigger_word, add=False)
    settings, notes = _of_fields(item)
    problems: tuple[str, ...] = ()
    try:
        read = read_options(text)
    except ValueError as error:
        problems = (str(error),)
    else:
        text, notes = read.text, [*notes, *read.notes]
        settings = settings.model_copy(update=read.settings.model_dump(exclude_none=True))
    words, tags = take_tags(text)
    notes += [f"{tag.text} is left out: a preview shows the LoRA in training" for tag in tags]
    if found := [*read_as_words(words), *read_as_words(settings.negative_prompt or "")]:
        notes.append(f"drawn as words: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}")
    return SamplePrompt(place, words, settings, problems, tuple(notes))


def _of_fields(item: SampleItem) -> tuple[PromptSettings, list[str]]:
    """The settings that stand beside a prompt; sides rounded, which is told."""
    notes: list[str] = []
    sides: dict[str, int | None] = {}
    for key in ("width", "height"):
        side = getattr(item, key)
        sides[key] = used = None if side is None else rounded_side(side)
        notes += [f"{key} {side} isn't a multiple of 8; {used} is used"] if used != side else []
    settings = PromptSettings(
        negative_prompt=item.neg, width=sides["width"], height=sides["height"],
        seed=None if item.seed == RANDOM_SEED else item.seed,
        steps=item.sample_steps, guidance_scale=item.guidance_scale,
        multiplier=item.network_multiplier,
    )  # fmt: skip
    return settings, notes
