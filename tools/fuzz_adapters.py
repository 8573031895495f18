"""Read thousands of spoilt adapter files: ``python tools/fuzz_adapters.py [FILES] [FIRST_SEED]``.

Each must be used whole, used with a warning that names the rest, or refused with a reason; the
accidents are those of tests/engine/adapter_mutations.py. Prints a count of each and every failure.
"""

import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import StableDiffusionPipeline
from tests.engine.adapter_mutations import outcome, write
from tests.engine.tiny_models import build_stable_diffusion

from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion


def main() -> int:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the layers are tiny
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        base = build_stable_diffusion(Path(folder) / "base")
        pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
        architecture = StableDiffusion(pipeline)
        modules = [architecture.denoiser(), *architecture.text_encoders()]
        path = Path(folder) / "fuzz.safetensors"
        for seed in range(first, first + files):
            what = write(seed, pipeline, path)
            try:
                outcomes[outcome(path, modules)] += 1
            except Exception:  # noqa: BLE001 - each failure is told, and the next file is tried
                outcomes["FAILED"] += 1
                print(what)
                traceback.print_exc()
            pipeline.unload_lora_weights()
    print(dict(outcomes))
    return 1 if outcomes["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
