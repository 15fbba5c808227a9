"""best/: its model card, and the verb that exports it merged."""
