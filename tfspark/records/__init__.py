"""TFRecord files without Spark and without TensorFlow: what ``tfspark records`` looks at.

``files`` finds and opens them, ``framing`` reads their records, ``example`` parses a record, ``inference`` joins what
was seen to a schema; ``command`` is the command line.
"""
