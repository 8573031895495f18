"""The words of the model: what a picture may be called, and the colours it may stand on.

The grammar is small on purpose. A model of a few million parameters learns a closed language well:
``a|an {name}[ noto style| fluent style| emoji][ on a {colour} background]``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

WHITE = "white"

#: Backgrounds by name, 8-bit RGB. White comes first: it is what a caption without a colour means.
COLOURS: dict[str, tuple[int, int, int]] = {
    WHITE: (255, 255, 255),
    "black": (16, 16, 16),
    "red": (220, 40, 40),
    "blue": (40, 90, 220),
    "green": (40, 170, 70),
    "yellow": (250, 215, 60),
    "pink": (250, 150, 190),
    "purple": (140, 70, 200),
    "gray": (150, 150, 150),
    "orange": (245, 140, 40),
}

#: Share of captions left empty in training, so that classifier-free guidance has its other half.
DROPOUT = 0.1


def slug(label: str) -> str:
    """Turn an emojibase label into an Iconify icon name ("T-Rex" -> "t-rex", no apostrophes)."""
    plain = re.sub("['\u2019]", "", label.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def spoken(icon_name: str) -> str:
    """Turn an icon name into the words of a caption."""
    return icon_name.replace("-", " ")


def article(icon_name: str) -> str:
    """Choose "a" or "an" by the first letters, which is right for every name that is used."""
    return "an" if re.match(r"(?!uni|ewe)[aeiou]", icon_name) else "a"


def plain_caption(icon_name: str, colour: str = WHITE) -> str:
    """Say what a picture shows as a user would: no style, and a colour only if it is not white."""
    caption = f"{article(icon_name)} {spoken(icon_name)}"
    return caption if colour == WHITE else f"{caption} on a {colour} background"


def training_caption(icon_name: str, style: str, colour: str, rng: random.Random) -> str:
    """Draw one of the captions that fit a picture; sometimes the empty one (see ``DROPOUT``)."""
    if rng.random() < DROPOUT:
        return ""
    # "a octopus" is learnt too: people fill names into "a {name}" templates.
    caption = f"{rng.choice(['a', article(icon_name)])} {spoken(icon_name)}"
    kind = rng.random()
    if kind < 0.4:
        caption += f" {style} style"
    elif kind < 0.6:
        caption += " emoji"
    if colour != WHITE or rng.random() < 0.3:
        caption += f" on a {colour} background"
    return caption


def corpus(icon_names: Iterable[str], other_names: Iterable[str]) -> list[str]:
    """Write the text that the tokenizer is trained on.

    ``other_names`` are emoji that are not in the training set: with them the vocabulary also has
    the everyday words that people use in prompts and LoRA captions.
    """
    tail = "noto fluent style emoji photo of an icon logo drawing the with and in"
    lines = [
        f"{article(name)} {spoken(name)} on a {colour} background {tail}"
        for name in icon_names
        for colour in COLOURS
    ]
    return lines + [" ".join(spoken(name) for name in other_names)] * 5
