"""WHAT to try and what was found: config, space, ledger, search, ranking. No torch, Ray or W&B."""
