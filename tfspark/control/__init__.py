"""The control plane in the driver: the life of the nodes from launch to stop, and what happens when one fails."""
