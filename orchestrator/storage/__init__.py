"""Run folders and their copies in a store, on the driver and on workers."""
