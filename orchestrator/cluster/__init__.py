"""Ray: the cluster, its nodes and GPUs, where trials are placed, signals and preemption."""
