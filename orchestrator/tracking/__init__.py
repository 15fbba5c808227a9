"""Tracking in a process of its own, which reads a sweep's files: it cannot slow or stop a trial."""
