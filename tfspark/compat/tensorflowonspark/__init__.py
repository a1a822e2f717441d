"""The API of TensorFlowOnSpark 2.2.5, on tfspark.

Programs keep their names, arguments and order of calls; nodes, feeding, inference and files are tfspark's. Calls issue
a ``DeprecationWarning`` that names their tfspark form. ``docs/migration/tensorflowonspark.md`` says what is better,
what is gone, and how to go further.

``TFCluster``, ``TFParallel``, ``pipeline`` and ``dfutil`` are for driver programs, ``TFNode``, ``TFSparkNode`` and
``compat`` for their main functions. ``TFManager``, ``reservation``, ``gpu_info``, ``util`` and ``marker`` were meant
for the original itself, and are here for programs that import them all the same.
"""

__version__ = "2.2.5"
