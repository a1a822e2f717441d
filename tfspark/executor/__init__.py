"""Code that runs in Spark's Python workers: the supervising task, and the process, resources and host of a node."""
