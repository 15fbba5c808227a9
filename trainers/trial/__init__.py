"""What both engines share in one trial: its task, reports, evaluation, checkpoints, meters."""
