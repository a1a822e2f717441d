"""The API of TensorFlowOnSpark 2.2.5, implemented with tfspark.

Programs keep the names, arguments and order of their calls; tfspark does the work of nodes, feeding, inference and
files. Calls issue a ``DeprecationWarning`` that names their tfspark form. ``docs/migration/tensorflowonspark.md``
describes what is better, what was removed, and the further steps of a migration.

``TFCluster``, ``TFParallel``, ``pipeline`` and ``dfutil`` are for driver programs; ``TFNode``, ``TFSparkNode`` and
``compat`` are for their main functions. ``TFManager``, ``reservation``, ``gpu_info``, ``util`` and ``marker`` were
internal modules of the original. They are here for programs that import them nevertheless.
"""

__version__ = "2.2.5"
