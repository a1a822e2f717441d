"""Settings that TensorFlow accepts only before its first use: threads, GPU memory, logical devices.

tfspark uses TensorFlow before it calls ``main``, so ``main`` cannot change these settings. Pass them to the cluster
instead: ``Cluster(tensorflow_options={"intra_op_threads": 4})``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tfspark.checks import check_whole_number
from tfspark.errors import ConfigurationError

LEAST_INTER_OP_THREADS = 2
"""An operation that waits for rows or for other workers occupies a thread; the step needs another one."""


@dataclass(frozen=True)
class TensorFlowOptions:
    """Settings of TensorFlow in each node.

    ``None`` means TensorFlow's default; for the numbers of threads it means the number of the node's CPUs
    (for `inter_op_threads` at least 2).

    Attributes
    ----------
    inter_op_threads
        Threads that run independent operations in parallel.
    intra_op_threads
        Threads that one operation uses.
    memory_growth
        Allocate GPU memory when it is needed, instead of all of it at the start.
    gpu_memory_mb
        Limit of the memory that TensorFlow allocates on each GPU, in MB.
    logical_cpus
        Number of logical CPU devices.

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
        """Check options given by name and return them.

        Raises
        ------
        ConfigurationError
            If a name is unknown or a value has the wrong type or range.

        Examples
        --------
        >>> TensorFlowOptions.of({"memory_growth": True}).memory_growth
        True
        """
        if options is not None and not isinstance(options, Mapping):
            raise ConfigurationError(f"tensorflow_options must be a dict, got {options!r}.")
        known = {f.name for f in fields(cls)}
        for name, value in (options or {}).items():
            if name not in known:
                raise ConfigurationError(f"tensorflow_options has no option {name!r}; the options are {sorted(known)}.")
            if name == "memory_growth":
                if not isinstance(value, bool):
                    raise ConfigurationError(f"tensorflow_options: {name} must be True or False, got {value!r}.")
            else:
                check_whole_number(f"tensorflow_options: {name}", value, 1)
        chosen = cls(**(options or {}))
        if chosen.memory_growth and chosen.gpu_memory_mb is not None:
            raise ConfigurationError(
                "tensorflow_options: memory_growth=True and gpu_memory_mb cannot be used together.",
                hint="Leave one of them out.",
            )
        return chosen

    def sharing(self, cpus: int) -> TensorFlowOptions:
        """Return the options; numbers of threads that are not given are set for `cpus` CPUs.

        Examples
        --------
        >>> TensorFlowOptions.of({"inter_op_threads": 8}).sharing(4).given()
        {'inter_op_threads': 8, 'intra_op_threads': 4}
        """
        return replace(
            self,
            intra_op_threads=self.intra_op_threads or cpus,
            inter_op_threads=self.inter_op_threads or max(cpus, LEAST_INTER_OP_THREADS),
        )

    def given(self) -> dict[str, Any]:
        """Return the options that are not ``None``.

        Examples
        --------
        >>> TensorFlowOptions.of({"intra_op_threads": 4}).given()
        {'intra_op_threads': 4}
        """
        return {k: v for k, v in asdict(self).items() if v is not None}

    def apply(self) -> None:
        """Apply the settings in a process that has not used TensorFlow yet.

        Examples
        --------
        >>> TensorFlowOptions.of({}).apply()
        """
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
