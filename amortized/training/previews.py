"""Pictures of a training: a row per prompt, four sides of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from amortized.cameras import CameraConfig, orbit
from amortized.conditioning import TextBank
from amortized.media import save_grid
from amortized.rendering import RendererConfig, render
from amortized.transfer import to_device
from amortized.types import Prompt

SIZE = 64  # px


@torch.no_grad()
def preview(
    generator: nn.Module,
    bank: TextBank,
    prompts: Sequence[Prompt],
    *,
    z: Tensor,
    cameras: CameraConfig,
    renderer: RendererConfig,
    sharpness: float,
    device: torch.device,
) -> Tensor:
    """Render each prompt from four sides, one prompt in memory at a time: images [4 * P, SIZE, SIZE, 3].

    z is [P, z_dim]. Behind it is its own background, or grey. The generator is left in evaluation mode.
    """
    generator.eval()
    sides = orbit(
        1,
        4,
        elevation_deg=20.0,
        distance=sum(cameras.distance) / 2,
        fovy_deg=sum(cameras.fovy_deg) / 2,
        start_azimuth_deg=20.0,
    )
    sides = to_device(sides, device)
    rows = [
        render(
            generator(bank.generator_text([prompt.text]), own_z[None].to(device)),
            sides,
            SIZE,
            SIZE,
            config=renderer,
            background=torch.full((1, 4, 3), 0.5, device=device),
            own_background=torch.ones(1, 4, dtype=torch.bool, device=device),
            training=False,
            sharpness=sharpness,
        ).rgb[0]
        for prompt, own_z in zip(prompts, z, strict=True)
    ]
    return torch.cat(rows).cpu()


def save_preview(path: Path, images: Tensor) -> None:
    """One PNG of images [4 * P, SIZE, SIZE, 3]: a row a prompt, or two side by side where there are many."""
    save_grid(path, images, columns=4 * (1 + (len(images) > 16)))
