"""Prompts of sd-scripts: a file of them, or their text, with the options of each."""

from typing import Any

from loradash.domain.kohya.folders import Files
from loradash.domain.kohya.source import Source
from loradash.domain.prompt_text import ReadPrompt
from loradash.domain.prompts_file import is_prompts_file, read_prompts
from loradash.errors import InvalidConfig

_KEYS = {
    "negative_prompt": "neg", "width": "width", "height": "height", "seed": "seed",
    "steps": "sample_steps", "guidance_scale": "guidance_scale", "multiplier": "network_multiplier",
}  # fmt: skip


def samples_of(source: Source, prompts: str, files: Files) -> list[dict[str, Any]]:
    """Return the samples of a prompts file, or of its text where that is given itself."""
    name = prompts.strip()
    text = files.text(name) if is_prompts_file(name) else prompts
    if text is None:
        source.problems.append(f"sample_prompts: {name[:100]} isn't on this machine")
        return []
    try:
        read = read_prompts(name if is_prompts_file(name) else "prompts.txt", text)
    except InvalidConfig as error:
        source.problems += [f"sample_prompts: {one}" for one in error.problems or (error.message,)]
        return []
    source.notes += [f"sample_prompts: {note}" for one in read for note in one.notes]
    return [_sample(one) for one in read]


def _sample(read: ReadPrompt) -> dict[str, Any]:
    settings = read.settings.model_dump(exclude_none=True)
    # A sample has no key for its scheduler; as an option in its prompt it has the same effect.
    scheduler = f" --ss {settings['scheduler']}" if "scheduler" in settings else ""
    sample: dict[str, Any] = {"prompt": read.text + scheduler}
    return sample | {_KEYS[key]: value for key, value in settings.items() if key in _KEYS}
