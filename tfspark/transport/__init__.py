"""Arrow Flight between the processes of a cluster: servers, clients, tokens, TLS, ports and shared memory."""
