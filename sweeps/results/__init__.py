"""What was found: the ranking, trials.csv, the importance of knobs, significance."""
