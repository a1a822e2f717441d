"""TFRecord files without Spark and without TensorFlow, for ``tfspark records``.

``files`` finds and opens files, ``framing`` reads their records, ``example`` parses a record, ``inference`` infers a
schema, and ``command`` is the command line.
"""
