"""CPU offload of a frozen network: its weights are on the GPU only during a call."""

from __future__ import annotations

import torch

from amortized.transfer import pin, to_device


class OffloadedWeights:
    """Context: copy a network's weights from CPU memory to `device`, and drop the copy on exit.

    Nothing is copied back: the weights are frozen.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self.tensors = [*network.parameters(), *network.buffers()]
        if device.type == "cuda":
            for tensor in self.tensors:
                tensor.data = pin(tensor.data)
        self.cpu_copies = [tensor.data for tensor in self.tensors]

    def __enter__(self) -> None:
        for tensor, cpu_copy in zip(self.tensors, self.cpu_copies, strict=True):
            tensor.data = to_device(cpu_copy, self.device)

    def __exit__(self, *error: object) -> None:
        for tensor, cpu_copy in zip(self.tensors, self.cpu_copies, strict=True):
            tensor.data = cpu_copy
