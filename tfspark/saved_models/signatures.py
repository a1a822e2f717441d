"""The signatures of a SavedModel: what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT = "serving_default"

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


@dataclass(frozen=True)
class TensorInfo:
    """One input or output.

    Attributes
    ----------
    dtype
        Name of the TensorFlow dtype.
    shape
        With the rows first; ``None`` for dimensions of any length, or as a whole if even the rank is not known.
    tensor
        Name of the tensor in the graph.
    """

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor: str = ""

    @property
    def row_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one row."""
        return None if self.shape is None else self.shape[1:]

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension may be the number of rows."""
        return self.shape is None or (len(self.shape) > 0 and self.shape[0] is None)

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype} ({dims})"


@dataclass(frozen=True)
class Signature:
    """What can be asked of a SavedModel under one name; inputs and outputs in the order of their names.

    Attributes
    ----------
    method
        What TensorFlow Serving may do with it: ``"tensorflow/serving/predict"`` and the like.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method: str = PREDICT

    def to_json(self) -> dict[str, Any]:
        """Encode as plain dicts and lists."""

        def tensors(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
            return {
                n: {"dtype": i.dtype, "shape": None if i.shape is None else list(i.shape)} for n, i in infos.items()
            }

        return {
            "name": self.name,
            "method": self.method,
            "inputs": tensors(self.inputs),
            "outputs": tensors(self.outputs),
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Signature:
        """Decode what `to_json` made."""

        def infos(of: Mapping[str, Any]) -> dict[str, TensorInfo]:
            return {n: TensorInfo(i["dtype"], None if i["shape"] is None else tuple(i["shape"])) for n, i in of.items()}

        return cls(d["name"], infos(d["inputs"]), infos(d["outputs"]), d["method"])
