"""``tfspark serve``: serves SavedModels with TensorFlow Serving's REST and gRPC APIs, in one process.

A REST request passes `http` (connection limits) and `gate` (access checks); `app` and `requests` then convert it to a
call of a signature. `grpc_front` and `messages` do the same for a gRPC request. `core` passes the call to the batcher
(`batching`) of a version (`loaded`) in `repository`. TensorFlow Serving can serve the same directory.
"""
