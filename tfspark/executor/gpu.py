"""The GPUs that a TensorFlow process sees: those that Spark assigned to its task, as CUDA's environment variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfspark.errors import ResourceError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE = "-1"


def visible_devices(addresses: Sequence[str], executor_sees: str | None) -> tuple[str, ...]:
    """Return the devices for the GPU addresses that Spark assigned.

    Parameters
    ----------
    addresses
        GPU addresses of the task, from ``TaskContext.resources()``.
    executor_sees
        ``CUDA_VISIBLE_DEVICES`` of the executor, or None. If it is set, CUDA numbers its entries from 0, so an address
        that is a number is a position in it. Any other address must be one of its entries.

    Raises
    ------
    ResourceError
        If Spark assigned a device that is not in the executor's ``CUDA_VISIBLE_DEVICES``.
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
                f"Spark assigned GPU {address!r}, but the executor sees only {VISIBLE}={executor_sees!r}.",
                hint=f"Unset {VISIBLE} on the executor, or let the GPU discovery script print its entries or their "
                "positions.",
            )
    return tuple(devices)


def gpus_of_process(
    amount: float | None, addresses: Sequence[str], env: Mapping[str, str], executor_sees: str | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the GPUs of a node or of a predicting task, and the variables that make it see only these GPUs.

    Parameters
    ----------
    amount
        GPUs assigned to the node; less than 1 is a share of one GPU. ``None`` if Spark does not manage GPUs: the node
        then sees what the executor sees.
    addresses, executor_sees
        As for `visible_devices`.
    env
        Environment of the node; ``CUDA_DEVICE_ORDER`` and ``TF_FORCE_GPU_ALLOW_GROWTH`` in it are kept.

    Raises
    ------
    ResourceError
        If Spark assigned a device that is not in the executor's ``CUDA_VISIBLE_DEVICES``.
    """
    if amount is None and executor_sees is not None:
        return (), {VISIBLE: executor_sees}
    devices = visible_devices(addresses, executor_sees) if amount else ()
    if not amount or not devices:
        return (), {VISIBLE: NONE}
    made = {VISIBLE: ",".join(devices)}
    if all(d.isdecimal() for d in devices) and "CUDA_DEVICE_ORDER" not in env:
        # Discovery scripts number GPUs as nvidia-smi does, by PCI bus. CUDA's default order is fastest first.
        made["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if amount < 1 and "TF_FORCE_GPU_ALLOW_GROWTH" not in env:
        # Other processes share this GPU, and by default TensorFlow would allocate all of its memory.
        made["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return devices, made
