"""Code that runs in the TensorFlow process of a node."""
