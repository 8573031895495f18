"""Spoilt adapter files: used whole, used with a word about the rest, or refused by name.

`tools/fuzz_adapters.py` does the same with as many files as one likes.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from tests.engine.adapter_mutations import outcome, write

FILES = 150


@pytest.mark.filterwarnings("ignore")
def test_no_spoilt_adapter_is_used_silently_or_breaks_the_reader(
    tiny_base: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    architecture = StableDiffusion(pipeline)
    modules = [architecture.denoiser(), *architecture.text_encoders()]
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    outcomes: Counter[str] = Counter()
    path = tmp_path / "fuzz.safetensors"
    for seed in range(FILES):
        what = write(seed, pipeline, path)
        try:
            outcomes[outcome(path, modules)] += 1
        except Exception as error:
            raise AssertionError(what) from error
        pipeline.unload_lora_weights()
    assert set(outcomes) == {"used", "partly used", "refused"}
    after = pipeline.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
