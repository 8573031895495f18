"""What becomes of ai-toolkit's keys that this engine doesn't follow: refused, mentioned, or quiet.

A key whose value is ai-toolkit's default, or switches something off, asks for nothing. Of the
others, those that make another training are refused; those that speak of speed, memory, logs, or
details of what is switched off are quiet; the rest is mentioned as having no effect.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from loradash.domain.ai_toolkit_keys import NETWORK_KWARGS, asks_for_something
from loradash.domain.schema import Section
from loradash.domain.training_config import TrainingConfig


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What these ask for is a different training; ignoring them would waste the user's GPU hours.
_REFUSED = {
    "process": _keys("adapter decorator embedding do_lorm slider guidance"),
    "network": _keys("lorm all_layers"),
    "network_kwargs": NETWORK_KWARGS - {"peft_format", "transformer_only", "varbose"},
    "datasets": _keys("""
        control_path control_path_1 control_path_2 control_path_3 control_from_same_folder controls
        inpaint_path mask_path unconditional_path alpha_mask clip_image_path
        clip_image_from_same_folder replacements diff_output_preservation random_triggers
        token_dropout_rate network_weight num_frames auto_frame_count do_audio type
    """),
    "train": _keys("""
        adapter_assist_name_or_path adaptive_scaling_factor blank_prompt_preservation
        blended_blur_noise correct_pred_norm diff_output_preservation
        diffusion_feature_extractor_path do_batch_noise_correction do_blank_stabilization do_cfg
        do_differential_guidance
        do_fft_loss do_guidance_loss do_paramiter_swapping do_prior_divergence do_random_cfg
        do_signal_amplification do_signal_correction_noise dynamic_noise_offset
        force_consistent_noise img_multiplier inverted_mask_prior latent_feature_extractor_path
        latent_multiplier learnable_snr_gos loss_target match_adapter_assist match_adapter_chance
        match_noise_norm max_loss merge_network_on_save negative_prompt noise_multiplier
        noisy_latent_multiplier num_train_timesteps optimal_noise_pairing_samples pred_scaler
        prompt_dropout_prob prompt_saturation_chance random_noise_multiplier random_noise_shift
        short_and_long_captions short_and_long_captions_encoder_split standardize_images
        standardize_latents start_step t0_loss_target target_noise_multiplier target_norm_std
        train_turbo weight_jitter
    """),
    "train.ema_config": _keys("use_feedback param_multiplier"),
    "model": _keys("""
        lora_path assistant_lora_path unconditional_lora_path refiner_name_or_path vae_path
        te_name_or_path unet_path accuracy_recovery_adapter
    """),
}
_REFUSED_VALUES = {
    # Others choose among the steps of flow models only.
    ("train", "timestep_type"): _keys("one_step two_step four_step eight_step next_sample"),
}
_QUIET = {
    "process": _keys("""
        training_folder device performance_log_every sqlite_db_path log_dir torch_profiler
    """),
    "network": _keys("""
        layer_offloading lokr_factor lokr_full_rank old_lokr_format split_multistage_loras
        transformer_only
    """),
    "network_kwargs": _keys("peft_format transformer_only varbose"),
    "save": _keys("hf_repo_id hf_private"),
    "datasets": _keys("""
        audio_normalize audio_preserve_pitch bucket_tolerance cache_clip_vision_to_disk
        cache_latents_num_workers cache_tensors_to_disk cache_text_embeddings
        clip_image_augmentations clip_image_shuffle_augmentations control_transparent_color debug
        diff_output_preservation_class do_i2v fast_image_size fps full_size_control_images
        guidance_type invert_mask load_image_when_caching_latents mask_min_value
        num_controls_from_same_folder num_workers prefetch_factor random_triggers_max
        replay_transforms shrink_video_to_frames shuffle_augmentations trim_auto_frame_count_tail
    """),
    "train": _keys("""
        adapter_assist_type adapter_lr attention_backend audio_loss_multiplier
        batch_noise_correction_scale blank_prompt_preservation_multiplier bypass_guidance_embedding
        cache_text_embeddings cfg_rescale cfg_scale content_or_style_reg
        correct_pred_norm_multiplier diff_output_preservation_class
        diff_output_preservation_multiplier differential_guidance_scale
        diffusion_feature_extractor_weight do_fft_velocity_equiv_weight do_guidance_loss_cfg_zero
        embedding_lr guidance_loss_schedule guidance_loss_target inverted_mask_prior_multiplier
        latent_feature_loss_weight linear_timesteps linear_timesteps2 max_cfg_scale max_loss_debug
        max_negative_prompts merge_network_on_save_strength next_sample_timesteps
        paramiter_swapping_factor refiner_lr sdp show_turbo_outputs signal_amplification_strength
        signal_correction_noise_scale single_item_batching switch_boundary_every
        t0_velocity_equiv_weight target_norm_std_value timestep_type train_refiner
        unconditional_prompt unload_text_encoder xformers
    """),
    "model": _keys("""
        auto_memory block_compile cache_size_limit compile compile_dynamic compile_fullgraph
        compile_mode dtype latent_space_version layer_offloading
        layer_offloading_text_encoder_percent layer_offloading_transformer_percent low_vram qtype
        qtype_te quantize_kwargs quantize_te refiner_start_at
        split_model_other_module_param_count_scale split_model_over_gpus te_device te_dtype
        text_encoder_bits use_flux_cfg use_text_encoder_1 use_text_encoder_2 vae_device vae_dtype
    """),
    "sample": _keys("adapter_conditioning_scale fps refiner_start_at"),
    "samples": _keys("ctrl_idx fps"),
    "logging": _keys("log_every project_name run_name use_ui_logger verbose"),
}


class Found(NamedTuple):
    """Sentences about the keys of a config."""

    refused: tuple[str, ...]
    mentioned: tuple[str, ...]


def foreign_keys(config: TrainingConfig) -> Found:
    """Return what is to be said of a config's keys of ai-toolkit that have no meaning here.

    Keys that tell a model's family (``is_xl``) aren't among them.
    """
    refused: list[str] = []
    mentioned: list[str] = []
    for kind, path, section in _sections(config):
        for key, value in section.other_keys.items():
            if (kind == "model" and key.startswith("is_")) or not asks_for_something(
                kind, key, value
            ):
                continue
            if _is_refused(kind, key, value):
                refused.append(f"{path}.{key}: not supported by the diffusers engine")
            elif key not in _QUIET.get(kind, ()):
                mentioned.append(f"{path}.{key} has no effect in the diffusers engine")
    return Found(tuple(refused), tuple(mentioned))


def _is_refused(kind: str, key: str, value: Any) -> bool:
    if (kind, key) in _REFUSED_VALUES:
        return value in _REFUSED_VALUES[kind, key]
    return key in _REFUSED.get(kind, ())


def _sections(config: TrainingConfig) -> Iterator[tuple[str, str, Section]]:
    process = config.process
    yield "process", "process[0]", process
    yield "network", "network", process.network
    yield "network_kwargs", "network.network_kwargs", process.network.network_kwargs
    yield "save", "save", process.save
    for number, dataset in enumerate(process.datasets):
        yield "datasets", f"datasets[{number}]", dataset
    yield "train", "train", process.train
    if process.train.ema_config.use_ema:
        yield "train.ema_config", "train.ema_config", process.train.ema_config
    yield "model", "model", process.model
    yield "sample", "sample", process.sample
    for number, item in enumerate(process.sample.samples):
        yield "samples", f"sample.samples[{number}]", item
    yield "logging", "logging", process.logging
