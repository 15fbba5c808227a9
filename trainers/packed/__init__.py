"""The packed engine: many LoRA trials on one frozen base model on one device."""
