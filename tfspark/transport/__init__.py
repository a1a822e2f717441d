"""Arrow Flight between the processes of a cluster: control messages, rows, and where rows wait."""
