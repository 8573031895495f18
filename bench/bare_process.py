"""The peer of generation: a process with diffusers' pipeline and nothing around it.

It reads one JSON object a line from stdin and answers each with one line when its image is written.
"""

import json
import sys
from typing import Any

import torch
from diffusers import StableDiffusionPipeline


def main() -> None:
    """Load the base model, then draw on request."""
    folder = sys.argv[1]
    pipeline = _load(folder)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("reload"):
            pipeline = _load(folder)
        if request.get("unload_lora"):
            pipeline.unload_lora_weights()
        if request.get("lora"):
            pipeline.load_lora_weights(request["lora"])
        image = pipeline(
            request["prompt"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance_scale"],
            width=request["size"],
            height=request["size"],
            generator=torch.Generator("cpu").manual_seed(request["seed"]),
        ).images[0]
        image.save(request["path"])
        print("drawn", flush=True)


def _load(folder: str) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


if __name__ == "__main__":
    main()
