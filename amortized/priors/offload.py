"""A frozen network that lies in main memory and visits a GPU, where that has no room for it all the time."""

from __future__ import annotations

import torch

from amortized.transfer import pin, to_device


class OffloadedWeights:
    """Weights of a network that lies in main memory, and is on another device as `with weights:`.

    What is copied there is let go again, never copied back: the weights are frozen.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self.tensors = [*network.parameters(), *network.buffers()]
        if device.type == "cuda":
            for tensor in self.tensors:
                tensor.data = pin(tensor.data)
        self.masters = [tensor.data for tensor in self.tensors]

    def __enter__(self) -> None:
        for tensor, master in zip(self.tensors, self.masters, strict=True):
            tensor.data = to_device(master, self.device)

    def __exit__(self, *error: object) -> None:
        for tensor, master in zip(self.tensors, self.masters, strict=True):
            tensor.data = master
