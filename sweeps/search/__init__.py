"""The Optuna study: samplers, pruners, replay after a restart, export."""
