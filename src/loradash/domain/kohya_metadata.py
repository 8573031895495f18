"""Metadata as kohya's sd-scripts writes it (``ss_*``), which A1111 and model managers read.

Names, meanings and forms are those of sd-scripts (``train_network.py``): every value is a text,
None and truth values as Python writes them. Only what is known is written; what sd-scripts has and
this engine hasn't (noise at several resolutions, for instance) is known to be off.
"""

import json
from collections.abc import Iterable
from typing import Any

from loradash.domain.adapter import AdapterDescription, DatasetSummary, last_part

_LOSSES = {"mse": "l2", "mae": "l1"}
_MINIMUM = (
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_network_args",
)  # fmt: skip
_NOT_DONE: dict[str, Any] = {
    "ss_adaptive_noise_scale": None, "ss_clip_skip": None, "ss_color_aug": False,
    "ss_debiased_estimation": False, "ss_face_crop_aug_range": None, "ss_fp8_base": False,
    "ss_full_fp16": False, "ss_ip_noise_gamma": None, "ss_multires_noise_discount": None,
    "ss_multires_noise_iterations": None, "ss_num_validation_images": 0, "ss_random_crop": False,
    "ss_scale_weight_norms": None,
}  # fmt: skip


def kohya_metadata(description: AdapterDescription) -> dict[str, str]:
    """Return all ``ss_*`` values of an adapter; the fewest if its config wants them so.

    ``ss_training_finished_at`` is missing: it would differ between two attempts that end the same
    training, and so would the files.
    """
    values = {
        **_network(description),
        **_base_model(description),
        **_NOT_DONE,
        **_training(description),
        **_data(description),
    }
    if description.config.process.save.metadata == "minimal":
        values = {key: values[key] for key in _MINIMUM if key in values}
    return {key: str(value) for key, value in values.items()}


def _network(description: AdapterDescription) -> dict[str, Any]:
    network = description.config.process.network
    values: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": network.rank,
        "ss_network_alpha": f"{description.alpha:g}",
        "ss_network_dropout": network.dropout or None,
    }
    if description.conv_alpha is not None:
        values["ss_network_args"] = json.dumps(
            {"conv_dim": str(network.conv), "conv_alpha": f"{description.conv_alpha:g}"}
        )
    return values


def _base_model(description: AdapterDescription) -> dict[str, Any]:
    name = description.base_model
    return {
        "ss_v2": description.names.is_v2,
        "ss_base_model_version": description.names.kohya,
        "ss_sd_model_name": last_part(name) if description.base_model_is_local else name,
        "ss_zero_terminal_snr": description.zero_terminal_snr,
    }


def _training(description: AdapterDescription) -> dict[str, Any]:
    config = description.config
    process, train = config.process, config.process.train
    return {
        "ss_output_name": config.name,
        "ss_training_started_at": description.created_at.timestamp(),
        "ss_steps": description.steps,
        "ss_max_train_steps": train.updates,
        "ss_epoch": description.epoch_of(description.steps),
        "ss_num_epochs": description.epoch_of(train.updates),
        "ss_num_batches_per_epoch": description.batches_per_epoch,
        "ss_batch_size_per_device": train.batch_size,
        "ss_total_batch_size": train.batch_size * train.accumulation,
        "ss_gradient_accumulation_steps": train.accumulation,
        "ss_gradient_checkpointing": train.gradient_checkpointing,
        "ss_learning_rate": train.lr,
        "ss_unet_lr": train.unet_rate if train.train_unet else 0.0,
        "ss_text_encoder_lr": train.text_encoder_rate if train.train_text_encoder else 0.0,
        "ss_lr_scheduler": train.lr_scheduler,
        "ss_lr_warmup_steps": train.lr_scheduler_params.num_warmup_steps,
        "ss_optimizer": description.optimizer,
        "ss_max_grad_norm": train.max_grad_norm,
        "ss_mixed_precision": "no" if description.precision == "fp32" else description.precision,
        "ss_seed": config.seed,
        "ss_noise_offset": train.noise_offset,
        "ss_min_snr_gamma": train.min_snr_gamma or train.snr_gamma,
        "ss_loss_type": _LOSSES.get(train.loss_type, train.loss_type),
        "ss_prior_loss_weight": train.reg_weight,
        "ss_cache_latents": True,
        **(
            {"ss_max_token_length": description.caption_tokens}
            if description.caption_tokens is not None
            else {}
        ),
        "ss_resolution": str(_square(max(process.datasets[0].resolution))),
    }


def _data(description: AdapterDescription) -> dict[str, Any]:
    concept = [data for data in description.datasets if not data.section.is_reg]
    prior = [data for data in description.datasets if data.section.is_reg]
    sections = [data.section for data in concept or prior]
    dropout = {section.caption_dropout_rate for section in sections}
    keep = {section.keep_tokens for section in sections}
    return {
        "ss_num_train_images": sum(data.images_with_repeats for data in concept),
        "ss_num_reg_images": sum(data.images_with_repeats for data in prior),
        "ss_flip_aug": any(section.flip_x for section in sections),
        "ss_shuffle_caption": any(section.shuffle_tokens for section in sections),
        **({"ss_caption_dropout_rate": dropout.pop()} if len(dropout) == 1 else {}),
        **({"ss_keep_tokens": keep.pop()} if len(keep) == 1 else {}),
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": True,
        "ss_bucket_info": _json(_bucket_info(description.datasets)),
        "ss_dataset_dirs": _json(_folders(concept)),
        "ss_reg_dataset_dirs": _json(_folders(prior)),
        "ss_tag_frequency": _json(_tag_frequency(description.datasets)),
        "ss_datasets": _json([_dataset(data, description) for data in description.datasets]),
    }


def _bucket_info(datasets: Iterable[DatasetSummary]) -> dict[str, Any]:
    counts: dict[tuple[int, int], int] = {}
    for data in datasets:
        for size, count in data.buckets:
            counts[size] = counts.get(size, 0) + count
    return {
        "buckets": {
            str(n): {"resolution": size, "count": counts[size]}
            for n, size in enumerate(sorted(counts))
        }
    }


def _folders(datasets: Iterable[DatasetSummary]) -> dict[str, Any]:
    folders: dict[str, Any] = {}
    for data in datasets:
        name, n = data.folder, 2
        while name in folders:  # the same folder again, or another one of its name
            name, n = f"{data.folder} ({n})", n + 1
        folders[name] = {"n_repeats": data.section.num_repeats, "img_count": data.images}
    return folders


def _tag_frequency(datasets: Iterable[DatasetSummary]) -> dict[str, dict[str, int]]:
    frequency: dict[str, dict[str, int]] = {}
    for data in datasets:
        tags = frequency.setdefault(data.folder, {})
        for tag, count in data.tags:
            tags[tag] = tags.get(tag, 0) + count
    return frequency


def _dataset(data: DatasetSummary, description: AdapterDescription) -> dict[str, Any]:
    section = data.section
    return {
        "is_dreambooth": True,  # captions stand in files beside the images
        "batch_size_per_device": description.config.process.train.batch_size,
        "num_train_images": 0 if section.is_reg else data.images_with_repeats,
        "num_reg_images": data.images_with_repeats if section.is_reg else 0,
        "resolution": _square(max(section.resolution)),
        "enable_bucket": True,
        "tag_frequency": _tag_frequency([data]),
        "bucket_info": _bucket_info([data]),
        "subsets": [
            {
                "img_count": data.images,
                "num_repeats": section.num_repeats,
                "color_aug": False,
                "flip_aug": section.flip_x,
                "random_crop": False,
                "shuffle_caption": section.shuffle_tokens,
                "keep_tokens": section.keep_tokens,
                "image_dir": data.folder,
                "class_tokens": None,
                "is_reg": section.is_reg,
            }
        ],
    }


def _square(side: int) -> tuple[int, int]:
    return side, side


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
