"""Every optimizer by its name: it learns, and goes on exactly from what a checkpoint holds."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from loradash.domain.optimizers import OptimizerName
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.child.checkpoints import (
    TrainingState,
    load_optimizer_state,
    optimizer_state,
)
from loradash.engines.diffusers.child.optimizers import effective_rate, make_optimizer
from tests.engine.conftest import Recorder

SETTINGS: dict[str, dict[str, Any]] = {
    "prodigy": {"d0": 1e-2, "growth_rate": 1.5, "slice_p": 2, "weight_decay": 0.01},
    "adafactor": {"beta1": 0.9, "weight_decay": 0.01},
    "lion": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "adagrad": {"lr_decay": 0.1},
    "adam": {"amsgrad": True},
}


class Toy:
    """Two matrices that learn to be others, with an optimizer of the config's kind."""

    def __init__(self, name: str) -> None:
        source = torch.Generator().manual_seed(3)
        self.parameters = [
            torch.nn.Parameter(torch.randn(6, 4, generator=source)),
            torch.nn.Parameter(torch.zeros(4, 6)),
        ]
        self.targets = [torch.randn(shape, generator=source) for shape in ((6, 4), (4, 6))]
        document = {"dataset": "x", "base_model": "emoji-base", "optimizer": name,
                    "learning_rate": 0.02}  # fmt: skip
        params = SETTINGS.get(name.removesuffix("8bit"), {})
        train = parse_training(document, {"train.optimizer_params": params}).process.train
        self.recorder = Recorder()
        groups = [{"params": [one], "lr": train.unet_rate} for one in self.parameters]
        self.optimizer = make_optimizer(groups, train, torch.device("cpu"), self.recorder)  # type: ignore[arg-type]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> torch.Tensor:
        pairs = zip(self.parameters, self.targets, strict=True)
        return torch.stack([(one - target).square().sum() for one, target in pairs]).sum()


def restored(toy: Toy, name: str, folder: Path) -> Toy:
    """Another toy that has what would stand in a checkpoint of this one."""
    tensors, scalars = optimizer_state(toy.optimizer)
    save_file(tensors, folder / "state.safetensors")
    other = Toy(name)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters, toy.parameters, strict=True):
            mine.copy_(theirs)
    values = json.loads(json.dumps(scalars))
    load_optimizer_state(
        other.optimizer, TrainingState(7, load_file(folder / "state.safetensors"), values)
    )
    return other


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimizer_learns_and_goes_on_exactly_from_a_checkpoint(
    name: str, tmp_path: Path
) -> None:
    undisturbed = Toy(name)
    before = undisturbed.loss().item()
    undisturbed.run(7)
    continued = restored(undisturbed, name, tmp_path)
    undisturbed.run(5)
    continued.run(5)
    assert undisturbed.loss().item() < before
    for mine, theirs in zip(undisturbed.parameters, continued.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert effective_rate(undisturbed.optimizer) == effective_rate(continued.optimizer)


@pytest.mark.parametrize("name", ["adamw8bit", "adam8bit", "lion8bit", "prodigy8bit"])
def test_eight_bits_without_a_gpu_are_thirty_two_with_a_warning(name: str) -> None:
    toy = Toy(name)
    assert toy.recorder.codes == {"optimizer_fallback"}
    assert type(toy.optimizer).__name__.lower() == name.removesuffix("8bit")


def test_the_rate_that_prodigy_finds_is_the_one_that_is_shown() -> None:
    toy = Toy("prodigy")
    toy.run(20)
    group = toy.optimizer.param_groups[0]
    assert group["d"] > 1e-2
    assert effective_rate(toy.optimizer) == group["lr"] * group["d"]
