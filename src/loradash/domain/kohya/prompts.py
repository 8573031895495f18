"""Prompts of sd-scripts: a text with options at the end of each line."""

import re
from typing import Any

from loradash.domain.kohya.folders import Files
from loradash.domain.kohya.source import Source

_OPTION = re.compile(r" --(?=[A-Za-z]+ )")
_OPTIONS = {
    "w": ("width", int), "h": ("height", int), "d": ("seed", int), "s": ("sample_steps", int),
    "l": ("guidance_scale", float), "g": ("guidance_scale", float), "n": ("neg", str),
}  # fmt: skip


def samples_of(source: Source, prompts: str, files: Files) -> list[dict[str, Any]]:
    """Return the samples of a prompt file, or of its text where that is given itself."""
    text = prompts if "\n" in prompts else files.text(prompts)
    if text is None and not prompts.endswith((".txt", ".toml", ".json")):
        text = prompts
    if text is None or prompts.endswith((".toml", ".json")):
        source.problems.append(
            f"sample_prompts: {prompts[:100]} isn't a text file on this machine, one prompt a line"
        )
        return []
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    return [_sample(source, line) for line in lines if line and not line.startswith("#")]


def _sample(source: Source, line: str) -> dict[str, Any]:
    prompt, *options = _OPTION.split(line)
    sample: dict[str, Any] = {"prompt": prompt.strip()}
    for option in options:
        name, _, value = option.partition(" ")
        key, kind = _OPTIONS.get(name.lower(), ("", str))
        if not key:
            source.problems.append(f"sample_prompts: --{name} of {prompt[:40]!r} isn't supported")
            continue
        try:
            sample[key] = kind(value.strip())
        except ValueError:
            source.problems.append(f"sample_prompts: --{name} {value[:40]!r} is no number")
    return sample
