"""A disk that runs full while an engine writes: what the libraries raise, and what stays."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loradash.engines.diffusers.child.checkpoints import CheckpointStore, TrainingState
from loradash.engines.diffusers.child.failures import translated_errors
from loradash.errors import DiskFull
from tests.engine.conftest import LocalTraining
from tests.unit.file_sizes import files_of_at_most

TENSORS = {"a": torch.zeros(100_000)}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file(TENSORS, path),
        lambda path: torch.save(TENSORS, path),
        lambda path: path.write_bytes(bytes(100_000)),
    ],
)
def test_what_libraries_raise_is_told_as_a_full_disk(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with files_of_at_most(5000), pytest.raises(DiskFull) as caught, translated_errors():
        write(tmp_path / "file")
    assert "resumed" in caught.value.remedy


def test_a_checkpoint_that_does_not_fit_leaves_the_older_ones_and_nothing_else(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path, "0" * 64)
    small = {"a": torch.zeros(10)}
    store.write(TrainingState(1, small, {}), lambda path: save_file(small, path))
    with files_of_at_most(5000), pytest.raises(DiskFull), translated_errors():
        store.write(TrainingState(2, TENSORS, {}), lambda path: save_file(small, path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    found = store.newest(lambda path, text: pytest.fail(f"{path}: {text}"))
    assert found
    assert found[1].step == 1


def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    start: Callable[..., LocalTraining], tiny_base: Path, square_dataset: Path
) -> None:
    training = start(
        {"save.save_every": 1}, dataset=str(square_dataset), base_model=str(tiny_base), steps=2
    )
    with files_of_at_most(40_000):
        run = training.run()
    (failed,) = run.of("failed")
    assert failed.code == "disk_full"
    assert failed.resumable
    assert failed.remedy
    assert training.run().of("done")
