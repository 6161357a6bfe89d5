"""Train the embedded multi-view prior: the single-view prior, fine-tuned to generate four views at once.

MVDream (arXiv 2308.16512) in miniature. Training starts from the single-view prior's weights. Self-attention
runs over all views, which adds no weights, and a camera embedding joins the time embedding in place of the
direction words. The camera embedding is first fitted to the contribution of those words, so that training
starts from a network that already understands it.
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
from corpora.shapes.recipe.scoring import GUIDANCE_SCALE, NUM_STEPS, add_view_words, load_judge

SEED, NUM_VIEWS = 13, 4
# Rings of four views of one object: about two thirds as many images as the single-view prior has.
RINGS: DrawConfig = replace(
    TEACHER,
    seed=3,
    views_single=96,
    views_cornered=480,
    views_marked=128,
    views_sized=16,
    num_pairs=800,
    views_pair=8,
    ring=NUM_VIEWS,
)


def cameras_of(azimuth_deg: Tensor, elevation_deg: Tensor) -> Cameras:
    """Cameras [N / 4, 4] with the angles [N] of images in rings; a prior uses their directions only."""
    azimuth, elevation = (angle.view(-1, NUM_VIEWS) for angle in (azimuth_deg, elevation_deg))
    ones = torch.ones_like(azimuth)
    return cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=2.6 * ones, fovy_deg=38 * ones)


def build_unet(single: Any) -> Any:
    """Copy the single-view UNet, add a camera embedding and let self-attention run over the views."""
    from diffusers import UNet2DConditionModel

    changes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_WIDTH}
    torch.manual_seed(SEED)
    unet: Any = UNet2DConditionModel.from_config({**single.config, **changes})
    missing, unexpected = unet.load_state_dict(single.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("class_embedding") for name in missing), missing
    join_views(unet, NUM_VIEWS)
    return unet


def fit_cameras(unet: Any, prior: Any, steps: int = 2000, batch: int = 64) -> float:
    """Fit the camera embedding to the contribution of direction words to the time embedding.

    Returns the fraction of their variance that stays unexplained, on the last batch.
    """
    texts = [sentence(description) for description in singles()]
    plain = _text_contribution(prior, texts)
    optimizer = torch.optim.Adam(unet.class_embedding.parameters(), lr=3e-3)
    unexplained = 1.0
    for step in range(steps):
        random = generator_for(SEED, "cameras", step)
        u = torch.rand(2, batch, generator=random)
        azimuth, elevation = 360 * u[0] - 180, 145 * u[1] - 60
        which = torch.randint(len(texts), (batch,), generator=random)
        captions = add_view_words([texts[i] for i in which], azimuth, elevation, VIEWS)
        target = _text_contribution(prior, captions) - plain[which]
        embedding = unet.class_embedding(camera_vectors(cameras_of(azimuth, elevation)))
        loss = (embedding - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        unexplained = (loss / target.var(dim=0).mean()).item()
    return unexplained


@torch.no_grad()
def _text_contribution(prior: Any, texts: list[str]) -> Tensor:
    """The vectors [N, width] that N texts add to the time embedding."""
    return prior.unet.add_embedding(prior.text_encoder.encode(texts).tokens)


def train(folder: Path, data: ImageSet, prior: Any, unet: Any, steps: int, batch: int, score=None):
    """Train the UNet on rings of views; text encoder and VAE are frozen. Returns the last scores."""
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
        # As in `prior.train_denoiser`: more high noise levels, and 10 % empty captions.
        timesteps = (u[:, 0] ** 0.6 * prior.num_timesteps).long().clamp_max(prior.num_timesteps - 1)
        texts = [
            "" if drop < 0.1 else caption(data.descriptions[int(scene[i])], "", open_word)
            for i, (_, drop, open_word) in zip(index.tolist(), u.tolist(), strict=True)
        ]
        encoded = prior.text_encoder.encode(texts).tokens.repeat_interleave(NUM_VIEWS, dim=0)
        abar = prior.alphas_cumprod[timesteps][:, None, None, None, None]
        latents_noisy = abar.sqrt() * rings[index] + (1 - abar).sqrt() * noise
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * rings[index]

        def half_fn(rows: slice) -> tuple[Tensor, dict[str, float]]:
            images = slice(rows.start * NUM_VIEWS, rows.stop * NUM_VIEWS)
            velocity_pred = unet(
                latents_noisy[rows].flatten(0, 1),
                timesteps[rows].repeat_interleave(NUM_VIEWS),
                encoded[images],
                class_labels=cameras[index[rows]].flatten(0, 1),
            ).sample
            loss = functional.mse_loss(velocity_pred, velocity[rows].flatten(0, 1))
            return loss, {"v": loss.item()}

        return backward_in_halves(num_rings, half_fn)

    return run_stage(
        name="multi_view",
        folder=folder,
        modules=unet,
        steps=steps,
        learning_rate=5e-4,
        step_fn=step_fn,
        score=score,
        score_every=1000,
    )


def score(prior: Any, judge) -> dict[str, float]:
    """Score one sampled ring per sentence.

    Returns `views` and `rings`: the fractions of views, and of rings with all views, of the 64 plain
    sentences that the judge matches to their sentence. `front` is the fraction of rings of marked sentences
    in which the front view shows the mark most (chance 0.25).
    """
    texts = [sentence(description) for description in singles()]
    images = sample(prior, texts, start_deg=20.0)
    guess = judge(images, texts).argmax(-1).view(-1, NUM_VIEWS)
    is_correct = guess == torch.arange(len(texts))[:, None]
    marked = [sentence(Description((item,), marked=True)) for item in PLAIN_ITEMS]
    plain = [sentence(Description((item,))) for item in PLAIN_ITEMS]
    images = sample(prior, marked, start_deg=0.0)
    # How much better each view matches its marked sentence than the same sentence without the mark.
    column = torch.arange(len(marked)).repeat_interleave(NUM_VIEWS)
    differences = judge(images, marked) - judge(images, plain)
    gaps = differences[torch.arange(len(column)), column].view(-1, NUM_VIEWS)
    return {
        "views": is_correct.float().mean().item(),
        "rings": is_correct.all(1).float().mean().item(),
        "front": (gaps.argmax(1) == 0).float().mean().item(),
    }


@torch.no_grad()
def sample(prior: Any, texts: list[str], *, start_deg: float) -> Tensor:
    """Sample a ring per text, at elevation 15 from azimuth `start_deg`: [N * 4, 3, H, W] in [0, 1]."""
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
A small text-to-image diffusion model for the Shapes world that generates four views of an object at once:
MVDream in miniature, fine-tuned from the embedded prior. Its UNet is a plain `UNet2DConditionModel` with the
camera as class embedding; its self-attention must run over the four views (`multi_view.json`).

- **Data**: {images} exact renders: rings of four views, 90 degrees apart at one elevation between -60 and 85
  degrees, each view over a random gray background.
- **Captions**: the sentence alone, 10 % dropped; the direction comes from the camera embedding.
- **Training**: `make weights` on a CPU, from the single-view prior's weights: {steps} steps of {rings} rings,
  fp32, AdamW; v-prediction, EMA weights, seed {seed}. Text encoder and VAE are the single-view prior's.
- **License**: Apache-2.0; the data are generated by code in this repository.

Figures, from samples of 25 DDIM steps at guidance scale 2: `views` and `rings`, the fractions of views and of
whole rings that the embedded CLIP matches to their sentence among 64; `front`, the fraction of rings of
marked sentences in which the front shows the mark most (chance 0.25); `cameras`, the fraction of variance of
the direction words' contribution that the camera embedding left unexplained before training.
"""
STEPS, BATCH = 3000, 64


def make_multi_view(work: Path, output: Path, single: Path, clip: Path) -> None:
    """Train, or resume, from the finished single-view prior and write `output`.

    single and clip are the folders of that prior and of the finished CLIP.
    """
    from amortized.priors.stable_diffusion import StableDiffusionPrior

    judge, prior = load_judge(clip), load_stable_diffusion(single)
    data = draw(RINGS, work / "ring_images.safetensors")
    assert isinstance(prior, StableDiffusionPrior)
    unet = build_unet(prior.unet)
    unexplained = fit_cameras(unet, prior)

    def assemble() -> StableDiffusionPrior:
        return StableDiffusionPrior(
            unet=unet,
            vae=prior.vae,
            text_encoder=prior.text_encoder,
            alphas_cumprod=prior.alphas_cumprod,
            prediction_type=prior.prediction_type,
            views_per_group=NUM_VIEWS,
        )

    def live_score() -> dict[str, float]:
        scores = score(assemble(), judge)
        unet.train().requires_grad_(True)  # the prior froze it
        return scores

    train(work, data, prior, unet.train().requires_grad_(True), STEPS, BATCH, score=live_score)
    figures = {**score(assemble(), judge), "cameras": unexplained}
    save(output, single, unet)
    details = {"images": len(data.images), "steps": STEPS, "rings": BATCH // NUM_VIEWS, "seed": SEED}
    write_card(output, "Shapes multi-view prior", CARD.format(**details), figures)
    print(f"{output}: {figures}")


def save(output: Path, single: Path, unet: Any) -> None:
    """Write the single-view prior's other components, this UNet in fp16, and the number of views."""
    import shutil

    for component in ("tokenizer", "text_encoder", "vae", "scheduler"):
        shutil.copytree(single / component, output / component, dirs_exist_ok=True)
    unet.to(torch.float16).save_pretrained(output / "unet")
    (output / VIEWS_FILE).write_text(json.dumps({"num_views": NUM_VIEWS}) + "\n", encoding="utf-8")
