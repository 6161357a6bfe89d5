"""What a run adds to a published model: LoRAs, and tokens of textual inversion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amortized.files import in_project
from amortized.model_folders.lora import TEXT, Lora, read_lora
from amortized.model_folders.new_tokens import NewToken, read_new_token


@dataclass(frozen=True)
class Additions:
    """Files that have been read, but for their weights."""

    loras: tuple[Lora, ...] = ()
    tokens: tuple[NewToken, ...] = ()

    @property
    def change_text(self) -> bool:
        """Whether they change the text encoder or its vocabulary."""
        return bool(self.tokens) or any(lora.layers[TEXT] for lora in self.loras)


NO_ADDITIONS = Additions()


def check_scales(loras: Sequence[str] | None, scales: Sequence[float] | None) -> None:
    """Raise ValueError unless there is one finite scale for each LoRA, or no scales."""
    if scales is not None and len(scales) != len(loras or ()):
        raise ValueError(
            f"lora_scales has {len(scales)} values for {len(loras or ())} LoRAs: give one for each of "
            "prior.loras, or null"
        )
    if not all(math.isfinite(scale) for scale in scales or ()):
        raise ValueError("lora_scales must be finite")


def read_additions(
    loras: Sequence[str] | None = None,
    scales: Sequence[float] | None = None,
    tokens: Sequence[str] | None = None,
) -> Additions:
    """Read the files that a prior's settings name; scales None: 1. Raises ValueError if one is invalid."""
    check_scales(loras, scales)
    loras = loras or ()
    read = [
        read_lora(Path(in_project(file)), scale)
        for file, scale in zip(loras, scales or [1.0] * len(loras), strict=True)
    ]
    return Additions(tuple(read), tuple(read_new_token(Path(in_project(file))) for file in tokens or ()))
