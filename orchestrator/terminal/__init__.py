"""Output for the user: live table, summary, status."""
