"""WHERE and WHEN trials run: the only layer that knows Ray, W&B, signals and the terminal."""
