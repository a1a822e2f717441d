"""Code that runs in Spark's Python workers: the task that supervises a node, its processes, GPUs and host."""
