"""Runs diffusers' own training script, unmodified, and says when each step is done.

Usage: ``python -m bench.reference_process FD SCRIPT [ARGUMENTS OF THE SCRIPT]``. For each step one
line ``step loss`` goes to the file descriptor FD: it is written where the script calls
``Accelerator.log``, once a step and after the optimizer.
"""

import os
import runpy
import sys
from typing import Any

# Libraries ask at import whether there is a torchvision; they must not see the stand-in.
import accelerate
import datasets  # noqa: F401
import diffusers  # noqa: F401
import transformers

from bench.torchvision_stand_in import as_module


def main() -> None:
    """Put the stand-in and the step marks in place, then run the script."""
    file_descriptor, script = int(sys.argv[1]), sys.argv[2]
    transformers.utils.is_torchvision_available()
    module = as_module()
    sys.modules["torchvision"] = module
    sys.modules["torchvision.transforms"] = module.transforms
    original = accelerate.Accelerator.log

    def log(self: Any, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        original(self, values, step=step, **more)
        os.write(file_descriptor, f"{step} {values['train_loss']}\n".encode())

    accelerate.Accelerator.log = log
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
