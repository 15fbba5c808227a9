"""The base model: where it lies, its number type, its attention, LoRA, the tokenizer."""
