"""Measurements, each `python -m benchmarks.NAME`: real child processes, ratios from one run."""
