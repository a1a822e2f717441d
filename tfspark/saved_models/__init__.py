"""SavedModels on disk: their version directories, their signatures, how they are written, and what is told of them.

Used by `tfspark.inference`, by ``ctx.export`` and by ``tfspark serve``; no Spark in here, and TensorFlow only where a
model is written or described.
"""
