"""Keys of ai-toolkit that have no meaning for the built-in engine, by section.

They are accepted, so that the files people have keep working, and kept as they are; an engine says
which of them it must refuse or mention. Source: ``toolkit/config_modules.py`` of ostris/ai-toolkit
at commit 27a03a91.
"""

from typing import Any


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


NETWORK = _keys("""
    all_layers
    layer_offloading lokr_factor lokr_full_rank lorm old_lokr_format split_multistage_loras
    transformer_only
""")
NETWORK_KWARGS = _keys("""
    attn_only block_alphas block_dims conv_block_alphas conv_block_dims dropout full_if_contains
    full_train_in_out
    is_assistant_adapter module_class module_dropout parameter_threshold peft_format rank_dropout
    target_conv_modules target_lin_modules transformer_only use_bias use_text_encoder_1
    use_text_encoder_2 varbose
""")
SAVE = _keys("""
    hf_private hf_repo_id
""")
DATASETS = _keys("""
    alpha_mask audio_normalize audio_preserve_pitch augmentations augments auto_frame_count
    batch_size bucket_tolerance buckets cache_clip_vision_to_disk cache_latents_num_workers
    cache_tensors_to_disk cache_text_embeddings clip_image_augmentations
    clip_image_from_same_folder clip_image_path clip_image_shuffle_augmentations
    control_from_same_folder control_path control_path_1 control_path_2 control_path_3
    control_transparent_color controls debug diff_output_preservation
    diff_output_preservation_class do_audio do_i2v extra_values fast_image_size flip_y fps
    full_size_control_images guidance_type inpaint_path invert_mask
    load_image_when_caching_latents mask_min_value mask_path network_weight
    num_controls_from_same_folder num_frames num_workers poi prefetch_factor random_crop
    random_scale random_triggers random_triggers_max replacements replay_transforms scale
    shrink_video_to_frames shuffle_augmentations square_crop standardize_images
    token_dropout_rate trim_auto_frame_count_tail type unconditional_path use_short_captions
""")
EMA_CONFIG = _keys("""
    param_multiplier use_feedback
""")
TRAIN = _keys("""
    prompt_dropout_prob
    adapter_assist_name_or_path adapter_assist_type adapter_lr adaptive_scaling_factor
    attention_backend audio_loss_multiplier batch_noise_correction_scale
    blank_prompt_preservation blank_prompt_preservation_multiplier blended_blur_noise
    bypass_guidance_embedding cache_text_embeddings cfg_rescale cfg_scale
    content_or_style_reg correct_pred_norm correct_pred_norm_multiplier diff_output_preservation
    diff_output_preservation_class diff_output_preservation_multiplier
    differential_guidance_scale diffusion_feature_extractor_path
    diffusion_feature_extractor_weight do_batch_noise_correction do_blank_stabilization do_cfg
    do_differential_guidance do_fft_loss do_fft_velocity_equiv_weight do_guidance_loss
    do_guidance_loss_cfg_zero do_paramiter_swapping do_prior_divergence do_random_cfg
    do_signal_amplification do_signal_correction_noise dynamic_noise_offset embedding_lr
    force_consistent_noise force_first_sample free_u guidance_loss_schedule guidance_loss_target
    img_multiplier inverted_mask_prior inverted_mask_prior_multiplier
    latent_feature_extractor_path latent_feature_loss_weight latent_multiplier learnable_snr_gos
    linear_timesteps linear_timesteps2 loss_target match_adapter_assist match_adapter_chance
    match_noise_norm max_cfg_scale max_loss max_loss_debug max_negative_prompts
    merge_network_on_save merge_network_on_save_strength negative_prompt next_sample_timesteps
    noise_multiplier noisy_latent_multiplier num_train_timesteps optimal_noise_pairing_samples
    paramiter_swapping_factor pred_scaler prompt_saturation_chance random_noise_multiplier
    random_noise_shift refiner_lr sdp short_and_long_captions
    short_and_long_captions_encoder_split show_turbo_outputs signal_amplification_strength
    signal_correction_noise_scale single_item_batching standardize_images standardize_latents
    start_step switch_boundary_every t0_loss_target t0_velocity_equiv_weight
    target_noise_multiplier target_norm_std target_norm_std_value timestep_type train_refiner
    train_turbo unconditional_prompt unload_text_encoder validation_config weight_jitter
    xformers
""")
LR_SCHEDULER_PARAMS = _keys("""
    T_0 T_max last_epoch total_iters verbose
""")
MODEL = _keys("""
    accuracy_recovery_adapter assistant_lora_path attn_masking auto_memory block_compile
    cache_size_limit compile compile_dynamic compile_fullgraph compile_mode dtype
    experimental_xl ignore_if_contains in_context inference_lora_path is_auraflow is_flux
    is_lumina2 is_pixart is_pixart_sigma is_ssd is_v2 is_v3 is_vega is_xl latent_space_version
    layer_offloading layer_offloading_text_encoder_percent layer_offloading_transformer_percent
    lora_path low_vram model_kwargs model_paths only_if_contains qtype qtype_te quantize
    quantize_kwargs quantize_te refiner_name_or_path refiner_start_at
    split_model_other_module_param_count_scale split_model_over_gpus te_device te_dtype
    te_name_or_path text_encoder_bits unconditional_lora_path unet_path unet_sample_size
    use_flux_cfg use_text_encoder_1 use_text_encoder_2 vae_device vae_dtype vae_path
""")
SAMPLES = _keys("""
    ctrl_idx ctrl_img ctrl_img_1 ctrl_img_2 ctrl_img_3 do_cfg_norm fps num_frames
""")
SAMPLE = _keys("""
    adapter_conditioning_scale do_cfg_norm extra_values fps guidance_rescale num_frames
    refiner_start_at
""")
LOGGING = _keys("""
    log_every project_name run_name use_ui_logger use_wandb verbose
""")
PROCESS = _keys("""
    adapter decorator do_lorm embedding first_sample guidance lorm_extract_mode
    lorm_extract_mode_param slider
    device log_dir performance_log_every sqlite_db_path torch_profiler training_folder
""")
GENERATE = _keys("""
    compile guidance_rescale max_images max_random_per_prompt neg_2 prompt_2 prompt_file
    random_prompts shuffle size_list
""")
GENERATION_MODEL = (MODEL - {"lora_path"}) | _keys("arch extras_name_or_path is_v_pred lora_dtype")
# Of these, what changes a picture; the others speak of memory, speed, or what the base model says.
GENERATION_MODEL_MENTIONED = _keys("""
    accuracy_recovery_adapter assistant_lora_path extras_name_or_path inference_lora_path
    is_v_pred model_kwargs model_paths refiner_name_or_path te_name_or_path
    unconditional_lora_path unet_path vae_path
""")
GENERATION_PROCESS = _keys("""
    adapter decorator embedding guidance do_lorm lorm_extract_mode lorm_extract_mode_param slider
    device output_folder performance_log_every
""")

# What ai-toolkit takes if the key is missing, where that isn't false, 0, null or empty; and what
# its UI writes into every job, where that means the same.
_DEFAULTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "network": {
        "transformer_only": (True,), "lokr_full_rank": (True,), "lokr_factor": (-1,),
        "split_multistage_loras": (True,),
    },
    "network_kwargs": {
        "transformer_only": (True,), "use_text_encoder_1": (True,), "use_text_encoder_2": (True,),
    },
    "datasets": {
        "type": ("image",), "scale": (1,), "buckets": (True,), "bucket_tolerance": (64,),
        "network_weight": (1,), "num_frames": (1,), "guidance_type": ("targeted",),
        "control_transparent_color": ([0, 0, 0],), "replay_transforms": (True,),
        "batch_size": (1,),
    },
    "train": {
        "content_or_style_reg": ("balanced",),
        "img_multiplier": (1,), "latent_multiplier": (1,), "noise_multiplier": (1,),
        "noisy_latent_multiplier": (1,), "target_noise_multiplier": (1,), "pred_scaler": (1,),
        "loss_target": ("noise",), "num_train_timesteps": (1000,),
        "optimal_noise_pairing_samples": (1,), "batch_noise_correction_scale": (0.1,),
        "signal_correction_noise_scale": (1,), "attention_backend": ("native",),
        "timestep_type": ("sigmoid",), "train_refiner": (True,),
    },
    "train.ema_config": {"param_multiplier": (1,)},
    "model": {
        "text_encoder_bits": (16,), "qtype": ("qfloat8",), "qtype_te": ("qfloat8",),
        "use_text_encoder_1": (True,), "use_text_encoder_2": (True,),
        "compile_dynamic": (True,), "compile_mode": ("default",),
    },
    "sample": {"num_frames": (1,)},
    "generate": {"max_images": (10_000,), "max_random_per_prompt": (1,)},
    "samples": {"num_frames": (1,)},
}  # fmt: skip
_OFF_WORDS = frozenset({"", "0", "false", "no", "off", "null", "none"})


def asks_for_something(section: str, key: str, value: Any) -> bool:
    """Whether a key's value differs from ai-toolkit's default, and isn't switched off.

    ``section`` is named as in the config; that of the moving average is ``train.ema_config``.
    """
    if (defaults := _DEFAULTS.get(section, {}).get(key)) is not None:
        return value is not None and value not in defaults
    if isinstance(value, str):
        return value.strip().lower() not in _OFF_WORDS
    if isinstance(value, list):
        return any(asks_for_something(section, key, item) for item in value)
    return bool(value)
