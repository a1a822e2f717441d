"""Training with Keras on several workers: every worker runs plain Keras, and they meet at the optimizer."""
