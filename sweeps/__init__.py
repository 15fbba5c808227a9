"""WHAT to try and what was found: config, space, ledger, search, ranking. Knows no torch, Ray or W&B."""
