"""The control plane in the driver: starts and stops the nodes, detects failures and restarts the nodes."""
