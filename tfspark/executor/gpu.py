"""Which GPUs a node sees: what Spark assigned to its task, in the words that CUDA understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfspark.errors import ResourceError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE = "-1"


def visible_devices(addresses: Sequence[str], executor_sees: str | None) -> tuple[str, ...]:
    """Return the devices behind the addresses that Spark assigned.

    Parameters
    ----------
    addresses
        Of the task, from ``TaskContext.resources()``.
    executor_sees
        ``CUDA_VISIBLE_DEVICES`` of the executor, if it has one: CUDA then counts these from 0, so numbers count them
        too, as far as they go. Anything else must be one of them.

    Raises
    ------
    ResourceError
        If Spark assigned a device that the executor does not see.
    """
    if executor_sees is None:
        return tuple(addresses)
    seen = [d.strip() for d in executor_sees.split(",") if d.strip() not in ("", NONE)]
    devices = []
    for address in addresses:
        if address.isdecimal() and int(address) < len(seen):
            devices.append(seen[int(address)])
        elif address in seen:
            devices.append(address)
        else:
            raise ResourceError(
                f"Spark assigned GPU {address!r}, but the executor's {VISIBLE} is {executor_sees!r}.",
                hint=f"The discovery script must print positions in {VISIBLE}, or its entries, or the executor must "
                "not have that variable.",
            )
    return tuple(devices)


def gpus_of_node(
    amount: float | None, addresses: Sequence[str], env: Mapping[str, str], executor_sees: str | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the GPUs of a node, and the variables by which its process sees them and no others.

    Parameters
    ----------
    amount
        What it was given, maybe a share of one; ``None`` if Spark was not asked and knows of none, so that what the
        executor itself sees goes.
    addresses, executor_sees
        As for `visible_devices`.
    env
        What is set already, and stays if it is a matter of taste.

    Raises
    ------
    ResourceError
        If Spark assigned a device that the executor does not see.
    """
    if amount is None and executor_sees is not None:
        return (), {VISIBLE: executor_sees}
    devices = visible_devices(addresses, executor_sees) if amount else ()
    if not amount or not devices:
        return (), {VISIBLE: NONE}
    made = {VISIBLE: ",".join(devices)}
    if all(d.isdecimal() for d in devices) and "CUDA_DEVICE_ORDER" not in env:
        # Discovery scripts number GPUs as nvidia-smi does; CUDA, unless told so, begins with the fastest.
        made["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if amount < 1 and "TF_FORCE_GPU_ALLOW_GROWTH" not in env:
        # Others use it at the same time, and TensorFlow would take all of its memory.
        made["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return devices, made
