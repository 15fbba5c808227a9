"""The run folder and the object store: paths, durable writes, locks, copies."""
