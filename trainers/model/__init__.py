"""The base model: its place, number types, attention, LoRA and tokenizer."""
