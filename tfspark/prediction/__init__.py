"""`predict` and `predict_udf`: batch inference with TensorFlow over Spark DataFrames, lazily, in columns.

The way of a row: `plan` decides, in the driver, which columns become which inputs; `local` and `udf` hand columns to
Spark's Arrow UDFs; in the Python worker `inputs` makes tensors of them, and `batches` calls the model that `loading`
keeps there.
"""

from tfspark.prediction.local import predict
from tfspark.prediction.udf import predict_udf

__all__ = ["predict", "predict_udf"]
