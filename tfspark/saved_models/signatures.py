"""The signatures of a SavedModel."""

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
        The first dimension is the rows; ``None`` is a dimension of any length. The shape itself is ``None`` if the rank
        is unknown.
    tensor
        Name of the tensor in the graph.
    splits_of
        If this input holds row splits of a ``RaggedTensor``: the name of the input that holds its flat values.
    mask
        The value that the model masks, if known; arrays of different lengths are padded with it.
    fill
        The value that replaced nulls when the model was trained, if known.
    """

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor: str = ""
    splits_of: str = ""
    mask: float | None = None
    fill: bool | int | float | str | None = None

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
    """One signature of a SavedModel; inputs and outputs are in the order of their names.

    Attributes
    ----------
    method
        TensorFlow Serving's name for the requests that the signature answers, such as ``"tensorflow/serving/predict"``.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method: str = PREDICT

    def splits_of(self, name: str) -> list[str]:
        """Return the inputs that hold the row splits of the ragged input `name`, the outermost first."""
        return sorted((n for n, i in self.inputs.items() if i.splits_of == name), key=lambda n: (len(n), n))

    def to_json(self) -> dict[str, Any]:
        """Encode as plain dicts and lists."""

        def tensors(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
            return {
                n: {
                    "dtype": i.dtype,
                    "shape": None if i.shape is None else list(i.shape),
                    **({"splits_of": i.splits_of} if i.splits_of else {}),
                    **({"mask": i.mask} if i.mask is not None else {}),
                    **({"fill": i.fill} if i.fill is not None else {}),
                }
                for n, i in infos.items()
            }

        return {
            "name": self.name,
            "method": self.method,
            "inputs": tensors(self.inputs),
            "outputs": tensors(self.outputs),
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Signature:
        """Decode the output of `to_json`."""

        def infos(of: Mapping[str, Any]) -> dict[str, TensorInfo]:
            return {
                n: TensorInfo(
                    i["dtype"],
                    None if i["shape"] is None else tuple(i["shape"]),
                    splits_of=i.get("splits_of", ""),
                    mask=i.get("mask"),
                    fill=i.get("fill"),
                )
                for n, i in of.items()
            }

        return cls(d["name"], infos(d["inputs"]), infos(d["outputs"]), d["method"])
