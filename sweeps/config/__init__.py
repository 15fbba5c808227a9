"""The config of a sweep as dataclasses, read and checked, and the config of each trial."""
