"""How fast is our training loop next to diffusers' own ``train_text_to_image_lora.py``?

Both train a LoRA of rank 4 on the attention layers of the embedded base model, on the same 16
images, with batch 4, AdamW, fp32 and one thread, each as a real process: ours as the engine's child
with its events, the peer as the unmodified script. The first steps are dropped; from there to the
last step the process's CPU clock and the wall clock are read at step marks. Checkpoints and samples
lie outside. The time from starting the process to its first step is a second result.

Both sides must do the same work: the run fails if their adapters have different numbers of weights,
or if their mean losses are far apart (wrong prediction type, wrong schedule).
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from bench.measure import Cost, Row, cost_rows, judged, parser, reading, report, span
from bench.workload import (
    BASE_MODEL_FOLDER,
    BATCH_SIZE,
    LEARNING_RATE,
    NEVER,
    RANK,
    REPOSITORY,
    SIZE,
    make_engine,
    prepare_training,
    training_config,
    write_images,
)
from loradash.domain.events import Done, Failed, StepDone
from loradash.runtime.child import Child

LOSSES_AGREE_WITHIN = 0.25  # of the peer's mean: they draw different noise


@dataclass
class Run:
    """One training: what it had cost when each step was done."""

    started: Cost
    marks: list[Cost] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    weights: int = 0

    def mark(self, pid: int, loss: float) -> None:
        """Read the clocks of the process at the end of a step."""
        self.marks.append(reading(pid))
        self.losses.append(loss)

    def first_step(self) -> Cost:
        """From starting the process to its first step."""
        return self.marks[0] - self.started

    def per_step(self, dropped: int) -> Cost:
        """Mean cost of a step at steady state."""
        return (self.marks[-1] - self.marks[dropped - 1]).per(len(self.marks) - dropped)


def main() -> None:
    """Run both, in turn, and report."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--reference", type=Path, required=True, help="the peer's script")
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--dropped", type=int, default=20, help="first steps left out")
    arguments = options.parse_args()
    ours: list[Run] = []
    peers: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "ours", root / "peers")
        run_ours(root, 2)  # warm the disk cache, and the peer's cache of the dataset
        run_peer(root, arguments.reference, 2)
        for number in range(arguments.repeats):
            if number % 2:  # who goes first changes, so that a drift of the machine cancels out
                peers.append(run_peer(root, arguments.reference, arguments.steps))
            ours.append(run_ours(root, arguments.steps))
            if not number % 2:
                peers.append(run_peer(root, arguments.reference, arguments.steps))
            print(f"repeat {number + 1}: {_short(ours[-1], peers[-1], arguments.dropped)}",
                  file=sys.stderr)  # fmt: skip
    check_same_work(ours, peers)
    our_steps = [run.per_step(arguments.dropped) for run in ours]
    peer_steps = [run.per_step(arguments.dropped) for run in peers]
    rows = [
        judged(
            Row("training, steps per CPU second", "", [1 / step.cpu_s for step in our_steps],
                [1 / step.cpu_s for step in peer_steps]),
            "at least 1.3", lambda ratio: ratio >= 1.3,
        ),
        Row("training, steps per wall second", "", [1 / step.wall_s for step in our_steps],
            [1 / step.wall_s for step in peer_steps]),
        *cost_rows("process start to first step", [run.first_step() for run in ours],
                   [run.first_step() for run in peers]),
    ]  # fmt: skip
    report(
        rows,
        arguments,
        steps=arguments.steps,
        dropped=arguments.dropped,
        weights=ours[0].weights,
        mean_loss_ours=span([statistics.mean(run.losses) for run in ours]),
        mean_loss_peer=span([statistics.mean(run.losses) for run in peers]),
    )


def run_ours(root: Path, steps: int) -> Run:
    """Train with the engine's child, as the supervisor starts it."""
    engine = make_engine()
    folder = prepare_training(engine, training_config(root / "ours", steps), root / "trainings")
    command = engine.training_command(folder)
    run = Run(Cost(0.0, reading().wall_s))
    log = folder / "log.txt"
    with Child(command.argv, command.environment, command.working_directory, log) as child:
        while not child.ended:
            line = child.next_line(1.0)
            event = engine.parse(line) if line else None
            if isinstance(event, StepDone):
                run.mark(child.pid, event.loss)
            elif isinstance(event, Failed):
                raise RuntimeError(f"our training failed: {event.message}")
            elif isinstance(event, Done):
                run.weights = weights_in(Path(event.path or ""))
    return run


def run_peer(root: Path, script: Path, steps: int) -> Run:
    """Train with the reference script."""
    output = root / "peer-output"
    read_end, write_end = os.pipe()
    started = reading().wall_s
    with (root / "peer-log.txt").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "bench.reference_process", str(write_end), str(script),
                "--pretrained_model_name_or_path", str(BASE_MODEL_FOLDER),
                "--train_data_dir", str(root / "peers"),
                "--cache_dir", str(root / "peer-cache"),
                "--output_dir", str(output),
                "--resolution", str(SIZE),
                "--train_batch_size", str(BATCH_SIZE),
                "--rank", str(RANK),
                "--learning_rate", str(LEARNING_RATE),
                "--lr_warmup_steps", "0",
                "--max_train_steps", str(steps),
                "--checkpointing_steps", str(NEVER),
                "--mixed_precision", "no",
                "--seed", "0",
            ],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
        )  # fmt: skip
    os.close(write_end)
    run = Run(Cost(0.0, started))
    with os.fdopen(read_end) as marks:
        for line in marks:
            run.mark(process.pid, float(line.split()[1]))
    if process.wait() != 0 or len(run.marks) != steps:
        raise RuntimeError(f"the reference failed:\n{(root / 'peer-log.txt').read_text()[-2000:]}")
    run.weights = weights_in(output / "pytorch_lora_weights.safetensors")
    return run


def weights_in(path: Path) -> int:
    """Number of LoRA weights in a file, without the alphas."""
    with safe_open(path, framework="np") as file:
        shapes = [
            file.get_slice(key).get_shape()
            for key in file.keys()  # noqa: SIM118 - not a mapping
            if not key.endswith(".alpha")
        ]
    return sum(math.prod(shape) for shape in shapes)


def check_same_work(ours: list[Run], peers: list[Run]) -> None:
    """Raise if the two sides trained different things."""
    if ours[0].weights != peers[0].weights:
        raise RuntimeError(f"we train {ours[0].weights} weights, the peer {peers[0].weights}")
    our_loss = statistics.mean(loss for run in ours for loss in run.losses)
    peer_loss = statistics.mean(loss for run in peers for loss in run.losses)
    if abs(our_loss - peer_loss) > LOSSES_AGREE_WITHIN * peer_loss:
        raise RuntimeError(f"our mean loss is {our_loss:.3f}, the peer's {peer_loss:.3f}")


def _short(ours: Run, peer: Run, dropped: int) -> str:
    a, b = ours.per_step(dropped), peer.per_step(dropped)
    return f"{a.cpu_s * 1e3:.1f} and {b.cpu_s * 1e3:.1f} CPU ms a step, {b.cpu_s / a.cpu_s:.2f}x"


if __name__ == "__main__":
    main()
