"""From a caption file to the text that the model is trained on."""

import random
import re

from loradash.domain.characters import find_unprintable, named_character
from loradash.domain.text_files import decoded

MAX_CAPTION_BYTES = 64_000

_PLACEHOLDERS = ("[trigger]", "[name]")  # ai-toolkit fills both with the trigger word


def decode_caption(data: bytes) -> str:
    """Return the text of a caption file: UTF-8, or what its byte order mark says.

    Raises `ValueError` that says what is wrong with any other file: a text that was read with the
    wrong encoding would be trained.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"longer than the {MAX_CAPTION_BYTES:,} bytes that a caption may have")
    text = decoded(data)
    if found := find_unprintable(" ".join(text.split())):
        line = text.count("\n", 0, text.index(found.group())) + 1
        raise ValueError(f"line {line}: {named_character(found.group())} can't be in a caption")
    return text


def with_trigger(text: str, trigger_word: str, *, add: bool) -> str:
    """Fill the placeholders with the trigger word and, if ``add``, put it first where it's missing.

    Sample prompts are only filled (``add=False``): a prompt without the word shows what the
    adapter does to everything else.
    """
    for placeholder in _PLACEHOLDERS:
        text = text.replace(placeholder, trigger_word)
    if add and trigger_word and not _holds_word(text, trigger_word):
        text = f"{trigger_word} {text}"
    return text.strip()


def _holds_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def shuffled(caption: str, keep_tokens: int, random_source: random.Random) -> str:
    """Shuffle comma-separated tags; the first ``keep_tokens`` stay where they are."""
    tokens = [token.strip() for token in caption.split(",")]
    kept, rest = tokens[:keep_tokens], tokens[keep_tokens:]
    random_source.shuffle(rest)
    return ", ".join([*kept, *rest])
