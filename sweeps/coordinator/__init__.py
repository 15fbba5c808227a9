"""The Coordinator: hands out trials, writes the ledger, tells Optuna, removes old checkpoints."""
