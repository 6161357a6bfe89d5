"""Score distillation without 3D: latents themselves are optimized, and shown as they go.

  python -m amortized.guidance.playground --method dsd --prompt "a red cube, front view az30 el20"
  python -m amortized.guidance.playground --method sds guidance.guidance_scale=7.5 guidance.t_max=0.6

Writes a contact sheet: a column for each image, which differ in their seeds alone; a row for each sixth of
the steps; and, last, what the prior's own sampler makes of the same text. All begin in grey, and every method
asks the denoiser equally often, unless `steps` says otherwise. The embedded prior gets each method at the
schedule recommended for it (configs/methods), another prior at the published one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import ViewText, plain_text
from amortized.config import load_config
from amortized.config.presets import read_presets
from amortized.guidance.config import GuidanceConfig, GuidanceDraws
from amortized.guidance.distillation import Guidance, calls_per_image
from amortized.guidance.learned import build_learned
from amortized.media import save_grid
from amortized.priors import Prior, PriorConfig, ddim, load_prior
from amortized.random import derive_seed, normal, uniform
from amortized.types import Cameras, TextCondition

ROWS = 6
CALLS = 900  # denoiser images for each image: 300 steps of ASD
CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig:
    """What is optimized, and how."""

    prompt: str = "a red cube, front view az30 el20"
    prior: PriorConfig
    guidance: GuidanceConfig
    images: int = 8  # of a multi-view prior: objects, each in all its views
    steps: int | None = None  # null: as many as CALLS denoiser calls an image allow
    learning_rate: float = 0.05  # of Adam, on latents of about unit variance
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1 or null, got {self.steps}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def draws_of(latents: Tensor, seed: int, step: int, group: int = 1) -> GuidanceDraws:
    """The random numbers of a step of latents [B, C, h, w]; each `group` of them is an asset of its own."""
    batch, shape = len(latents), tuple(latents.shape[1:])
    u = torch.stack([uniform((3,), seed, step, image) for image in range(batch)])
    return GuidanceDraws(
        u_timestep=u[:, 0],
        u_shift=u[:, 1],
        u_learned=u[:, 2],
        noise=torch.stack([normal(shape, seed, "noise", step, image) for image in range(batch)]),
        keys=torch.tensor([derive_seed(seed, "image", step, image) for image in range(batch)]),
        seeds=torch.tensor([derive_seed(seed, "asset", image // group) for image in range(batch)]),
        prompts=torch.zeros(batch, dtype=torch.long),
    )


def optimize(
    guidance: Guidance,
    latents: Tensor,
    text: ViewText,
    cameras: Cameras | None,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    each: Callable[[int, Tensor], None] = lambda step, latents: None,
) -> Tensor:
    """Latents [B, C, h, w] after so many steps of Adam; `each` sees them after every step, counted from 1.

    Raises ValueError where a step's loss is not finite.
    """
    latents = latents.clone().requires_grad_()
    groups = [{"params": [latents], "lr": learning_rate}]
    if guidance.learned is not None:
        groups.append({"params": list(guidance.learned.parameters()), "lr": guidance.learning_rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for step in range(steps):
        draws = draws_of(latents, seed, step, guidance.prior.views_per_group)
        learn = step % guidance.learns_every == 0
        taught = guidance(latents, text, draws, step / steps, cameras, learn=learn)
        loss = taught.loss if taught.learned_loss is None else taught.loss + taught.learned_loss
        if not loss.isfinite():
            raise ValueError(
                f"step {step + 1} of {steps}: the loss is not finite: lower learning_rate or "
                "guidance.guidance_scale, or set prior.dtype=float32"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each(step + 1, latents.detach())
    return latents.detach()


def play(config: PlaygroundConfig, prior: Prior) -> Tensor:
    """The contact sheet's images [rows, columns, H, W, 3]: ROWS, or one a step, and one of samples."""
    encoder = prior.text_encoder
    if encoder is None:
        raise ValueError("this prior has no text encoder")
    views = prior.views_per_group
    num_images = config.images * views

    def told(sentence: str) -> TextCondition:
        return expand_row(encoder.encode([sentence]), num_images)

    text = plain_text(told(config.prompt), encoder.encode([""]))
    cameras = None if views == 1 else orbit(config.images, views, elevation_deg=15, distance=1, fovy_deg=40)
    learned, model = config.guidance.learned, None
    if learned is not None:
        own = None if learned.text is None else encoder.encode([learned.text])
        null = encoder.encode([""])
        model = build_learned(learned, prior, null=null, text=own, num_prompts=1, seed=config.seed)
    grey = torch.full((num_images, prior.image_size, prior.image_size, 3), 0.5, device=prior.device)
    with torch.no_grad():
        start = prior.encode(grey)
    steps = config.steps or max(ROWS, round(CALLS / calls_per_image(config.guidance)))
    shown: list[Tensor] = []

    def show(step: int, latents: Tensor) -> None:
        if step * ROWS // steps > (step - 1) * ROWS // steps:
            shown.append(prior.decode(latents))

    optimize(
        Guidance(prior, config.guidance, model), start, text, cameras,
        steps=steps, learning_rate=config.learning_rate, seed=config.seed, each=show,
    )  # fmt: skip
    noise = torch.stack([normal(prior.latent_shape, config.seed, "sample", i) for i in range(num_images)])
    sampled = ddim(
        prior, noise.to(prior.device), text.positive, text.unconditional, num_steps=25, cfg=2.0,
        cameras=cameras,
    )  # fmt: skip
    return torch.stack([*shown, prior.decode(sampled)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="asd", help="a published method, see amortized.guidance.METHODS")
    parser.add_argument("--prompt", default=PlaygroundConfig.prompt)
    parser.add_argument("--prior", help="a folder in diffusers format (default: the embedded one)")
    parser.add_argument("--output", type=Path, help="default: outputs/playground/METHOD.png")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="guidance.*, prior.*, steps, images, ..."
    )


def run(args: argparse.Namespace) -> int:
    """Optimize images as `args` say and write the contact sheet; returns the exit status."""
    settings = [f"prior={args.prior}", f"guidance.method={args.method}"]
    if args.prior is None:
        settings = recommended(args.method)
    config = load_config(PlaygroundConfig, None, [*settings, *args.overrides, f"prompt={args.prompt}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = play(config, load_prior(config.prior, device))
    output = args.output or Path("outputs/playground") / f"{args.method}.png"
    save_grid(output, images.flatten(0, 1), columns=images.shape[1])
    print(output)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m amortized.guidance.playground",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_intermixed_args(argv))
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    return 0


def recommended(method: str) -> list[str]:
    """The embedded prior, and a method's schedule for it, as overrides."""
    own = CONFIGS / "methods" / f"{method}.yaml"
    found = []
    for _, data in read_presets(own if own.exists() else CONFIGS / "quickstart.yaml"):  # which is ASD's
        parts = {part: data[part] for part in ("prior", "guidance") if part in data}
        found += [f"{key}={value}" for key, value in _leaves(parts)]
    return [*found, f"guidance.method={method}"]


def _leaves(data: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of nested mappings, and their values as one would write them."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", f"[{', '.join(value)}]" if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
