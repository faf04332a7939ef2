"""Copy tensors from main memory to a GPU without a wait for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of main memory on a device.

    A plain copy to a GPU waits until all work before it is done. One from pinned memory is queued
    behind that work, and the CPU prepares the next kernels meanwhile.
    """
    if torch.device(device).type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)
