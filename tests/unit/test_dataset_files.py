"""The rules by which files become images and captions of a dataset, and which belong together."""

import pytest

from loradash.domain.dataset_files import (
    CAPTION_SUFFIXES,
    caption_suffixes,
    file_reason,
    file_type,
    folder_reason,
    paired,
    sorted_out,
)


@pytest.mark.parametrize("name", ["a.PNG", "b.Jfif", "c.TIF", "x/d.HEIC", "e.avif", "f.hif"])
def test_endings_of_images_are_known_in_any_letter_case(name):
    assert file_type(name) == "image"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.png", None), ("a.txt", None), ("A.CAPTION", None), (".a.png", "hidden"),
        ("._a.png", "system_file"), ("THUMBS.DB", "system_file"), ("Desktop.ini", "system_file"),
        ("a-masklabel.PNG", "helper_file"), ("a.jxl", "image_format"), ("a.CR2", "image_format"),
        ("a.npz", "other_kind"), ("metadata.jsonl", "other_kind"), ("a", "other_kind"),
        ("a.tar.gz", "archive"), ("masklabel.png", None), ("a.mov", "other_kind"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_taken_has_a_reason(name, reason):
    assert file_reason(name) == reason


@pytest.mark.parametrize(
    "name",
    ["_controls", "@eaDir", "@EADIR", "#recycle", "lost+found", "$RECYCLE.BIN", "_latent_cache",
     "_t_e_cache", "_clip_vision_cache", "_face_id_cache", "System Volume Information"],
)  # fmt: skip
def test_folders_of_other_programs_are_not_looked_into(name):
    assert folder_reason(name) == "helper_folder"
    assert folder_reason(f"my {name}") is None


@pytest.mark.parametrize("name", [".thumbnails", ".git", ".ipynb_checkpoints", ".Trash-1000"])
def test_hidden_folders_are_not_looked_into(name):
    assert folder_reason(name) == "hidden"


@pytest.mark.parametrize("name", ["cats", "cache", "my_cache", "controls", "10_cats", "_cats"])
def test_folders_of_people_are_looked_into(name):
    assert folder_reason(name) is None


def test_files_below_a_folder_that_is_left_out_are_named_by_it_once():
    found = sorted_out(["a.png", "x/@eaDir/a.png/1.jpg", "x/@eaDir/b.png/1.jpg", "x/b.png"])
    assert found.taken == ("a.png", "x/b.png")
    (one,) = found.left_out
    assert (one.reason, one.count, one.names) == ("helper_folder", 1, ("x/@eaDir/",))


PAIRS = [
    ("a.png", ["a.txt"], "a.txt"),
    ("A.PNG", ["A.TXT"], "A.TXT"),
    ("A.PNG", ["a.txt"], "a.txt"),
    ("a.png", ["A.TXT"], "A.TXT"),
    ("a.png", ["a.caption"], "a.caption"),
    ("a.png", ["a.caption", "a.txt"], "a.txt"),
    ("a.png", ["a.caption", "A.TXT"], "A.TXT"),
    ("a.png", ["a.png.txt"], "a.png.txt"),
    ("a.png", ["a.png.txt", "a.txt"], "a.txt"),
    ("a.b.png", ["a.b.txt"], "a.b.txt"),
    ("a.b.png", ["a.txt"], None),
    ("x/a.png", ["a.txt"], None),
    ("X/a.png", ["x/a.txt"], "x/a.txt"),
    ("\u00e9.png", ["e\u0301.txt"], "e\u0301.txt"),
    ("stra\u00dfe.png", ["STRASSE.txt"], "STRASSE.txt"),
    ("a.png", ["a.TXT", "A.txt"], "A.txt"),
    ("a.png", ["b.txt"], None),
]


@pytest.mark.parametrize(("image", "captions", "expected"), PAIRS)
def test_an_image_has_the_caption_that_people_mean(image, captions, expected):
    pairs = paired([image], captions)
    assert pairs.caption_of == {image: expected}
    left = set(captions) - {expected}
    assert left == {*pairs.unused, *pairs.lost}
    assert not set(pairs.unused) & set(pairs.lost)


def test_a_caption_beside_the_one_that_is_used_is_not_lost_but_unused():
    assert paired(["a.png"], ["a.txt", "a.caption", "b.txt"])[1:] == (("a.caption",), ("b.txt",))


def test_names_that_differ_in_letter_case_alone_each_have_their_own_caption():
    pairs = paired(["A.jpg", "a.jpg"], ["A.txt", "a.txt"])
    assert pairs.caption_of == {"A.jpg": "A.txt", "a.jpg": "a.txt"}
    pairs = paired(["A.jpg", "a.jpg"], ["a.txt"])
    assert pairs.caption_of == {"A.jpg": None, "a.jpg": "a.txt"}


def test_a_caption_of_several_images_is_known_as_shared():
    pairs = paired(["a.jpg", "a.png", "b.png"], ["a.txt", "b.txt"])
    assert pairs.shared == {"a.txt": ["a.jpg", "a.png"]}


def test_the_ending_that_is_asked_for_goes_first_and_one_of_the_users_own_stands_alone():
    assert caption_suffixes(".txt") == CAPTION_SUFFIXES == (".txt", ".caption")
    assert caption_suffixes(".CAPTION") == (".caption", ".txt")
    assert caption_suffixes(".tags") == (".tags",)
    assert paired(["a.png"], ["a.TAGS", "a.txt"], (".tags",)).caption_of == {"a.png": "a.TAGS"}
    assert file_reason("a.txt", (".tags",)) == "unused_caption"
