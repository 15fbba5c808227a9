"""One trial by SFTTrainer: config, schedules, optimizers, FSDP."""
