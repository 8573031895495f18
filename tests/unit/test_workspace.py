import pytest

from loradash.errors import InvalidSettings, NotFound
from loradash.runtime.workspace import Workspace

ID = "train_01k9x3q4zt8m2v7c0hde"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


def test_the_layout_is_created_once_and_kept(workspace):
    workspace.ensure()
    (workspace.root / "logs" / "x").write_text("x")
    workspace.ensure()
    assert (workspace.root / "logs" / "x").read_text() == "x"
    assert (workspace.root / "output" / "training").is_dir()


def test_each_process_has_folders_of_its_own(workspace):
    other = "train_01k9x3q4zt8m2v7c0hdf"
    for folder_of in (workspace.training, workspace.generation, workspace.lora):
        assert folder_of(ID).is_relative_to(workspace.root)
        assert folder_of(ID) != folder_of(other)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/etc", "train_x", ID.upper(), f"{ID}/x"])
def test_a_text_that_is_no_id_has_no_folder(workspace, text):
    for folder_of in (workspace.training, workspace.generation, workspace.lora):
        with pytest.raises(NotFound):
            folder_of(text)


def test_only_folders_of_ids_are_trainings_and_the_newest_is_first(workspace):
    assert workspace.trainings() == []
    workspace.ensure()
    for name in (ID, "train_01k9x3q4zt8m2v7c0hdf", f".{ID}.partial", "notes"):
        (workspace.root / "output/training" / name).mkdir()
    assert workspace.trainings() == ["train_01k9x3q4zt8m2v7c0hdf", ID]


def test_a_root_that_can_not_be_written_names_its_variable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidSettings) as caught:
        Workspace(tmp_path / "file" / "below").ensure()
    assert "WORKSPACE_PATH" in caught.value.remedy
