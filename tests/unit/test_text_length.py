import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loradash.data import base_model_folder
from loradash.domain.dataset import DatasetReport
from loradash.domain.text_length import CutText, cut_captions, cut_of
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.base_models.families import BaseModelSource, find_base_model
from loradash.engines.diffusers.text_checks import cut_texts
from loradash.engines.diffusers.token_count import CutOf, cutting

LONG = "a red fox that jumps over a lazy dog in the deep snow of a cold winter night"
TEXTS = (
    "", "a fox", LONG, "Ünïcödé, naïve -- 100% & \t \n 'tis it's we've", "日本の庭園 🦊🦊",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234567890", "<|endoftext|> fox",
    "e\u0301te\u0301",
)  # fmt: skip


@pytest.fixture(scope="module")
def cut() -> CutOf:
    found = cutting(find_base_model("emoji-base"))
    assert found is not None
    return found


def test_a_text_that_is_read_whole_is_not_cut(cut: CutOf) -> None:
    assert cut("") is None
    assert cut("a red fox") is None


def test_a_text_of_just_the_length_is_read_whole_and_one_token_more_is_cut(cut: CutOf) -> None:
    assert cut("fox " * 14) is None
    found = cut("fox " * 15)
    assert found is not None
    assert (found.limit, found.lost) == (14, 1)
    assert found.end.endswith("fox fox")


def test_a_cut_text_says_how_much_is_lost_and_where_it_ends() -> None:
    spans = [(0, 0), (0, 1), (2, 5), (6, 9), (10, 12), (0, 0)]
    found = cut_of("a red fox up", spans, limit=4)
    assert found == CutText(2, 2, "a red")
    assert found.sentence("the prompt") == (
        "the prompt is longer than the 2 tokens that the text encoder reads: "
        "2 tokens after 'a red' aren't read"
    )


def test_cut_captions_are_counted_and_named() -> None:
    one = CutText(75, 1, "a red")
    assert cut_captions([("a.png", None)]) == ""
    assert cut_captions([("a.png", None), ("b.png", one)]) == (
        "1 of 2 captions is longer than the 75 tokens that the text encoder reads, and the rest "
        "isn't trained: b.png: 1 token after 'a red' isn't read"
    )
    many = cut_captions([(f"{n}.png", one) for n in range(9)])
    assert many.startswith("9 of 9 captions are longer")
    assert many.endswith("; and 4 more")


def test_the_two_files_of_older_base_models_give_the_same_tokens(
    cut: CutOf, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(base_model_folder("emoji-base") / "tokenizer", folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    merges = [" ".join(pair) for pair in document["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    older = cutting(BaseModelSource(name="x", kind="folder", location=str(tmp_path)))
    assert older is not None
    for text in (*TEXTS, *(f"{LONG} {text}" for text in TEXTS)):
        assert older(text) == cut(text), text


@pytest.mark.parametrize("damage", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_counts_nothing(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(base_model_folder("emoji-base") / "tokenizer", folder)
    (folder / damage).write_text("{")
    assert cutting(BaseModelSource(name="x", kind="folder", location=str(tmp_path))) is None


@pytest.mark.parametrize("told", [None, 10**30, 99])
def test_a_text_is_never_longer_than_the_text_encoder_has_positions(
    cut: CutOf, tmp_path: Path, told: int | None
) -> None:
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / part).mkdir()
    for name in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        shutil.copyfile(base_model_folder("emoji-base") / name, tmp_path / name)
    if told is not None:
        config = {"model_max_length": told}
        (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    same = cutting(BaseModelSource(name="x", kind="folder", location=str(tmp_path)))
    assert same is not None
    assert same(LONG) == cut(LONG)
    assert same(LONG) is not None


def test_a_base_model_of_the_hub_is_counted_when_it_is_loaded() -> None:
    assert cutting(BaseModelSource(name="a/b", kind="hub", location="a/b")) is None


def test_captions_count_with_their_trigger_word_and_previews_without_options(cut: CutOf) -> None:
    config = parse_training(
        {
            "dataset": "x", "base_model": "emoji-base", "trigger_word": "red",
            "sample_prompts": ["a fox --n " + LONG, LONG],
        }
    )  # fmt: skip
    images: list[dict[str, Any]] = [
        {"relative_path": "a.png", "caption": "fox " * 13},
        {"relative_path": "b.png", "caption": "fox " * 14},
        {"relative_path": "c.png", "caption": None},
    ]
    for image in images:
        image |= {"width": 8, "height": 8, "size_bytes": 1, "sha256": "0" * 64}
    report = DatasetReport.model_validate(
        {"folder": "x", "sha256": "0" * 64, "images": images, "problems": []}
    )
    captions, prompt = cut_texts(config, [(config.process.datasets[0], report)], cut)
    assert captions.startswith("1 of 3 captions is longer")
    assert "b.png: 1 token after" in captions
    assert prompt.startswith("sample.prompts[1] is longer than the 14 tokens")
