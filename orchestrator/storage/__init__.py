"""A run folder between machines: bucket or folder, copies, what a worker keeps."""
