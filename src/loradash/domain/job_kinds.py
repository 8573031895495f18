"""Jobs and processes of ai-toolkit that aren't trainings of a LoRA, refused by what they do.

Without this, a config of another kind would be answered with a dozen missing and unknown keys.
Source: ``toolkit/job.py`` and the extensions of ostris/ai-toolkit.
"""

from typing import Any

from loradash.errors import InvalidConfig

TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")

_OTHER_JOBS = {
    "extract": "takes a LoRA out of a fine-tuned model",
    "mod": "changes a LoRA file",
    "train": "trains with ai-toolkit's old processes, such as sliders",
}
_OTHER_PROCESSES = {
    "textual_inversion_trainer": "trains an embedding",
    "concept_slider": "trains a slider between two prompts",
    "slider": "trains a slider between two prompts",
    "slider_old": "trains a slider between two prompts",
    "image_reference_slider_trainer": "trains a slider between pairs of images",
    "ultimate_slider_trainer": "trains a slider between pairs of images",
    "concept_replacer": "trains the replacement of one concept by another",
    "vae": "trains a VAE",
    "rescale_sd": "rescales a base model",
    "esrgan": "trains an upscaler",
    "lora_hack": "changes a LoRA by hand",
    "reference": "trains on pairs of images",
    "locon": "takes a LoRA out of a fine-tuned model",
    "lora": "takes a LoRA out of a fine-tuned model",
    "rescale_lora": "changes a LoRA file",
    "dataset_tools": "prepares a dataset",
    "super_tagger": "writes captions",
    "pure_lora_generator": "generates images",
    "example_merge_extension": "merges base models",
    "batch_img2img": "generates images from images",
    "reference_generator": "generates images from images",
    "to_folder": "generates images",
}
_REMEDY = (
    "loradash trains LoRAs: job: extension with a process of type "
    f"{', '.join(TRAINERS[:-1])} or {TRAINERS[-1]}."
)


def refuse_other_jobs(document: dict[str, Any]) -> None:
    """Raise `InvalidConfig` if a document of the full form asks for no training of a LoRA."""
    job = document.get("job")
    if job == "generate":
        raise InvalidConfig(
            "training config: job is 'generate'",
            remedy="Use `loradash generate` (request type generate) for this file.",
        )
    if isinstance(job, str) and job in _OTHER_JOBS:
        raise InvalidConfig(
            f"training config: job: {job} {_OTHER_JOBS[job]}, which isn't done here",
            remedy=_REMEDY,
        )
    processes = _processes(document)
    if len(processes) > 1:
        raise InvalidConfig(
            f"training config: config.process has {len(processes)} processes, and one config is "
            "one training",
            remedy="Put each process into a file of its own.",
        )
    for process in processes:
        _refuse_other_process(process)


def _processes(document: dict[str, Any]) -> list[dict[str, Any]]:
    job = document.get("config")
    processes = job.get("process") if isinstance(job, dict) else None
    if not isinstance(processes, list):
        return []
    return [one for one in processes if isinstance(one, dict)]


def _refuse_other_process(process: dict[str, Any]) -> None:
    kind = process.get("type")
    if isinstance(kind, str) and kind in _OTHER_PROCESSES:
        raise InvalidConfig(
            f"training config: config.process[0].type: {kind} {_OTHER_PROCESSES[kind]}, which "
            "isn't done here",
            remedy=_REMEDY,
        )
    if process.get("network") is not None or kind not in TRAINERS:
        return
    if isinstance(adapter := process.get("adapter"), dict):
        raise InvalidConfig(
            f"training config: config.process[0].adapter: adapters of type "
            f"{adapter.get('type', 't2i')!r} aren't trained here",
            remedy=_REMEDY,
        )
    if isinstance(process.get("embedding"), dict):
        raise InvalidConfig(
            "training config: config.process[0].embedding: embeddings aren't trained here",
            remedy=_REMEDY,
        )
    raise InvalidConfig(
        "training config: config.process[0].network: missing, which is a fine-tuning of the whole "
        "model; only LoRAs are trained here",
        remedy="Add network: {type: lora, linear: 16, linear_alpha: 16}.",
    )
