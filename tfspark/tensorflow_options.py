"""What TensorFlow takes only before it is first used: threads, memory of GPUs, logical devices.

The engine uses TensorFlow before ``main`` is called, so ``main`` is too late to say these:
``Cluster(tensorflow_options={"intra_op_threads": 4})``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tfspark.errors import ConfigurationError


@dataclass(frozen=True)
class TensorFlowOptions:
    """Settings of TensorFlow in each node; what is ``None`` stays as TensorFlow has it.

    Attributes
    ----------
    inter_op_threads
        Threads that run operations side by side.
    intra_op_threads
        Threads within one operation.
    memory_growth
        Take memory of GPUs as it is needed instead of all at once.
    gpu_memory_mb
        Memory of each GPU that TensorFlow may take, in MB.
    logical_cpus
        Number of CPU devices that TensorFlow shows.

    Examples
    --------
    >>> TensorFlowOptions.of({"intra_op_threads": 4}).intra_op_threads
    4
    """

    inter_op_threads: int | None = None
    intra_op_threads: int | None = None
    memory_growth: bool | None = None
    gpu_memory_mb: int | None = None
    logical_cpus: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> TensorFlowOptions:
        """Check options given by name.

        Raises
        ------
        ConfigurationError
            If a name is unknown, or a value is not of its kind.
        """
        known = {f.name for f in fields(cls)}
        for name, value in (options or {}).items():
            if name not in known:
                raise ConfigurationError(f"tensorflow_options has no {name!r}; it has {sorted(known)}.")
            if name == "memory_growth":
                if not isinstance(value, bool):
                    raise ConfigurationError(f"tensorflow_options: {name} must be True or False, got {value!r}.")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"tensorflow_options: {name} must be a whole number >= 1, got {value!r}.")
        chosen = cls(**(options or {}))
        if chosen.memory_growth and chosen.gpu_memory_mb is not None:
            raise ConfigurationError("tensorflow_options: memory_growth and gpu_memory_mb exclude each other.")
        return chosen

    def given(self) -> dict[str, Any]:
        """Return the options that are not ``None``."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    def apply(self) -> None:
        """Tell TensorFlow, in a process that has not used it yet."""
        if not self.given():
            return
        import tensorflow as tf

        if self.inter_op_threads is not None:
            tf.config.threading.set_inter_op_parallelism_threads(self.inter_op_threads)
        if self.intra_op_threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(self.intra_op_threads)
        for gpu in tf.config.list_physical_devices("GPU"):
            if self.memory_growth is not None:
                tf.config.experimental.set_memory_growth(gpu, self.memory_growth)
            if self.gpu_memory_mb is not None:
                limit = tf.config.LogicalDeviceConfiguration(memory_limit=self.gpu_memory_mb)
                tf.config.set_logical_device_configuration(gpu, [limit])
        if self.logical_cpus is not None:
            (cpu,) = tf.config.list_physical_devices("CPU")
            devices = [tf.config.LogicalDeviceConfiguration() for _ in range(self.logical_cpus)]
            tf.config.set_logical_device_configuration(cpu, devices)
