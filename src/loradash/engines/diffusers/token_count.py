"""Counting the tokens of texts as a base model's tokenizer does, without torch.

The package ``tokenizers`` comes with the engine; where it isn't installed, or the base model's
tokenizer isn't on this machine, nothing is counted until the training or generation runs.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loradash.domain.text_length import CutText, cut_of
from loradash.engines.diffusers.base_models.families import BaseModelSource

CutOf = Callable[[str], CutText | None]

# As OpenAI's CLIP splits a text (openai/CLIP, ``simple_tokenizer.py``).
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def cutting(source: BaseModelSource) -> CutOf | None:
    """Return a function that says where a text is cut; None if that can't be known here."""
    folder = Path(source.location, "tokenizer")
    if source.kind != "folder" or find_spec("tokenizers") is None:
        return None
    try:
        limit = _limit(Path(source.location))
        tokenizer = _tokenizer(folder)
    except Exception:  # noqa: BLE001 - of the library, too; loading says what is wrong with it
        return None

    def cut(text: str) -> CutText | None:
        return cut_of(text, tokenizer.encode(text).offsets, limit)

    return cut


def text_limit(told: object, positions: object) -> int:
    """The number of tokens that are read of a text.

    ``told`` is the tokenizer's ``model_max_length``: where its config doesn't say it, that is None
    or an enormous number, and the text encoder's number of ``positions`` counts, which no text
    can exceed. Raises `ValueError` if neither is a number.
    """
    limits = [one for one in (told, positions) if isinstance(one, int | float) and one >= 1]
    if not limits:
        raise ValueError("neither tokenizer nor text encoder says how long a text may be")
    return int(min(limits))


def _limit(folder: Path) -> int:
    tokenizer, encoder = (
        json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for path in (
            folder / "tokenizer/tokenizer_config.json",
            folder / "text_encoder/config.json",
        )
    )
    return text_limit(tokenizer.get("model_max_length"), encoder.get("max_position_embeddings"))


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = _clip_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from the two files of older base models."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in pairs]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end,
            continuing_subword_prefix="", fuse_unk=False,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), False, False
    )
    tokenizer.add_special_tokens([start, end])
    return tokenizer
