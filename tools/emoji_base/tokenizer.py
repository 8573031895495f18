"""A CLIP tokenizer of our own: 3,000 entries instead of 49,408, so embeddings stay small."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

#: CLIP's own rule for splitting text into words; CLIPTokenizer applies the same one when it runs.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(
    corpus: Iterable[str], vocabulary_size: int = 3000, context: int = 16
) -> CLIPTokenizer:
    """Train byte-pair encoding on ``corpus``; any other text still falls apart into bytes.

    The result has at most ``vocabulary_size`` entries: 256 bytes, the same 256 at a word's end,
    the merges, begin and end.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    known = set(entries)
    merges = _train_merges(corpus, vocabulary_size - len(alphabet) - 2)
    for left, right in merges:
        if left + right not in known:
            entries.append(left + right)
            known.add(left + right)
    vocabulary = {entry: number for number, entry in enumerate([*entries, _BOS, _EOS])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context)


def _train_merges(corpus: Iterable[str], size: int) -> list[tuple[str, str]]:
    bpe = Tokenizer(
        models.BPE(end_of_word_suffix=_WORD_END, continuing_subword_prefix="", unk_token=_EOS)
    )
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        end_of_word_suffix=_WORD_END,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    bpe.train_from_iterator(corpus, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in merges]
