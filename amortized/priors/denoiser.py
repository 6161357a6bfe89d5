"""A frozen denoising network: its device, precision, CUDA graphs, and a LoRA that can be switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from amortized.priors.base import ADAPTER_EXISTS
from amortized.priors.graphs import GraphedFunction
from amortized.priors.offload import OffloadedWeights


class FrozenDenoiser:
    """A network that runs in its own dtype, on its own device or, offloaded, on `device`."""

    def __init__(
        self,
        network: Any,
        run: Callable[..., Tensor],
        device: torch.device,
        *,
        lora_targets: Sequence[str],
        offload: bool = False,
    ) -> None:
        """Freeze a UNet2DConditionModel or SD3Transformer2DModel of diffusers.

        run           calls it: from latents, timesteps and conditions to its raw prediction
        lora_targets  the names of the layers that an adapter changes
        offload       the network is in CPU memory, and copied to `device` for each call
        """
        self.network = network.eval().requires_grad_(False)
        self.dtype: torch.dtype = network.dtype
        self.device = device if offload else next(network.parameters()).device
        self.run, self.graphed = run, GraphedFunction(run)
        self.lora_targets = list(lora_targets)
        self.adapter: LoraWeights | None = None
        self._offloaded = OffloadedWeights(network, device) if offload else None
        if device.type == "cuda":  # the layout that convolutions on tensor cores use
            network.to(memory_format=torch.channels_last)

    def __call__(self, *inputs: Tensor, adapted: bool, graph: bool) -> Tensor:
        """Return `run` of inputs on any device; all but the timesteps are cast to the network's dtype.

        adapted  with the adapter
        graph    as a CUDA graph where that is possible
        """
        first, timesteps, *others = inputs
        first, *others = (each.to(device=self.device, dtype=self.dtype) for each in (first, *others))
        # No graph with an adapter, which is switched on and off, or with the gradient of a learned text.
        graph = graph and self.adapter is None and not torch.is_grad_enabled()
        with_adapter = adapted or self.adapter is None
        with self._on_device(), nullcontext() if with_adapter else self._adapter_disabled():
            return (self.graphed if graph else self.run)(first, timesteps.to(self.device), *others)

    def add_adapter(self, rank: int, scale: float) -> LoraWeights:
        """Add a LoRA to the layers `lora_targets`; its weights are float32.

        Raises ValueError if there is one.
        """
        from peft import LoraConfig

        if self.adapter is not None:
            raise ValueError(ADAPTER_EXISTS)
        alpha: Any = rank * scale  # annotated as an integer in peft; any number works
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=self.lora_targets)
        self.network.add_adapter(config)
        weights = {name: value for name, value in self.network.named_parameters() if "lora_" in name}
        for value in weights.values():
            value.data = value.data.float()
        self.adapter = LoraWeights(weights)
        return self.adapter

    def _on_device(self) -> AbstractContextManager[None]:
        """Context: copy an offloaded network to its compute device."""
        return nullcontext() if self._offloaded is None else self._offloaded

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        """Context: disable the LoRA adapter."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()


class LoraWeights(torch.nn.Module):
    """The weights of an adapter inside another module, as a module for optimizer and checkpoints."""

    def __init__(self, weights: dict[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({k.replace(".", "/"): v for k, v in weights.items()})
