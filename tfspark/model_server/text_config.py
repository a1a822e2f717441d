"""Reads configuration files of TensorFlow Serving in protobuf's text format.

``tensorflow-serving-api`` does not contain the message types of these files.
The fields are those of TensorFlow Serving's ``session_bundle_config.proto`` and ``ssl_config.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from tfspark.errors import ConfigurationError

_TYPES = descriptor_pb2.FieldDescriptorProto

BATCHING: Mapping[str, str] = {
    "max_batch_size": "Int64Value",
    "batch_timeout_micros": "Int64Value",
    "max_enqueued_batches": "Int64Value",
    "num_batch_threads": "Int64Value",
    "thread_pool_name": "StringValue",
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": "BoolValue",
    "max_execution_batch_size": "Int64Value",
}
"""Fields of ``BatchingParameters``."""

SSL: Mapping[str, str] = {
    "server_key": "string",
    "server_cert": "string",
    "custom_ca": "string",
    "client_verify": "bool",
}
"""Fields of ``SSLConfig``."""


def read_text(path: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a file as plain values.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or has other fields.
    """
    message = _message(fields)
    try:
        with open(path, encoding="utf-8") as f:
            text_format.Parse(f.read(), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as e:
        raise ConfigurationError(f"Cannot read {path}: {e}", hint=f"Its fields are {', '.join(fields)}.") from None
    found = {field.name: value for field, value in message.ListFields()}
    return {n: list(v) if fields[n].startswith("repeated") else getattr(v, "value", v) for n, v in found.items()}


def _message(fields: Mapping[str, str]) -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="tfspark/text_config.proto", package="tfspark", dependency=[wrappers_pb2.DESCRIPTOR.name], syntax="proto3"
    )
    message = file.message_type.add(name="Config")
    plain = {"string": _TYPES.TYPE_STRING, "bool": _TYPES.TYPE_BOOL, "int64": _TYPES.TYPE_INT64}
    for number, (name, kind) in enumerate(fields.items(), 1):
        field = message.field.add(name=name, number=number, label=_TYPES.LABEL_OPTIONAL)
        if kind.startswith("repeated "):
            field.label = _TYPES.LABEL_REPEATED
            kind = kind.removeprefix("repeated ")
        if kind in plain:
            field.type = plain[kind]
        else:
            field.type, field.type_name = _TYPES.TYPE_MESSAGE, f".google.protobuf.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfspark.Config"))()
