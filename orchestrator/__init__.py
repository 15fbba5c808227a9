"""WHERE and WHEN trials run: the only layer that knows Ray, W&B, signals and the terminal."""

__version__ = "0.1.0"
