"""What a user reads: live table, summary, status."""
