"""Score distillation without 3D: optimize latents directly and show how they develop.

  amortized playground --method dsd --prompt "a red cube, front view az30 el20"
  amortized playground --method sds guidance.guidance_scale=7.5 guidance.t_max=0.6

Writes a contact sheet: one column per image, which differ only in their seeds; one row per sixth of the
steps; and a last row of samples from the prior for the same text. All images start from gray, and every
method gets the same number of denoiser calls unless `steps` is set. The embedded prior uses the method's
recommended schedule (configs/methods), another prior its published one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amortized import arguments
from amortized.cameras import orbit
from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import ViewText, plain_text
from amortized.config import check, load_config
from amortized.config.presets import flatten, read_presets
from amortized.files import PROJECT
from amortized.guidance.building import build_guidance
from amortized.guidance.config import GuidanceConfig
from amortized.guidance.costs import calls_per_image
from amortized.guidance.distillation import Guidance
from amortized.guidance.draws import GuidanceDraws
from amortized.media import save_grid
from amortized.priors import Prior, PriorConfig, ddim, load_prior
from amortized.random import derive_seed, normal, uniform
from amortized.types import Cameras

ROWS = 6
CALLS = 900  # denoiser calls per image: 300 steps of ASD
CONFIGS = PROJECT / "configs"


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig:
    """Settings of the playground."""

    prompt: str = "a red cube, front view az30 el20"
    prior: PriorConfig
    guidance: GuidanceConfig
    images: int = 8  # with a multi-view prior: objects, each with all its views
    steps: int | None = None  # null: for CALLS denoiser calls per image
    learning_rate: float = 0.05  # of Adam, on latents of about unit variance
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "images", at_least=1, limit=4096)
        check(self, "steps", at_least=1, limit=10**6)
        check(self, "learning_rate", above=0)
        if not self.prompt.strip():
            raise ValueError("prompt is empty: give a text")


def draws_of(latents: Tensor, seed: int, step: int, group: int = 1) -> GuidanceDraws:
    """Draw the random numbers of a step for latents [B, C, h, w]; each `group` of them is one asset."""
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
    """Return latents [B, C, h, w] after `steps` steps of Adam.

    Calls `each(step, latents)` after each step, counted from 1. Raises ValueError if a loss is not finite.
    """
    latents = latents.clone().requires_grad_()
    groups = [{"params": [latents], "lr": learning_rate}]
    if guidance.learned is not None:
        groups.append({"params": list(guidance.learned.parameters()), "lr": guidance.learning_rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for step in range(steps):
        draws = draws_of(latents, seed, step, guidance.prior.views_per_group)
        learn = step % guidance.learns_every == 0
        output = guidance(latents, text, draws, step / steps, cameras, learn=learn)
        loss = output.loss if output.learned_loss is None else output.loss + output.learned_loss
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


def make_sheet(config: PlaygroundConfig, prior: Prior) -> Tensor:
    """Return the images [rows, columns, H, W, 3] of the contact sheet: ROWS of steps, then samples.

    Raises ValueError if the prior has no text encoder.
    """
    encoder = prior.text_encoder
    if encoder is None:
        raise ValueError("this prior has no text encoder")
    views = prior.views_per_group
    num_images = config.images * views

    text = plain_text(expand_row(encoder.encode([config.prompt]), num_images), encoder.encode([""]))
    cameras = None if views == 1 else orbit(config.images, views, elevation_deg=15, distance=1, fovy_deg=40)
    guidance = build_guidance(config.guidance, prior, encode=encoder.encode, num_prompts=1, seed=config.seed)
    gray = torch.full((num_images, prior.image_size, prior.image_size, 3), 0.5, device=prior.device)
    with torch.no_grad():
        start = prior.encode(gray)
    steps = config.steps or max(ROWS, round(CALLS / calls_per_image(config.guidance)))
    rows: list[Tensor] = []

    def show(step: int, latents: Tensor) -> None:
        if step * ROWS // steps > (step - 1) * ROWS // steps:
            rows.append(prior.decode(latents))

    optimize(
        guidance,
        start,
        text,
        cameras,
        steps=steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
        each=show,
    )
    noise = torch.stack([normal(prior.latent_shape, config.seed, "sample", i) for i in range(num_images)])
    samples = ddim(
        prior,
        noise.to(prior.device),
        text.positive,
        text.unconditional,
        num_steps=25,
        cfg=2.0,
        cameras=cameras,
    )
    return torch.stack([*rows, prior.decode(samples)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="asd", help="a published method, see amortized.guidance.METHODS")
    parser.add_argument("--prompt", type=arguments.text, default=PlaygroundConfig.prompt)
    parser.add_argument(
        "--prior", type=arguments.path_text, help="a prior in diffusers format (default: the embedded)"
    )
    parser.add_argument(
        "--output", type=arguments.path, help="image to write (default: outputs/playground/METHOD.png)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="guidance.*, prior.*, steps, images, ..."
    )


def run(args: argparse.Namespace) -> int:
    """Run the playground from parsed arguments and return the exit status."""
    settings = [f"prior={args.prior}", f"guidance.method={args.method}"]
    if args.prior is None:
        settings = recommended(args.method)
    config = load_config(PlaygroundConfig, None, [*settings, *args.overrides, f"prompt={args.prompt}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = make_sheet(config, load_prior(config.prior, device))
    output = args.output or Path("outputs/playground") / f"{args.method}.png"
    save_grid(output, images.flatten(0, 1), columns=images.shape[1])
    print(output)
    return 0


def recommended(method: str) -> list[str]:
    """Return overrides that select the embedded prior and the method's recommended schedule for it."""
    preset = CONFIGS / "methods" / f"{method}.yaml"
    preset = preset if preset.exists() else CONFIGS / "quickstart.yaml"  # the quickstart is ASD's preset
    overrides = []
    for _, data in read_presets(preset):
        sections = {name: data[name] for name in ("prior", "guidance") if name in data}
        for key, value in flatten(sections).items():
            overrides.append(f"{key}=[{', '.join(value)}]" if isinstance(value, list) else f"{key}={value}")
    return [*overrides, f"guidance.method={method}"]
