"""`predict` and `predict_udf`: lazy batch prediction with TensorFlow over the columns of Spark DataFrames.

The modules in the order in which a row passes them: `plan` decides, in the driver, which columns become which inputs,
by the rules of `inputs`; `local` sends columns to tasks through shared memory, or to Spark's Arrow UDFs, which `udf`
makes; in the Python worker `tensors` makes tensors of them, and `batches` calls the model that `loading` keeps there.
"""

from tfspark.prediction.local import predict
from tfspark.prediction.udf import predict_udf

__all__ = ["predict", "predict_udf"]
