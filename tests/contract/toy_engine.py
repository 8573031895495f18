"""A third engine, as somebody would add it who has read docs/engines.md: it only trains.

Its files are called as nobody else's are, and its adapters aren't safetensors. What its steps
compute is the sum of their numbers.
"""

import json
import sys
from pathlib import Path

from loradash.domain.events import parse_event
from loradash.engines.engine import Artifact, Checkpoint, Command
from loradash.errors import InvalidAdapter

CHILD = """
import json, os, signal, sys
pipe = int(os.environ["LORADASH_EVENTS_FD"])
def emit(kind, **fields):
    os.write(pipe, json.dumps({"type": kind, **fields}).encode() + b"\\n")
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
order = json.load(open("order.txt"))
saves = sorted(os.listdir("saves"), key=int) if os.path.isdir("saves") else []
step = total = 0
if saves:
    total, step = json.load(open(f"saves/{saves[-1]}/deep/sum")), int(saves[-1])
    emit("resumed", step=step, path=f"saves/{saves[-1]}")
while step < order["steps"]:
    step += 1
    total += step
    emit("step", step=step, total_steps=order["steps"], loss=1 / step, learning_rate=1)
    os.makedirs(f"saves/{step}/deep", exist_ok=True)
    json.dump(total, open(f"saves/{step}/deep/sum", "w"))
    emit("checkpoint", step=step, path=os.path.abspath(f"saves/{step}"), size_bytes=1)
    if step == order["crash_at"] and len(saves) == 0:
        os._exit(3)
text = f"TOY {total}".encode()
os.makedirs("finished", exist_ok=True)
open("finished/" + order["name"] + ".toy", "wb").write(text)
import hashlib
emit("done", step=step, path=os.path.abspath("finished/" + order["name"] + ".toy"),
     sha256=hashlib.sha256(text).hexdigest())
"""


class ToyEngine:
    """Trains by adding numbers."""

    name = "toy"
    version = "0.7"

    def require_installed(self):
        pass

    def parse(self, line):
        return parse_event(line)

    def adapter_metadata(self, path):
        if not path.read_bytes().startswith(b"TOY"):
            raise InvalidAdapter(f"{path.name} isn't a toy", remedy="Train again.")
        return {}

    verify_adapter = adapter_metadata

    def check_training(self, config):
        return (f"the toy takes networks of type {config.process.network.type}",)

    def native_size(self, config):
        return None

    def check_texts(self, config, data):
        return ()

    def write_training_job(self, process_id, config, reports, folder, created_at):
        order = {
            "name": config.name, "steps": config.process.train.updates, "engine": self.name,
            "crash_at": config.process.save.save_every,
        }  # fmt: skip
        self.job_file(folder).write_text(json.dumps(order))

    def training_command(self, folder):
        return Command(argv=(sys.executable, "-S", "-E", "-c", CHILD), working_directory=folder)

    def job_file(self, folder):
        return folder / "order.txt"

    def checkpoint_folder(self, folder):
        return folder / "saves"

    def has_checkpoint(self, folder):
        return bool(self.checkpoints(folder))

    def checkpoints(self, folder):
        found = sorted((folder / "saves").glob("*"), key=lambda path: int(path.name))
        return [Checkpoint(one, (one / "deep/sum",)) for one in found]

    def artifacts(self, folder: Path):
        return [Artifact("lora", path) for path in sorted(folder.glob("finished/*.toy"))]
