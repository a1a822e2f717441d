"""`predict` and `predict_udf`: batch inference with TensorFlow over Spark DataFrames, lazily, in columns.

The way of a row: `plan` decides, in the driver, which columns become which inputs; `frame` and `udf` hand columns to
Spark's Arrow UDFs; `batches` makes tensors of them in the Python worker, with the model that `loading` keeps there.
"""

from tfspark.inference.frame import predict
from tfspark.inference.udf import predict_udf

__all__ = ["predict", "predict_udf"]
