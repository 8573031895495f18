"""Let one program's own loader read all files; print what it made of each, as JSON."""

import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from made_files import LEVELS
from safetensors import safe_open
from safetensors.torch import load_file
from stand_ins import stand_in
from torch import Tensor, nn

COMFYUI_CONFIG = {
    "num_res_blocks": [2] * len(LEVELS), "channel_mult": [1, 1, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
"""ComfyUI's words for the UNet of `made_files`."""

Answer = tuple[dict[str, Tensor], set[str]]
"""What is added to each layer by its name in the pipeline, and the keys that weren't used."""


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    """The weights of all linear layers and convolutions by their names, without `text_model`."""
    return {
        f"{part}.{name.removeprefix('text_model.')}": layer.weight.detach().clone()
        for part in ("unet", "text_encoder")
        for name, layer in getattr(pipeline, part).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def diffusers_reader(*_: Path) -> Callable[[Path, Any], Answer]:
    """A script of a user: `load_lora_weights`."""

    def read(file: Path, pipeline: Any) -> Answer:
        before = weights_of(pipeline)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora(components=["unet", "text_encoder"])
        pipeline.unload_lora_weights()
        after = weights_of(pipeline)
        return {name: after[name] - before[name] for name in before}, set()

    return read


def sd_scripts_reader(checkout: Path, _: Path) -> Callable[[Path, Any], Answer]:
    """networks/lora.py: `create_network_from_weights`, `load_weights` and `merge_to`."""
    sys.path.insert(0, str(checkout))
    stand_in("torchvision", "torchvision.transforms", "cv2", "einops")
    lora = importlib.import_module("networks.lora")

    def read(file: Path, pipeline: Any) -> Answer:
        text = nn.Module()  # transformers 5 has dropped a level that sd-scripts' transformers has
        text.text_model = pipeline.text_encoder
        before = weights_of(pipeline)
        network, state = lora.create_network_from_weights(
            1.0, str(file), None, text, pipeline.unet, for_inference=True
        )
        network.merge_to(text, pipeline.unet, state, torch.float32, "cpu")
        after = weights_of(pipeline)
        again, _ = lora.create_network_from_weights(1.0, str(file), None, text, pipeline.unet)
        again.apply_to(text, pipeline.unet)
        unused = set(again.load_weights(str(file)).unexpected_keys)
        return {name: after[name] - before[name] for name in before}, unused

    return read


def original_names(comfyui: Path) -> dict[str, str]:
    """Names in Stable Diffusion's original UNet by diffusers' names, of a UNet of four levels."""
    return _comfy_module(comfyui, "utils").unet_to_diffusers(COMFYUI_CONFIG)


def _comfy_module(comfyui: Path, name: str) -> Any:
    if str(comfyui) not in sys.path:
        sys.path.insert(0, str(comfyui))
        importlib.import_module("comfy")
        stand_in("einops", "comfy.model_base")
        importlib.import_module("comfy.cli_args").args.cpu = True
    return importlib.import_module(f"comfy.{name}")


def comfyui_reader(checkout: Path, _: Path) -> Callable[[Path, Any], Answer]:
    """comfy/lora.py: both key maps, `load_lora` and `calculate_weight`."""
    lora = _comfy_module(checkout, "lora")
    convert = _comfy_module(checkout, "lora_convert").convert_lora
    names = original_names(checkout)

    def read(file: Path, pipeline: Any) -> Answer:
        unet, text = pipeline.unet.state_dict(), pipeline.text_encoder.state_dict()
        clip = "clip_h" if pipeline.unet.config.cross_attention_dim == 1024 else "clip_l"
        places = {f"diffusion_model.{names[key]}": f"unet.{key}" for key in names if key in unet}
        model = {place: unet[key.removeprefix("unet.")] for place, key in places.items()}
        text_model = {f"{clip}.transformer.text_model.{key}": text[key] for key in text}
        places |= {
            place: f"text_encoder.{key}" for place, key in zip(text_model, text, strict=True)
        }
        config = SimpleNamespace(unet_config=COMFYUI_CONFIG)
        keys = lora.model_lora_keys_unet(_Holder(model, config), {})
        keys = lora.model_lora_keys_clip(_Holder(text_model, config), keys)
        unused: set[str] = set()
        handler = _Listener(unused)
        logging.getLogger().addHandler(handler)
        patches = lora.load_lora(convert(load_file(file)), keys)
        logging.getLogger().removeHandler(handler)
        deltas = {}
        for place, patch in patches.items():
            weight = {**model, **text_model}[place].float()
            new = lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), place)
            deltas[places[place].removesuffix(".weight")] = new - weight
        return deltas, unused

    return read


class _Holder:
    """As much of a model as the key maps ask for."""

    def __init__(self, state: dict[str, Tensor], config: Any) -> None:
        self._state = state
        self.model_config = config

    def state_dict(self) -> dict[str, Tensor]:
        return self._state


class _Listener(logging.Handler):
    """Hears which keys ComfyUI didn't load."""

    def __init__(self, unused: set[str]) -> None:
        super().__init__()
        self._unused = unused

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "not loaded: " in text:
            self._unused.add(text.partition("not loaded: ")[2])


def a1111_reader(checkout: Path, comfyui: Path) -> Callable[[Path, Any], Answer]:
    """extensions-builtin/Lora: `load_network` and `network_apply_weights`."""
    names = original_names(comfyui)
    sys.path.insert(0, str(checkout / "extensions-builtin/Lora"))
    for name in ("gradio", "modules"):
        stand_in(name)
    stand_in(*(f"modules.{name}" for name in (
        "shared", "devices", "sd_models", "errors", "scripts", "sd_hijack", "cache", "hashes",
        "patches", "textual_inversion", "textual_inversion.textual_inversion", "models",
        "models.sd3", "models.sd3.mmdit",
    )))  # fmt: skip
    devices, sd_models = sys.modules["modules.devices"], sys.modules["modules.sd_models"]
    devices.cpu, devices.dtype = torch.device("cpu"), torch.float32
    sd_models.read_state_dict = load_file
    sd_models.read_metadata_from_safetensors = _metadata
    sys.modules["modules.cache"].cached_data_for_file = lambda *call: call[-1]()
    shared = sys.modules["modules.shared"]
    empty = str(Path(sys.argv[2], "empty"))
    shared.cmd_opts = SimpleNamespace(lora_dir=empty, lyco_dir_backcompat=empty)
    shared.walk_files = lambda *_, **__: []
    network, networks = (importlib.import_module(name) for name in ("network", "networks"))
    networks.extra_network_lora = SimpleNamespace(errors={})

    def read(file: Path, pipeline: Any) -> Answer:
        model, places = _original_model(pipeline, names)
        shared.sd_model = model.requires_grad_(False)
        networks.assign_network_names_to_compvis_modules(model)
        disk = network.NetworkOnDisk("ours", str(file))
        if disk.sd_version.name.lower() != file.name[:3]:  # it hides those of another version
            raise AssertionError(f"{file.name} is taken to be for {disk.sd_version}")
        net = networks.load_network("ours", disk)
        used = {key for module in net.modules.values() for key in _keys_of(module, file)}
        before = {name: get().clone() for name, get in places.items()}
        networks.loaded_networks[:] = [net]
        for module in model.modules():  # those whose `forward` it replaces, and which are called
            if type(module) in (nn.Linear, nn.Conv2d, nn.MultiheadAttention):
                networks.network_apply_weights(module)
        if networks.extra_network_lora.errors:
            raise AssertionError(networks.extra_network_lora.errors)
        deltas = {name: get() - before[name] for name, get in places.items()}
        return deltas, set(load_file(file)) - used

    network.Network.dyn_dim = None
    return read


def _metadata(file: str) -> dict[str, Any]:
    """The metadata as A1111 has it: with what looks like a JSON object parsed."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    return {key: json.loads(text) if text[:1] == "{" else text for key, text in metadata.items()}


def _keys_of(module: Any, file: Path) -> set[str]:
    start = module.network_key.partition(".")[0]
    return {key for key in load_file(file) if key.partition(".")[0] == start}


def _original_model(pipeline: Any, names: dict[str, str]) -> tuple[nn.Module, dict[str, Any]]:
    """The base model's layers in modules of the original names, and how to see each weight."""
    model, unet = nn.Module(), dict(pipeline.unet.named_modules())
    model.is_sdxl = False
    places: dict[str, Any] = {}
    for name, layer in unet.items():
        if f"{name}.weight" in names and isinstance(layer, nn.Linear | nn.Conv2d):
            place = f"model.diffusion_model.{names[f'{name}.weight'].removesuffix('.weight')}"
            _plant(model, place, layer)
            places[f"unet.{name}"] = lambda layer=layer: layer.weight.detach()
    text = pipeline.text_encoder
    if pipeline.unet.config.cross_attention_dim != 1024:
        for name, layer in text.named_modules():
            if isinstance(layer, nn.Linear):
                _plant(model, f"cond_stage_model.wrapped.transformer.text_model.{name}", layer)
                places[f"text_encoder.{name}"] = lambda layer=layer: layer.weight.detach()
        return model, places
    for n, block in enumerate(text.encoder.layers):  # open_clip has one matrix for q, k and v
        attention, width = block.self_attn, block.self_attn.out_proj.weight.shape[0]
        fused = nn.MultiheadAttention(width, 4)
        fused.in_proj_weight.data = torch.cat(
            [getattr(attention, f"{name}_proj").weight.data for name in "qkv"]
        )
        fused.out_proj.weight.data = attention.out_proj.weight.data.clone()
        _plant(model, f"cond_stage_model.wrapped.model.transformer.resblocks.{n}.attn", fused)
        own = f"text_encoder.encoder.layers.{n}.self_attn"
        for part, letter in enumerate("qkv"):
            places[f"{own}.{letter}_proj"] = lambda fused=fused, part=part: (
                fused.in_proj_weight.detach().chunk(3)[part]
            )
        places[f"{own}.out_proj"] = lambda fused=fused: fused.out_proj.weight.detach()
    return model, places


def _plant(root: nn.Module, path: str, leaf: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    root.add_module(last, leaf)


READERS = {
    "diffusers": diffusers_reader, "sd-scripts": sd_scripts_reader, "ComfyUI": comfyui_reader,
    "A1111": a1111_reader,
}  # fmt: skip


def main(program: str, folder: str, checkout: str, comfyui: str) -> None:
    """Read every file in ``folder`` and print one line of JSON."""
    read = READERS[program](Path(checkout), Path(comfyui))
    answers = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        pipeline = StableDiffusionPipeline.from_pretrained(Path(folder) / file.name[:3])
        total, expected = len(load_file(file)), load_file(file.with_suffix(".deltas"))
        deltas, unused = read(file, pipeline)
        changed = {name for name, delta in deltas.items() if delta.abs().max() > 1e-6}
        errors = [
            float((deltas[name].reshape(delta.shape) - delta).abs().max() / delta.abs().max())
            for name, delta in expected.items()
            if name in changed
        ]
        answers[file.stem] = {
            "used": total - len(unused), "total": total, "layers": sorted(changed),
            "expected_layers": sorted(expected), "error": max(errors, default=0.0),
        }  # fmt: skip
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
