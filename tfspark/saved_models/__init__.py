"""SavedModels on disk: version directories, signatures, export, and model cards.

Used by `tfspark.prediction`, ``ctx.export`` and ``tfspark serve``. This package does not use Spark, and uses TensorFlow
only to write a model and its card.
"""
