"""Training with Keras on several workers: plain Keras on each; optimizers average gradients over the workers."""
