"""``tfspark serve``: SavedModels behind TensorFlow Serving's REST and gRPC APIs, in one process.

The way of a request: `http` and `gate` (who is let in), `app` and `requests` (REST) or `grpc_front` and `messages`
(gRPC) make a call of it by the signature; `core` hands the call to a batcher (`batching`) of a version (`loaded`) that
`repository` has found. The same directory can be given to a fleet of TensorFlow Serving afterwards.
"""
