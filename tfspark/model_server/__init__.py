"""``tfspark serve``: SavedModels behind TensorFlow Serving's REST and gRPC APIs, in one process.

A request passes `http` and `gate` (access checks). Then `app` and `requests` (REST), or `grpc_front` and `messages`
(gRPC), convert it to a call of a signature. `core` passes the call to the batcher (`batching`) of a version (`loaded`)
of `repository`. TensorFlow Serving can serve the same directory.
"""
