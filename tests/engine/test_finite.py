"""What isn't finite is never a result: not as an adapter, a checkpoint or latents."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loradash.engines.diffusers.child.checkpoints import CheckpointStore, TrainingState
from loradash.engines.diffusers.child.finite import not_finite, require_finite_adapter
from loradash.errors import LossNotFinite
from tests.engine.conftest import LocalTraining

Start = Callable[..., LocalTraining]
NAN = float("nan")


@pytest.fixture
def training(start: Start, tiny_base: Path, square_dataset: Path) -> Callable[..., LocalTraining]:
    def submit(full: dict[str, object] | None = None, **short: object) -> LocalTraining:
        return start(full, dataset=str(square_dataset), base_model=str(tiny_base), **short)

    return submit


def test_an_adapter_that_overflows_as_it_is_stored_fails_the_training(
    training: Callable[..., LocalTraining],
) -> None:
    run = (one := training(steps=1, learning_rate=1e5)).run()
    (failed,) = run.of("failed")
    assert failed.code == "loss_not_finite"
    assert "too large for float16" in failed.message
    assert "learning rate" in failed.remedy
    assert not list(one.folder.glob("lora/*"))
    assert one.checkpoints == []


def test_the_same_weights_are_kept_where_they_fit(training: Callable[..., LocalTraining]) -> None:
    one = training({"save.dtype": "float32"}, steps=1, learning_rate=1e5)
    assert one.run().of("done")
    assert not not_finite(load_file(one.adapter))


def test_a_moving_average_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "0" * 64)
    good = {"parameter/a": torch.ones(3)}
    store.write(TrainingState(1, good, {}), lambda path: save_file(good, path))
    bad = {**good, "average/a": torch.tensor([1.0, NAN])}
    with pytest.raises(LossNotFinite, match="average/a"):
        store.write(TrainingState(2, bad, {}), lambda path: save_file(good, path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_checkpoint_of_an_older_version_with_nan_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, "0" * 64)
    good, bad = {"a": torch.ones(3)}, {"a": torch.tensor([NAN])}
    store.write(TrainingState(1, good, {}), lambda path: save_file(good, path))
    name = "loradash.engines.diffusers.child.checkpoints.require_finite_state"
    monkeypatch.setattr(name, lambda tensors, step: None)
    store.write(TrainingState(2, bad, {}), lambda path: save_file(bad, path))
    told: list[str] = []
    found = store.newest(lambda path, text: told.append(f"{path.name} {text}"))
    assert found
    assert found[1].step == 1
    assert told == ["step-000000002 a holds NaN or infinity"]


def test_whole_numbers_and_scalars_are_looked_at_as_they_are() -> None:
    tensors = {"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor(NAN), "c": torch.ones(0)}
    assert not_finite(tensors) == ["b"]
    with pytest.raises(LossNotFinite, match="1 tensor of 3 holds NaN"):
        require_finite_adapter(tensors, tensors)


def test_cached_latents_with_nan_are_encoded_again(
    training: Callable[..., LocalTraining],
) -> None:
    one = training({"datasets.0.cache_latents_to_disk": True}, steps=4, save_every=2)
    one.crash_at(3)
    caches = list(one.folder.glob("cache/*.safetensors"))
    assert caches
    for path in caches:
        save_file({name: torch.full_like(one, NAN) for name, one in load_file(path).items()}, path)
    assert one.run().of("done")
