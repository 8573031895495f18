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


OTHER = "train_01k9x3q4zt8m2v7c0hdf"


def methods(workspace):
    return (
        workspace.training,
        workspace.generation,
        workspace.lora,
        workspace.training_data,
    )


def test_each_process_has_folders_of_its_own(workspace):
    folders = [folder_of(id_) for folder_of in methods(workspace) for id_ in (ID, OTHER)]
    assert len(set(folders)) == 8
    assert all(folder.is_relative_to(workspace.root) for folder in folders)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/etc", "train_x", ID.upper(), f"{ID}/x"])
def test_a_text_that_is_no_id_has_no_folder(workspace, text):
    for folder_of in (*methods(workspace), workspace.folders_of):
        with pytest.raises(NotFound):
            folder_of(text)


def test_only_folders_of_ids_are_processes_and_the_oldest_is_first(workspace):
    assert workspace.process_ids() == []
    workspace.ensure()
    assert workspace.process_ids() == []
    for name in (OTHER, ID, f".{ID}.partial", "notes"):
        (workspace.root / "output/training" / name).mkdir()
    assert workspace.process_ids() == [ID, OTHER]


@pytest.mark.parametrize("method", ["training", "generation", "lora", "training_data"])
def test_a_process_with_any_folder_is_listed_once_and_all_its_folders_are_known(workspace, method):
    folder = getattr(workspace, method)(ID)
    folder.mkdir(parents=True)
    assert workspace.process_ids() == [ID]
    assert any(folder.is_relative_to(known) for known in workspace.folders_of(ID))
    for method_of_another in methods(workspace):
        method_of_another(ID).mkdir(parents=True, exist_ok=True)
    assert workspace.process_ids() == [ID]


def test_a_process_folder_that_is_a_link_is_refused(workspace, tmp_path):
    workspace.ensure()
    for kind in ("output/training", "output/generation", "models/loras", "training_data"):
        (workspace.root / kind / ID).symlink_to(tmp_path)
    for folder_of in (*methods(workspace), workspace.folders_of):
        with pytest.raises(InvalidSettings, match="is a link"):
            folder_of(ID)


def test_a_root_that_can_not_be_written_names_its_variable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidSettings) as caught:
        Workspace(tmp_path / "file" / "below").ensure()
    assert "WORKSPACE_PATH" in caught.value.remedy
