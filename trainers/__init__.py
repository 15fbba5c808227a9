"""HOW one trial trains: torch, transformers, trl and peft. Knows no Ray, Hydra, Optuna or W&B."""
