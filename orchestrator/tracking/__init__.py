"""W&B: what is sent, when, and that no tracker can slow a trial."""
