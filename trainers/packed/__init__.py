"""Many LoRA trials on one frozen base model, trained in the same passes. See `engine`."""
