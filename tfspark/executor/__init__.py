"""What runs in Spark's Python workers: supervising a node, and feeding one partition."""
