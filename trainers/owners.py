"""SFTConfig's fields that a sweep may not set: another key owns them, or they are refused."""

from __future__ import annotations

# owner -> the fields that are decided there
_BY_OWNER: dict[str, str] = {
    "run_dir; each trial has its own folder there": "output_dir",
    "sweep.budget.epochs": "num_train_epochs",
    "sweep.budget.examples; steps follow from batch size and accumulation": "max_steps",
    "data.max_length": "max_length",
    "data.max_length; rows are cut at their end": "truncation_mode",
    "seed": "seed data_seed",
    "sweep.evaluations; the loss there is the sweep's own, a mean over tokens": """
        eval_strategy eval_steps eval_delay eval_on_start eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
        prediction_loss_only do_train do_eval do_predict""",
    "sweep.keep; a checkpoint is written at each of sweep.evaluations": """
        save_strategy save_steps save_total_limit save_only_model save_on_each_node
        enable_jit_checkpoint""",
    "sweep.metric and sweep.direction": """
        load_best_model_at_end metric_for_best_model greater_is_better""",
    "the ledger; the same command again goes on where the sweep stopped": """
        resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint""",
    "tracking": """
        report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id""",
    "export; best/ is ready to be pushed once the sweep is done": """
        push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push
        hub_revision""",
    "model.dtype": "fp16 bf16_full_eval fp16_full_eval",
    "the sweep; every trial reads one fixed stream of rows, in the order its seed gives": """
        shuffle_dataset train_sampling_strategy length_column_name dataloader_drop_last
        dataloader_in_order""",
    "data; rows are prepared once, for all trials": """
        dataset_kwargs dataset_num_proc dataset_text_field remove_unused_columns label_names""",
    "model": "model_init_kwargs",
    "model.trust_remote_code": "trust_remote_code",
    "model.chat_template": "chat_template_path",
    "model; rows are tokenized before training": "eos_token pad_token",
    "engine": "use_cpu local_rank accelerator_config parallelism_config",
    "the sweep; out of memory, it halves the batch and doubles the accumulation": """
        auto_find_batch_size""",
    "trainer.logging_steps": "logging_strategy",
    "the sweep; it is always off, for it logs a diverged loss as 0.0": "logging_nan_inf_filter",
    "the sweep, which counts tokens itself": "include_num_input_tokens_seen",
    "the sweep's own display": "disable_tqdm",
}

OWNED: dict[str, str] = {
    name: owner for owner, names in _BY_OWNER.items() for name in names.split()
}

# reason -> the fields that are not supported
_BY_REASON: dict[str, str] = {
    "it changes what one example is, so trials could not be compared at equal data": """
        packing packing_strategy eval_packing padding_free""",
    "engine.devices_per_trial=2 and trainer.strategy=fsdp share a model out over devices": """
        deepspeed fsdp fsdp_config""",
    "it patches the model's classes for every later trial in the same process": """
        use_liger_kernel liger_kernel_config""",
}

REFUSED: dict[str, str] = {
    name: reason for reason, names in _BY_REASON.items() for name in names.split()
}

# Names of older versions, and what became of them.
GONE: dict[str, str] = {
    "warmup_ratio": "is gone from transformers 5: set trainer.warmup_steps; below 1 it is a ratio",
    "evaluation_strategy": f"belongs to {OWNED['eval_strategy']}",
    "group_by_length": f"belongs to {OWNED['train_sampling_strategy']}",
    "logging_dir": "belongs to tracking",
    "max_seq_length": "belongs to data.max_length",
    "no_cuda": "belongs to engine",
    "overwrite_output_dir": "belongs to run_dir",
    "dataset_batch_size": f"belongs to {OWNED['dataset_num_proc']}",
}
