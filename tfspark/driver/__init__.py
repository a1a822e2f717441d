"""What runs in the driver: the cluster handle, the coordinator, the launcher and the sources of feeds."""
