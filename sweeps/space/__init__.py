"""The search space: what it holds, and how it is read from text."""
