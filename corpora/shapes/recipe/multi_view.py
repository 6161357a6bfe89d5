"""The embedded multi-view prior: the embedded prior, taught to draw four sides of one object at once.

MVDream (arXiv 2308.16512) in miniature. The weights are the single-view prior's; self-attention runs over
the views, which adds none, and the camera joins the time embedding in place of words for the direction. The
new embedding is first fitted to what those words add there, so that the network knows the camera's
language before it is trained on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amortized.cameras import cameras_at, orbit
from amortized.conditioning.rows import expand_row
from amortized.priors import ddim, load_stable_diffusion
from amortized.priors.multi_view import CAMERA_WIDTH, VIEWS_FILE, camera_vectors, join_views
from amortized.random import generator_for, normal
from amortized.types import Cameras
from corpora.shapes.grammar import PLAIN_ITEMS, Description, sentence, singles
from corpora.shapes.recipe.card import write_card
from corpora.shapes.recipe.images import TEACHER, DrawConfig, ImageSet, caption, draw
from corpora.shapes.recipe.prior import VIEWS, encode_all
from corpora.shapes.recipe.progress import backward_in_halves, run_stage
from corpora.shapes.recipe.scoring import GUIDANCE_SCALE, NUM_STEPS, load_judge, seen_from

SEED, NUM_VIEWS = 13, 4
# Rings of four views; half as many images as the single-view prior has seen, all of them as pictures of one.
RINGS: DrawConfig = replace(
    TEACHER, seed=3, views_single=96, views_cornered=480, views_marked=128, views_sized=16, num_pairs=800,
    views_pair=8, ring=NUM_VIEWS,
)  # fmt: skip


def cameras_of(azimuth_deg: Tensor, elevation_deg: Tensor) -> Cameras:
    """Cameras [N / 4, 4] of images [N]; a prior reads their directions only."""
    azimuth, elevation = (angle.view(-1, NUM_VIEWS) for angle in (azimuth_deg, elevation_deg))
    ones = torch.ones_like(azimuth)
    return cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=2.6 * ones, fovy_deg=38 * ones)


def build_unet(single: Any) -> Any:
    """The single-view UNet with a camera embedding, and attention over the views."""
    from diffusers import UNet2DConditionModel

    changes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_WIDTH}
    torch.manual_seed(SEED)
    unet: Any = UNet2DConditionModel.from_config({**single.config, **changes})
    missing, unexpected = unet.load_state_dict(single.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("class_embedding") for name in missing), missing
    join_views(unet, NUM_VIEWS)
    return unet


def fit_cameras(unet: Any, prior: Any, steps: int = 2000, batch: int = 64) -> float:
    """Fit the camera embedding to what words for the direction add to the time embedding; the share of
    their variance that it leaves unexplained."""
    texts = [sentence(description) for description in singles()]
    plain = _added(prior, texts)
    optimizer = torch.optim.Adam(unet.class_embedding.parameters(), lr=3e-3)
    unexplained = 1.0
    for step in range(steps):
        random = generator_for(SEED, "cameras", step)
        u = torch.rand(2, batch, generator=random)
        azimuth, elevation = 360 * u[0] - 180, 145 * u[1] - 60
        which = torch.randint(len(texts), (batch,), generator=random)
        told = seen_from([texts[i] for i in which], azimuth, elevation, VIEWS)
        wanted = _added(prior, told) - plain[which]
        found = unet.class_embedding(camera_vectors(cameras_of(azimuth, elevation)))
        loss = (found - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        unexplained = (loss / wanted.var(dim=0).mean()).item()
    return unexplained


@torch.no_grad()
def _added(prior: Any, texts: list[str]) -> Tensor:
    """What sentences add to the time embedding [N, width]."""
    return prior.unet.add_embedding(prior.text_encoder.encode(texts).tokens)


def train(folder: Path, data: ImageSet, prior: Any, unet: Any, steps: int, batch: int, score=None):
    """Train the UNet on rings of views; text encoder and VAE stay as they are."""
    latents = encode_all(prior.vae, data.images) * prior.vae.config.scaling_factor
    rings = latents.unflatten(0, (-1, NUM_VIEWS))
    scene = data.scene[::NUM_VIEWS]
    cameras = camera_vectors(cameras_of(data.azimuth_deg, data.elevation_deg)).unflatten(0, (-1, NUM_VIEWS))
    num_rings = batch // NUM_VIEWS

    def step_fn(step: int) -> dict[str, float]:
        random = generator_for(SEED, "multi-view", step)
        index = torch.randint(len(rings), (num_rings,), generator=random)
        u = torch.rand(num_rings, 3, generator=random)
        noise = torch.randn(num_rings, *rings.shape[1:], generator=random)
        timesteps = (u[:, 0] ** 0.6 * prior.num_timesteps).long().clamp_max(prior.num_timesteps - 1)
        texts = [
            "" if drop < 0.1 else caption(data.descriptions[int(scene[i])], "", open_word)
            for i, (_, drop, open_word) in zip(index.tolist(), u.tolist(), strict=True)
        ]
        encoded = prior.text_encoder.encode(texts).tokens.repeat_interleave(NUM_VIEWS, dim=0)
        abar = prior.alphas_cumprod[timesteps][:, None, None, None, None]
        noisy = abar.sqrt() * rings[index] + (1 - abar).sqrt() * noise
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * rings[index]

        def half_fn(rows: slice) -> tuple[Tensor, dict[str, float]]:
            images = slice(rows.start * NUM_VIEWS, rows.stop * NUM_VIEWS)
            predicted = unet(
                noisy[rows].flatten(0, 1),
                timesteps[rows].repeat_interleave(NUM_VIEWS),
                encoded[images],
                class_labels=cameras[index[rows]].flatten(0, 1),
            ).sample
            loss = functional.mse_loss(predicted, velocity[rows].flatten(0, 1))
            return loss, {"v": loss.item()}

        return backward_in_halves(num_rings, half_fn)

    return run_stage(
        name="multi_view", folder=folder, modules=unet, steps=steps, learning_rate=5e-4, step_fn=step_fn,
        score=score, score_every=1000,
    )  # fmt: skip


def score(prior: Any, judge) -> dict[str, float]:
    """Of one ring a plain sentence: the share of views given back as their sentence, and of rings all of
    whose views are; of marked ones: how often the front shows the mark more than the back."""
    texts = [sentence(description) for description in singles()]
    images = sample(prior, texts, start_deg=20.0)
    guess = judge(images, texts).argmax(-1).view(-1, NUM_VIEWS)
    right = guess == torch.arange(len(texts))[:, None]
    marked = [sentence(Description((item,), marked=True)) for item in PLAIN_ITEMS]
    plain = [sentence(Description((item,))) for item in PLAIN_ITEMS]
    images = sample(prior, marked, start_deg=0.0)
    of = torch.arange(len(marked)).repeat_interleave(NUM_VIEWS)
    gaps = (judge(images, marked) - judge(images, plain))[torch.arange(len(of)), of].view(-1, NUM_VIEWS)
    return {
        "views": right.float().mean().item(),
        "rings": right.all(1).float().mean().item(),
        "front": (gaps.argmax(1) == 0).float().mean().item(),
    }


@torch.no_grad()
def sample(prior: Any, texts: list[str], *, start_deg: float) -> Tensor:
    """Images [N * 4, 3, H, W] of N sentences, each a ring at elevation 15 from azimuth `start_deg` on."""
    num = len(texts) * NUM_VIEWS
    cameras = orbit(
        len(texts),
        NUM_VIEWS,
        elevation_deg=15,
        distance=2.6,
        fovy_deg=38,
        start_azimuth_deg=start_deg,
    )
    noise = torch.stack([normal(prior.latent_shape, SEED, "sample", i) for i in range(num)])
    text = prior.text_encoder.encode([text for text in texts for _ in range(NUM_VIEWS)])
    null = expand_row(prior.text_encoder.encode([""]), num)
    latents = ddim(prior, noise, text, null, num_steps=NUM_STEPS, cfg=GUIDANCE_SCALE, cameras=cameras)
    return prior.decode(latents).movedim(-1, 1)


CARD = """
A small text-to-image diffusion model of the Shapes world that draws four sides of an object at once: MVDream
in miniature, the multi-view sibling of the embedded prior. Its UNet is an ordinary `UNet2DConditionModel`
whose self-attention is to run over the four views (`multi_view.json`), with the camera as class embedding.

- **Data**: {images} exact renders, rings of four views 90 degrees apart at one elevation from -60 to 85
  degrees, each over a grey of its own.
- **Captions**: the sentence alone, dropped in 10 %; the direction is the camera's to tell.
- **Training**: `make weights` on a CPU, from the single-view prior's weights: {steps} steps of {rings} rings,
  fp32, AdamW; v-prediction, averaged weights, seed {seed}. Text encoder and VAE are the single-view prior's.
- **Licence**: Apache-2.0; the data are generated by code in this repository.

Figures, by 25 DDIM steps at guidance scale 2 and the embedded CLIP: `views` and `rings`, the shares of views
and of whole rings given back as their sentence among 64; `front`, the share of rings of marked sentences that
show the mark most in front (chance 0.25); `cameras`, the unexplained share of what words for directions said.
"""
STEPS, BATCH = 3000, 64


def make_multi_view(work: Path, output: Path, single: Path, clip: Path) -> None:
    """Train what is not trained yet and write `output`, from the finished single-view prior."""
    from amortized.priors.stable_diffusion import StableDiffusionPrior

    judge, prior = load_judge(clip), load_stable_diffusion(single)
    data = draw(RINGS, work / "ring_images.safetensors")
    unet = build_unet(prior.unet)
    unexplained = fit_cameras(unet, prior)

    def assembled() -> StableDiffusionPrior:
        return StableDiffusionPrior(
            unet=unet, vae=prior.vae, text_encoder=prior.text_encoder, alphas_cumprod=prior.alphas_cumprod,
            prediction_type=prior.prediction_type, views_per_group=NUM_VIEWS,
        )  # fmt: skip

    def live_score() -> dict[str, float]:
        found = score(assembled(), judge)
        unet.train().requires_grad_(True)
        return found

    train(work, data, prior, unet.train().requires_grad_(True), STEPS, BATCH, score=live_score)
    figures = {**score(assembled(), judge), "cameras": unexplained}
    save(output, single, unet)
    details = {"images": len(data.images), "steps": STEPS, "rings": BATCH // NUM_VIEWS, "seed": SEED}
    write_card(output, "Shapes multi-view prior", CARD.format(**details), figures)
    print(f"{output}: {figures}")


def save(output: Path, single: Path, unet: Any) -> None:
    """The folder: the single-view prior's parts, this UNet in half precision, and the number of views."""
    import shutil

    for part in ("tokenizer", "text_encoder", "vae", "scheduler"):
        shutil.copytree(single / part, output / part, dirs_exist_ok=True)
    unet.to(torch.float16).save_pretrained(output / "unet")
    (output / VIEWS_FILE).write_text(json.dumps({"num_views": NUM_VIEWS}) + "\n")
