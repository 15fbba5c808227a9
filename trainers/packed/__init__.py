"""Many LoRA trials on one frozen base model on one device."""
