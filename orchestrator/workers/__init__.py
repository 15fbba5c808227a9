"""The processes that train: the pool of them, their loop, their files, groups of devices."""
