"""`export_model`: write a Keras model as the next version in a base directory, ready for TensorFlow Serving."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfspark.errors import ConfigurationError, first_line
from tfspark.saved_models.card import ModelCard
from tfspark.saved_models.description import read_signatures
from tfspark.saved_models.examples import example_features, parse_examples
from tfspark.saved_models.masking import masked_values, with_fill, with_masks
from tfspark.saved_models.methods import set_methods
from tfspark.saved_models.outputs import flat_outputs
from tfspark.saved_models.signatures import CLASSIFY, DEFAULT, REGRESS
from tfspark.saved_models.versions import local_path, new_version

logger = logging.getLogger(__name__)


def export_model(
    model: Any,
    base: str,
    *,
    preprocessing: Any = None,
    input_signature: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    regress: bool = False,
    keep: int | None = None,
    name: str | None = None,
    description: str = "",
    metrics: Mapping[str, float] | None = None,
    data: Mapping[str, Any] | None = None,
    fill: Mapping[str, Any] | None = None,
) -> str:
    """Write a Keras model to ``<base>/<next version>`` atomically.

    The SavedModel has the signatures ``serving_default``, which takes the inputs by name, and ``example``, which takes
    serialized ``tf.train.Example`` messages with features of these names. With `classes` or `regress` it also has
    ``classify`` or ``regress``, for the requests of TensorFlow Serving with these names. A model card is in
    ``assets.extra``.

    Parameters
    ----------
    model
        A built Keras model. Its preprocessing layers are exported with it: a model with a ``StringLookup`` takes
        strings.
    base
        Directory of the versions, a local or mounted path that all readers share.
    preprocessing
        Converts the inputs of a request into inputs of the model: a Keras model, or a function of a dict of tensors
        (pass `input_signature` too).
    input_signature
        ``tf.TensorSpec`` by input name; the first dimension is the rows. By default these are the inputs of the model,
        or of `preprocessing` if that is a model.
    classes
        Names of the classes, one for each score of the model's only output; adds the signature ``classify``. With two
        names and one score per row, the score is the probability of the second class.
    regress
        Add the signature ``regress``, for a model whose only output is one number per row.
    keep
        Number of versions to keep; older ones are removed. By default all are kept.
    name, description, metrics, data
        Contents of the model card: the model's name (by default the name of the base directory), a short text, numbers
        by metric name, and plain values that describe the training data.
    fill
        The values that replaced nulls in the training data, by input: numbers, strings or booleans. `tfspark.predict`
        replaces nulls with the same values, unless it gets other ones. Names that are not inputs are ignored.

    Returns
    -------
    str
        The directory of the new version.

    Raises
    ------
    ConfigurationError
        If the model has not been built, its inputs or outputs do not fit the arguments, or Keras cannot export it.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
    >>> path = export_model(model, f"{directory}/models", keep=3, metrics={"loss": 0.25})
    >>> os.path.basename(path)
    '1'
    """
    served = _Served(model, preprocessing, input_signature)
    archive = keras.export.ExportArchive()
    archive.track(model)
    if isinstance(preprocessing, keras.Layer):
        archive.track(preprocessing)
    archive.add_endpoint(DEFAULT, served.call, served.signature)
    methods = _add_example_endpoints(archive, served, classes, regress)
    # preprocessing may change the values of the served rows, so their masked values are unknown.
    masks = {} if preprocessing is not None else masked_values(model)
    with new_version(base, keep) as version:
        try:
            archive.write_out(version.staging, verbose=False)
        except (ValueError, TypeError) as e:
            raise ConfigurationError(f"Keras cannot export the model: {first_line(e)}") from e
        set_methods(version.staging, methods)
        card = ModelCard(
            name or os.path.basename(os.path.abspath(local_path(base))),
            description,
            metrics or {},
            data or {},
            model.count_params(),
            {n: with_fill(with_masks(s, masks), fill or {}) for n, s in read_signatures(version.staging).items()},
        )
        try:
            card.write(version.staging)
        except (TypeError, ValueError) as e:
            raise ConfigurationError(
                f"Cannot write the model card: {e}", hint="Pass metrics as numbers and data as plain values."
            ) from None
    logger.info("exported %s", version.path)
    return version.path


class _Served:
    """The exported function, which takes a dict of inputs and returns a dict of outputs.

    Attributes
    ----------
    specs
        ``tf.TensorSpec`` of each input, by name.
    signature
        The input signature of `call`, in the form that Keras takes.
    """

    def __init__(self, model: Any, preprocessing: Any, input_signature: Mapping[str, Any] | None) -> None:
        if not getattr(model, "built", False):
            raise ConfigurationError(
                "The model has not been built.", hint="Call it on a batch, or fit it, before you export it."
            )
        self._model, self._preprocessing = model, preprocessing
        first = preprocessing if isinstance(preprocessing, keras.Model) else model
        if preprocessing is not None and first is model and input_signature is None:
            raise ConfigurationError(
                "preprocessing is a function, so its inputs are unknown.",
                hint="Pass input_signature={name: tf.TensorSpec([None, ...], dtype)}.",
            )
        self._by_name = preprocessing is not None and first is model
        self._inputs = [] if self._by_name else _inputs_of(first)
        self.specs = dict(input_signature) if input_signature is not None else dict(self._inputs)
        if not self._by_name and set(self.specs) != {n for n, _ in self._inputs}:
            raise ConfigurationError(
                f"input_signature has the names {sorted(self.specs)}, but the inputs of the model are "
                f"{[n for n, _ in self._inputs]}."
            )
        named = {n: tf.TensorSpec(s.shape, s.dtype, name=n) for n, s in self.specs.items()}
        self.signature = [named]

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name, with the names that Keras' own export gives them."""
        values: Any = dict(inputs) if self._by_name else _arranged(self._first, self._inputs, inputs)
        if self._preprocessing is not None:
            values = self._preprocessing(values)
        return flat_outputs(self._model(values))

    @property
    def _first(self) -> Any:
        return self._preprocessing if isinstance(self._preprocessing, keras.Model) else self._model


def _inputs_of(model: Any) -> list[tuple[str, Any]]:
    """Return the name and spec of each input of a model, in the model's order."""
    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise ConfigurationError(
            "The inputs of the model are unknown, because it is neither Functional nor Sequential.",
            hint="Wrap it: keras.Model(inputs, model(inputs)), with keras.Input(..., name=...) for each input.",
        )
    return [(t.name, tf.TensorSpec((None, *t.shape[1:]), t.dtype)) for t in tensors]


def _arranged(model: Any, inputs: Sequence[tuple[str, Any]], values: Mapping[str, Any]) -> Any:
    """Return the input values in the structure that the model takes."""
    tensors = [values[n] for n, _ in inputs]
    if not isinstance(model, keras.Sequential) and hasattr(model, "_inputs_struct"):
        return keras.tree.pack_sequence_as(model._inputs_struct, tensors)
    return tensors[0] if len(tensors) == 1 else tensors


def _add_example_endpoints(
    archive: Any, served: _Served, classes: Sequence[str] | None, regress: bool
) -> dict[str, str]:
    """Add the signatures that take serialized examples; return the methods other than ``predict``, by signature."""
    features = example_features(served.specs)
    if features is None:
        if classes or regress:
            raise ConfigurationError(
                "classes= and regress=True need inputs of fixed shape, but an input has a dimension of any length.",
                hint="Fix the shape of each input, or leave classes and regress out.",
            )
        logger.info("not exporting the signature 'example': an input has a dimension of any length")
        return {}

    def from_examples(serialized: tf.Tensor) -> dict[str, Any]:
        return served.call(parse_examples(serialized, features, served.specs))

    archive.add_endpoint("example", from_examples, [tf.TensorSpec([None], tf.string, name="examples")])
    methods = {}
    # TensorFlow Serving requires this input name for both signatures.
    spec = [tf.TensorSpec([None], tf.string, name="inputs")]
    if classes is not None:
        archive.add_endpoint("classify", _classifier(from_examples, list(classes)), spec)
        methods["classify"] = CLASSIFY
    if regress:
        archive.add_endpoint("regress", _regressor(from_examples), spec)
        methods["regress"] = REGRESS
    return methods


def _only(outputs: Mapping[str, Any], what: str) -> tf.Tensor:
    if len(outputs) != 1:
        raise ConfigurationError(f"{what} needs a model with one output; this model has {sorted(outputs)}.")
    (tensor,) = outputs.values()
    return tf.cast(tensor, tf.float32)


def _classifier(from_examples: Callable[[tf.Tensor], dict[str, Any]], classes: list[str]) -> Callable[..., Any]:
    def classify(inputs: tf.Tensor) -> dict[str, Any]:
        scores = _only(from_examples(inputs), "classes=")
        width = 1 if scores.shape.rank == 1 else scores.shape[-1]
        if scores.shape.rank not in (1, 2) or (width != len(classes) and not (width == 1 and len(classes) == 2)):
            raise ConfigurationError(
                f"classes has {len(classes)} names, but the model's output has shape {scores.shape}.",
                hint="Pass one name for each score of a row.",
            )
        if width != len(classes):
            scores = tf.reshape(scores, [-1, 1])
            scores = tf.concat([1.0 - scores, scores], axis=1)
        names = tf.broadcast_to(tf.constant([classes]), tf.shape(scores))
        return {"classes": names, "scores": scores}

    return classify


def _regressor(from_examples: Callable[[tf.Tensor], dict[str, Any]]) -> Callable[..., Any]:
    def regress(inputs: tf.Tensor) -> dict[str, Any]:
        values = _only(from_examples(inputs), "regress=True")
        if values.shape.rank not in (1, 2) or (values.shape.rank == 2 and values.shape[1] != 1):
            raise ConfigurationError(
                f"regress=True needs one number per row, but the model's output has shape {values.shape}."
            )
        return {"outputs": tf.reshape(values, [-1])}

    return regress
