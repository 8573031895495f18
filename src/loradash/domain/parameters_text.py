"""The parameters of an image as text, as A1111 and we write them into PNGs, read back."""

import re
from typing import Any

from loradash.domain.prompt_text import PromptSettings, ReadPrompt, setting

_LAST_LINE = re.compile(r"^\s*Steps: \d+, .*(?:Sampler|Seed|CFG scale): ")
_PAIR = re.compile(r'\s*([A-Za-z][\w /-]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_FIELDS = {"steps": "steps", "cfg scale": "guidance_scale", "seed": "seed", "sampler": "scheduler"}
# Of the program and of the model; the request says which model draws.
_SILENT = frozenset({
    "steps", "sampler", "schedule type", "cfg scale", "seed", "size", "version", "model hash",
    "lora hashes", "hashes", "model",
})  # fmt: skip


def read_parameters(text: str) -> ReadPrompt | None:
    """Return prompt and settings of such a text; None for one that is only a prompt.

    It is the prompt, maybe ``Negative prompt: ...``, and a last line ``Steps: 20, Sampler: ...``.
    """
    *lines, last = text.strip().splitlines() or [""]
    if not _LAST_LINE.match(last):
        return None
    start = next((n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE).strip()
    pairs = {key.strip().lower(): value.strip() for key, value in _PAIR.findall(last)}
    notes = [f"{key} {value[:40]} isn't followed" for key, value in pairs.items()
             if key not in _SILENT]  # fmt: skip
    values: dict[str, Any] = {"negative_prompt": negative}
    for field, value in _values(pairs).items():
        try:
            values[field] = setting(field, value, notes)
        except ValueError:
            notes.append(f"{field} {value[:40]} isn't followed")
    settings = PromptSettings.model_validate(values)
    return ReadPrompt("\n".join(lines[:start]).strip(), settings, tuple(notes))


def _values(pairs: dict[str, str]) -> dict[str, str]:
    """The values of our settings, unchecked."""
    values = {field: pairs[key] for key, field in _FIELDS.items() if key in pairs}
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("size", "")):
        values |= {"width": size[1], "height": size[2]}
    is_karras = pairs.get("schedule type", "").lower() == "karras"
    if is_karras and "scheduler" in values and "karras" not in values["scheduler"].lower():
        values["scheduler"] += " Karras"
    return values
