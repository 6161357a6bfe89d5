"""Train the embedded prior: tokenizer, text encoder, VAE, UNet and scheduler in Stable Diffusion's format.

Three stages: the VAE encoder is set to half-whitened PCA; the decoder learns to reconstruct; text encoder and
UNet train together on the latents with v-prediction (arXiv 2202.00512). High noise levels are sampled more
often: there the noisy image no longer shows the color, so the network must read the color word, which the
plain loss hardly rewards.

Two auxiliary heads are trained and discarded. One reconstructs the sentence from the text encoder's pooled
vector, because generators are conditioned on that vector. The other regresses the camera direction from the
text vector that joins the time embedding; without it the network does not learn which way corners face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from amortized.conditioning import ViewTextConfig, azimuth_word, elevation_word
from amortized.random import generator_for
from corpora.shapes.recipe.card import write_card
from corpora.shapes.recipe.images import TEACHER, ImageSet, caption, draw
from corpora.shapes.recipe.linear_encoder import make_linear, principal_directions
from corpora.shapes.recipe.progress import backward_in_halves, batch_indices, run_stage
from corpora.shapes.recipe.scoring import add_view_words, load_judge, score_prior
from corpora.shapes.recipe.tokenizer import CONTEXT_LENGTH, build_tokenizer

SEED = 11
VIEWS = ViewTextConfig(direction_step_deg=10)
AZIMUTHS = range(0, 360, VIEWS.direction_step_deg)
ELEVATIONS = range(-90, 91, VIEWS.direction_step_deg)
TEXT_WIDTH = 128
LATENT_CHANNELS = 8


VAE = {
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "sample_size": TEACHER.image_size,
    "mid_block_add_attention": False,
}
UNET = {
    "sample_size": TEACHER.image_size // 4,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "use_linear_projection": True,
    # The pooled text joins the time embedding, which scales and shifts every residual block. Cross-attention
    # alone, in the coarser half of the network, did not learn the camera directions (docs/log.md).
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def build_vae() -> Any:
    """An untrained `AutoencoderKL`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def build_unet() -> Any:
    """An untrained `UNet2DConditionModel`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def build_text_encoder(tokenizer):
    """An untrained `CLIPTextModel` for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_prior_tokenizer():
    """The tokenizer of the grammar, with one token for each direction word such as az330 and el-10."""
    return build_tokenizer([*map(azimuth_word, AZIMUTHS), *map(elevation_word, ELEVATIONS)])


def harmonics_of(angles_deg: Tensor) -> Tensor:
    """Fourier features [N, 17] of angles [N]: cos of 0 to 8 times the angle, sin of 1 to 8 times."""
    multiples = torch.deg2rad(angles_deg[:, None] * torch.arange(9))
    return torch.cat([multiples.cos(), multiples[:, 1:].sin()], dim=1)


@torch.no_grad()
def init_direction_embeddings(text_encoder: Any, tokenizer: Any) -> None:
    """Initialize the embeddings of direction words from Fourier features of their angles, in place.

    Neighboring directions start close together, and functions that repeat every 90 degrees, like the views of
    a cube, are linear in them. From random embeddings, directions took longer to learn than everything else.
    """
    embedding = text_encoder.get_input_embeddings().weight
    random = generator_for(SEED, "directions")
    for angles, word in ((AZIMUTHS, azimuth_word), (ELEVATIONS, elevation_word)):
        features = harmonics_of(torch.tensor(angles))
        mixing = torch.randn(features.shape[1], TEXT_WIDTH, generator=random)
        ids = tokenizer.convert_tokens_to_ids([word(angle) for angle in angles])
        # 0.02 is the standard deviation of CLIP's token embeddings.
        embedding[ids] = 0.02 * features @ mixing


def build_scheduler() -> Any:
    """A `DDIMScheduler` with the noise schedule of Stable Diffusion."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def as_pixels(images: Tensor) -> Tensor:
    """Convert uint8 images [N, H, W, 3] to float [N, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def build_codec(data: ImageSet):
    """Stage 1: a VAE with a half-whitened PCA encoder (see `linear_encoder`) and an untrained decoder."""
    torch.manual_seed(SEED)
    vae = build_vae()
    mean, projection, _ = principal_directions(as_pixels(data.images[::7]), LATENT_CHANNELS)
    make_linear(vae, mean, projection)
    vae.register_to_config(scaling_factor=round(1 / encode_all(vae, data.images[::8]).std().item(), 5))
    return vae.requires_grad_(False).eval()


def train_decoder(folder: Path, data: ImageSet, vae, steps: int, batch: int = 16) -> None:
    """Stage 2: train the decoder with L1 + L2 reconstruction; it only serves to look at samples."""
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True).train()
    latents = encode_all(vae, data.images)

    def step_fn(step: int) -> dict[str, float]:
        index = batch_indices(len(latents), batch, SEED, "decoder", step)

        def half_fn(rows: slice) -> tuple[Tensor, dict[str, float]]:
            residual = vae.decode(latents[index[rows]]).sample - as_pixels(data.images[index[rows]])
            loss = residual.abs().mean() + 2 * residual.square().mean()
            return loss, {"mse": residual.square().mean().item()}

        return backward_in_halves(batch, half_fn)

    run_stage(
        name="decoder", folder=folder, modules=decoder, steps=steps, learning_rate=1.5e-3, step_fn=step_fn
    )


@torch.no_grad()
def encode_all(vae: Any, images: Tensor) -> Tensor:
    """Posterior means [N, C, h, w] of uint8 images [N, H, W, 3], unscaled."""
    return torch.cat([vae.encode(as_pixels(chunk)).latent_dist.mean for chunk in images.split(256)])


def train_denoiser(folder: Path, data: ImageSet, vae, steps: int, batch: int, score=None):
    """Stage 3: train text encoder and UNet together; returns (pipeline, scores).

    score: called with the assembled pipeline during training, to log its scores.
    """
    torch.manual_seed(SEED + 1)
    tokenizer = build_prior_tokenizer()
    text_encoder, unet, scheduler = build_text_encoder(tokenizer), build_unet(), build_scheduler()
    init_direction_embeddings(text_encoder, tokenizer)
    # The keys of the two auxiliary heads are part of the saved training state.
    word_head = nn.Linear(TEXT_WIDTH, CONTEXT_LENGTH * len(tokenizer))
    harmonics = torch.cat([harmonics_of(data.azimuth_deg), harmonics_of(data.elevation_deg)], dim=1)
    direction_head = nn.Linear(unet.time_embedding.linear_2.out_features, harmonics.shape[1])
    modules = nn.ModuleDict(
        {"text_encoder": text_encoder, "unet": unet, "reader": word_head, "pointer": direction_head}
    )
    latents = encode_all(vae, data.images) * vae.config.scaling_factor
    alphas_cumprod = scheduler.alphas_cumprod
    name_words, degree_words = (
        add_view_words([""] * len(latents), data.azimuth_deg, data.elevation_deg, views)
        for views in (ViewTextConfig(), VIEWS)
    )

    def step_fn(step: int) -> dict[str, float]:
        index = batch_indices(len(latents), batch, SEED, "denoiser", step)
        random = generator_for(SEED, "denoiser noise", step)
        u = torch.rand(batch, 3, generator=random)
        noise = torch.randn(batch, *latents.shape[1:], generator=random)
        # u ** 0.6 has density proportional to t ** (2 / 3): more high noise levels. The exponent is a choice.
        timestep_fraction = torch.rand(batch, generator=random) ** 0.6
        timesteps = (timestep_fraction * scheduler.config.num_train_timesteps).long().clamp_max(999)
        # 10 % empty captions for CFG; of the rest 10 % without a view, 15 % with its name ("front view") and
        # 75 % with name and angles. The fractions are choices.
        has_angles = (u[:, 1] >= 0.1) & (u[:, 2] >= 0.25)  # [B]
        texts = []
        for i, (open_word, drop, view) in zip(index.tolist(), u.tolist(), strict=True):
            view_suffixes = "" if view < 0.1 else name_words[i] if view < 0.25 else degree_words[i]
            text = caption(data.descriptions[int(data.scene[i])], view_suffixes, open_word)
            texts.append("" if drop < 0.1 else text)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        alpha = alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
        latents_noisy = alpha * latents[index] + sigma * noise
        velocity = alpha * noise - sigma * latents[index]

        def half_fn(rows: slice) -> tuple[Tensor, dict[str, float]]:
            encoded = text_encoder(tokens[rows])
            velocity_pred = unet(latents_noisy[rows], timesteps[rows], encoded.last_hidden_state).sample
            loss_v = functional.mse_loss(velocity_pred, velocity[rows])
            word_logits = word_head(encoded.pooler_output).view(tokens[rows].numel(), -1)
            loss_words = functional.cross_entropy(word_logits, tokens[rows].flatten())
            direction_pred = direction_head(unet.add_embedding(encoded.last_hidden_state))
            direction_error = (direction_pred - harmonics[index[rows]]).square() * has_angles[rows, None]
            loss_directions = direction_error.mean()
            loss = loss_v + 0.05 * loss_words + 0.1 * loss_directions  # weights are choices
            numbers = {"v": loss_v, "words": loss_words, "directions": loss_directions}
            return loss, {name: value.item() for name, value in numbers.items()}

        return backward_in_halves(batch, half_fn)

    run_score = (
        None if score is None else (lambda: score(assemble(tokenizer, text_encoder, vae, unet, scheduler)))
    )
    scores = run_stage(
        name="denoiser",
        folder=folder,
        modules=modules,
        steps=steps,
        learning_rate=1e-3,
        step_fn=step_fn,
        score=run_score,
        score_every=1000,
    )
    return assemble(tokenizer, text_encoder, vae, unet, scheduler), scores


def assemble(tokenizer: Any, text_encoder: Any, vae: Any, unet: Any, scheduler: Any) -> Any:
    """Assemble the components into a `StableDiffusionPipeline`."""
    from diffusers import StableDiffusionPipeline

    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        requires_safety_checker=False,
        **absent,
    )


def load_teacher_images(folder: Path) -> ImageSet:
    """Draw the training images of the prior, or load them from a cache in `folder`."""
    return draw(TEACHER, folder / "teacher_images.safetensors")


CARD = """
A small text-to-image diffusion model for the Shapes world (32 x 32 pixels, 8 x 8 latents) in Stable
Diffusion's format: `StableDiffusionPipeline.from_pretrained` loads it offline. It is the default prior of
tests, the quickstart and comparisons of guidance methods, and knows no other images.

- **Data**: {images} exact renders of procedural scenes (plain, sized, marked, pairs), half of them of cubes,
  pyramids and octahedra; fixed light, gray backgrounds, elevations from -60 to 85 degrees.
- **Captions**: the sentence; 90 % with words for the view, most of these with the camera direction in steps
  of 10 degrees: "a red cube, front view az330 el-10". 10 % of captions are dropped. The text also joins the
  UNet's time embedding (`addition_embed_type: text`).
- **Training**: `make weights` on a CPU, fp32, AdamW. The VAE encoder is PCA; its decoder was trained for
  {decoder_steps} steps, UNet and text encoder for {steps} steps of batch {batch}; v-prediction, EMA weights,
  seed {seed}. Stored in fp16.
- **License**: Apache-2.0; the data are generated by code in this repository.

Figures, from samples of 25 DDIM steps at guidance scale 2: one sample for each of the 64 shape-color
sentences from a random side, matched by the embedded CLIP to one of the 64 (`shape`, `color` and `both`
right); `view` is the fraction of (front, back) pairs of samples of marked sentences in which the front shows
the mark more.
"""
DECODER_STEPS, STEPS, BATCH = 3000, 6000, 64


def make_prior(work: Path, output: Path, clip: Path) -> None:
    """Train, or resume, all stages and write `output` in Stable Diffusion's folder format.

    work: caches of images and training state. clip: folder of the finished CLIP, for scores.
    """
    judge = load_judge(clip)
    data = load_teacher_images(work)
    vae = build_codec(data)
    train_decoder(work, data, vae, DECODER_STEPS)
    pipe, _ = train_denoiser(
        work, data, vae, STEPS, BATCH, score=lambda pipe: score_prior(pipe, judge, VIEWS)
    )
    figures = score_prior(pipe, judge, VIEWS, marked_every=1)
    pipe.to(torch.float16).save_pretrained(output)
    details = {
        "images": len(data.images),
        "decoder_steps": DECODER_STEPS,
        "steps": STEPS,
        "batch": BATCH,
        "seed": SEED,
    }
    write_card(output, "Shapes prior", CARD.format(**details), figures)
    print(f"{output}: {figures}")
