"""``tfspark serve``: SavedModels behind the REST API of TensorFlow Serving, in one process, to try and load-test them.

The way of a request: `gate` (who is let in), `app` (paths, bodies, errors), `requests` (JSON to tensors and back, by
the signature), `batching` (requests that wait together run together), `repository` (which versions there are and are
loaded). The same directory can be given to a fleet of TensorFlow Serving afterwards.
"""
