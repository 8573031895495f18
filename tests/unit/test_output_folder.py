"""Files that commands write where their users say: none is written over, none is half there."""

import os

import pytest
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.cli.output_folder import NamedFile, OutputFolder, copied, put_in_place
from loradash.errors import DiskFull, InvalidSettings, ResultsNotStored

from .file_sizes import files_of_at_most


def put(text):
    return lambda path: path.write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_taken_name_gets_a_number_and_the_first_file_stays(tmp_path):
    folder = OutputFolder(tmp_path / "deep" / "out")
    written = [folder.write("a.b.png", put(text)) for text in ("one", "two", "three")]
    assert [path.name for path in written] == ["a.b.png", "a.b-2.png", "a.b-3.png"]
    assert [path.read_text() for path in written] == ["one", "two", "three"]
    assert names(folder.path) == ["a.b-2.png", "a.b-3.png", "a.b.png"]


def test_the_same_file_is_not_written_twice(tmp_path):
    folder = OutputFolder(tmp_path)
    first = folder.write("cat.png", put("cat"))
    folder.write("cat.png", put("dog"))
    assert folder.write("cat.png", put("cat")) == first
    assert folder.write("cat.png", put("dog")).name == "cat-2.png"
    assert names(tmp_path) == ["cat-2.png", "cat.png"]


@pytest.mark.parametrize("make", [os.mkdir, lambda path: path.symlink_to("/nowhere/at/all")])
def test_a_name_taken_by_a_folder_or_a_broken_link_is_taken(tmp_path, make):
    make(tmp_path / "cat.png")
    assert OutputFolder(tmp_path).write("cat.png", put("cat")).name == "cat-2.png"
    assert not os.path.lexists("/nowhere/at/all")


def test_a_file_that_breaks_off_or_is_another_one_leaves_nothing(tmp_path):
    folder = OutputFolder(tmp_path)
    with pytest.raises(ZeroDivisionError):
        folder.write("cat.png", lambda path: path.write_text("half") / 0)
    with pytest.raises(ResultsNotStored, match=r"cat\.png"):
        folder.write("cat.png", put("cat"), sha256="0" * 64)
    with files_of_at_most(1000), pytest.raises(DiskFull, match=f"--output {tmp_path}: the disk"):
        folder.write("cat.png", put("x" * 2000))
    assert names(tmp_path) == []


def test_names_are_not_taken_over_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    folder = OutputFolder(tmp_path)
    assert [folder.write("a.txt", put(text)).name for text in "xyz"] == [
        "a.txt", "a-2.txt", "a-3.txt",
    ]  # fmt: skip
    (tmp_path / "new").write_text("new")
    assert not put_in_place(tmp_path / "new", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_what_keeps_files_from_being_written_is_found_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettings, match=r"--output .*file isn't a folder"):
        OutputFolder(tmp_path / "file" / "below").check()
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(InvalidSettings, match="broken isn't a folder"):
        OutputFolder(tmp_path / "broken").check()
    with pytest.raises(InvalidSettings, match="--output"):
        OutputFolder("/proc/self").check()
    with files_of_at_most(1000), pytest.raises(DiskFull):
        OutputFolder(tmp_path / "new").check()
    OutputFolder(tmp_path / "new" / "below").check()
    assert names(tmp_path) == ["broken", "file"]


def test_copies_that_fail_are_named_and_the_others_are_there(tmp_path):
    (tmp_path / "small").write_text("x")
    (tmp_path / "large").write_text("x" * 2000)
    folder = OutputFolder(tmp_path / "out")
    with files_of_at_most(1000):
        paths, failed = copied(folder, [tmp_path / "large", tmp_path / "small"], "They are kept.")
    assert names(folder.path) == [path.name for path in paths] == ["small"]
    assert failed.message.startswith("1 of 2 files")
    assert "large" in failed.problems[0]
    assert failed.remedy == "They are kept."


def test_a_named_file_must_not_exist_and_is_told_by_name(tmp_path):
    file = NamedFile(tmp_path / "data.zip")
    file.check()
    assert file.write(put("one")).read_text() == "one"
    for action in (file.check, lambda: file.write(put("two"))):
        with pytest.raises(InvalidSettings, match=r"data\.zip exists"):
            action()
    assert names(tmp_path) == ["data.zip"]
    assert file.path.read_text() == "one"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dataset", "nowhere", "--base-model", "emoji-base"),
        ("generate", "--prompt", "x", "--base-model", "nowhere"),
        ("demo",),
        ("datasets", "zip", "nothing"),
    ],
)
def test_commands_look_at_their_output_before_anything_else(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    refused = CliRunner().invoke(app, [*command, "--output", "file"])
    assert isinstance(refused.exception, InvalidSettings)
    assert "--output" in refused.exception.message
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["train", "generate"])
def test_an_output_that_nobody_would_wait_for_is_refused(command):
    refused = CliRunner().invoke(app, [command, "--detach", "--output", "out"])
    assert refused.exit_code == 2
    assert "--output" in refused.output
