"""Keys of sd-scripts that aren't converted: without effect here, or refused."""


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


NO_EFFECT = _keys("""
    async_upload blocks_to_swap bucket_no_upscale bucket_reso_steps cache_info cache_latents
    cache_text_encoder_outputs cache_text_encoder_outputs_to_disk config_file console_log_file
    console_log_level console_log_simple cpu_offload_checkpointing ddp_gradient_as_bucket_view
    ddp_static_graph ddp_timeout debug_dataset deepspeed dim_from_weights
    disable_mmap_load_safetensors dynamo_backend fp16_master_weights_and_gradients fp8_base
    fp8_base_unet full_bf16 full_fp16 fused_backward_pass highvram huber_c huber_scale
    huber_schedule huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
    huggingface_repo_visibility huggingface_token ip_noise_gamma_random_strength log_config
    log_prefix log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std
    lowram lr_decay_steps lr_scheduler_timescale max_bucket_reso max_data_loader_n_workers
    max_validation_steps mem_eff_attn metadata_merged_from metadata_preprocessor
    metadata_thumbnail metadata_trigger_phrase min_bucket_reso mode_scale
    multires_noise_discount no_half_vae noise_offset_random_strength offload_optimizer_device
    offload_optimizer_nvme_path offload_param_device offload_param_nvme_path output_config
    output_dir persistent_data_loader_workers resize_interpolation save_last_n_epochs
    save_last_n_epochs_state save_last_n_steps_state save_model_as save_n_epoch_ratio save_state
    save_state_on_train_end save_state_to_huggingface sdpa sdxl skip_cache_check
    text_encoder_batch_size tokenizer_cache_dir torch_compile use_safetensors vae_batch_size
    validate_every_n_epochs validate_every_n_steps validation_seed validation_split
    wandb_api_key wandb_run_name xformers zero3_init_flag zero3_save_16bit_model zero_stage
""")
_ANOTHER_TRAINING = "isn't supported, and the training would be another one without it"
_UNSUPPORTED = _keys("""
    adaptive_noise_scale alpha_mask base_weights caption_dropout_every_n_epochs caption_suffix
    caption_tag_dropout_rate color_aug dataset_class debiased_estimation_loss enable_wildcard
    face_crop_aug_range ip_noise_gamma keep_tokens_separator lr_scheduler_args
    lr_scheduler_type masked_loss multires_noise_iterations noise_offset_random_strength
    scale_v_pred_loss_like_noise_pred scale_weight_norms secondary_separator token_warmup_step
    v_pred_like_loss weighted_captions zero_terminal_snr block_alphas block_dims
    conv_block_alphas conv_block_dims down_lr_weight mid_lr_weight up_lr_weight dora_wd
    loraplus_lr_ratio loraplus_text_encoder_lr_ratio loraplus_unet_lr_ratio module_dropout
    rank_dropout stop_text_encoder_training stop_text_encoder_training_pct train_norm
    additional_parameters
""")
UNSUPPORTED = dict.fromkeys(_UNSUPPORTED, _ANOTHER_TRAINING) | {
    "in_json": "metadata files aren't read; write a caption file beside each image",
    "metadata_file": "metadata files aren't read; write a caption file beside each image",
    "conditioning_data_dir": "ControlNets aren't trained here",
    "vae": "another VAE isn't loaded; use a base model that has it",
    "resume": "states of sd-scripts can't be continued; give its adapter as network_weights",
    "initial_epoch": "a training begins at its first step; give network_weights to go on",
    "initial_step": "a training begins at its first step; give network_weights to go on",
    "ae": "FLUX models can't be trained by the diffusers engine yet",
    "clip_l": "FLUX and SD3 models can't be trained by the diffusers engine yet",
    "clip_g": "SD3 models can't be trained by the diffusers engine yet",
    "t5xxl": "FLUX and SD3 models can't be trained by the diffusers engine yet",
}
NO_EFFECT -= UNSUPPORTED.keys()

FOLLOWED_IN_DATASETS = _keys("""
    batch_size resolution num_repeats flip_aug random_crop shuffle_caption keep_tokens
    caption_separator caption_prefix caption_dropout_rate caption_extension class_tokens image_dir
    is_reg network_multiplier enable_bucket
""")
DATASET_LEVEL = _keys("""
    batch_size bucket_no_upscale bucket_reso_steps enable_bucket max_bucket_reso min_bucket_reso
    validation_seed validation_split resolution network_multiplier resize_interpolation
""")
SUBSET_LEVEL = _keys("""
    color_aug face_crop_aug_range flip_aug num_repeats random_crop shuffle_caption keep_tokens
    keep_tokens_separator secondary_separator caption_separator enable_wildcard token_warmup_min
    token_warmup_step caption_prefix caption_suffix custom_attributes resize_interpolation
    caption_dropout_every_n_epochs caption_dropout_rate caption_tag_dropout_rate caption_extension
    class_tokens cache_info image_dir is_reg alpha_mask metadata_file conditioning_data_dir
""")
