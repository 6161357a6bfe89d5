"""Stable Diffusion 3: texts, predictions and Euler steps as diffusers computes them, from a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from amortized.conditioning import load_text_encoder
from amortized.conditioning.encode import plan_encoding
from amortized.model_folders import prior_folder, text_folder
from amortized.priors import Prior, PriorConfig, ddim, fingerprint_of, load_prior, load_stable_diffusion
from amortized.priors.schedule import add_noise, noise_to_x0
from corpora import prompt_list
from tests.tiny_sd3 import make_tiny_sd3

TEXTS = ["a red cube", "two blue balls on a very long red table of an old house by the sea", ""]
FORMS = {"3": {}, "3.5 with T5": {"t5": True, "newer": True}}


@pytest.fixture(scope="module", params=FORMS)
def sd3(request, tmp_path_factory) -> Path:
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"), **FORMS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make_tiny_sd3(tmp_path_factory.mktemp("plain"))


def pipeline(folder: Path):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers import StableDiffusion3Pipeline as Pipeline
    from transformers import CLIPTextModelWithProjection as Clip
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

    third = folder / "text_encoder_3"
    return Pipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        tokenizer_3=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer_3")
        if third.exists()
        else None,
        text_encoder=Clip.from_pretrained(folder / "text_encoder"),
        text_encoder_2=Clip.from_pretrained(folder / "text_encoder_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(third) if third.exists() else None,
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )


@pytest.fixture(scope="module")
def pipe(sd3):
    return pipeline(sd3)


def encoded(pipe, texts):
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
    return tokens, pooled


def test_texts_are_those_of_the_pipeline(sd3, pipe) -> None:
    prior = load_prior(PriorConfig(path=str(sd3)))
    tokens, pooled = encoded(pipe, TEXTS)
    for encoder in (prior.text_encoder, load_text_encoder(str(sd3))):
        condition = encoder.encode(TEXTS)
        torch.testing.assert_close(condition.tokens, tokens)
        torch.testing.assert_close(condition.pooled[:, : 32 + 24], pooled)
        assert not condition.pooled[:, 32 + 24 :].any()  # one width for both, as generators expect
        assert encoder.width == condition.pooled.shape[1] == condition.tokens.shape[2] == 64
        assert encoder.fingerprint() == prior.text_encoder.fingerprint()
    has_t5 = (sd3 / "text_encoder_3").exists()
    assert condition.mask.shape == (3, 48 + 256)
    assert condition.mask[:, :48].sum(1).tolist() == [10, 48, 2]
    assert condition.mask[:, 48:].sum(1).tolist() == ([4, 17, 1] if has_t5 else [0, 0, 0])
    assert bool(tokens[:, 48:].any()) == has_t5
    assert prior.text_encoder.is_overlong(TEXTS[1]) and not prior.text_encoder.is_overlong(TEXTS[0])


def flow_of(prior, t: int) -> tuple[float, float]:
    """The flow time of a timestep and the length n of its mixture, from the definition of the shift."""
    u = (t + 1) / 1000
    s = 3.0 * u / (1 + 2.0 * u)
    return s, ((1 - s) ** 2 + s**2) ** 0.5


@pytest.mark.parametrize("t", [60, 300, 600, 950])
def test_a_step_of_ddim_is_an_euler_step_of_the_flow(sd3, pipe, t) -> None:
    """Ours in the variance-preserving frame, diffusers' in its own: the same latents after the step."""
    prior, scheduler = load_stable_diffusion(sd3), pipe.scheduler
    start = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(t))
    tokens, pooled = encoded(pipe, TEXTS)
    s, _ = flow_of(prior, t)
    scheduler.set_timesteps(sigmas=[u / 1000 for u in (t + 1, t - 9)])  # before the shift
    assert scheduler.sigmas[0].item() == pytest.approx(s)
    with torch.no_grad():
        velocity = pipe.transformer(
            start,
            timestep=scheduler.timesteps[:1].expand(3),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
        ).sample
        theirs = scheduler.step(velocity, scheduler.timesteps[0], start).prev_sample
        (_, n), (_, n_next) = flow_of(prior, t), flow_of(prior, t - 10)
        noise = prior.predict_noise(start / n, torch.tensor([t] * 3), prior.text_encoder.encode(TEXTS))
    abar, abar_next = prior.alphas_cumprod[t], prior.alphas_cumprod[t - 10]
    ours = n_next * add_noise(noise_to_x0(noise, start / n, abar), noise, abar_next)
    assert (ours - start).abs().max() > 1e-2  # a step that moves
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_it_is_a_prior_of_images(sd3, pipe) -> None:
    prior = load_prior(PriorConfig(path=str(sd3)))
    assert isinstance(prior, Prior) and prior.prediction_type == "flow_prediction"
    assert (prior.latent_shape, prior.image_size, prior.views_per_group) == ((16, 8, 8), 16, 1)
    assert 990 < prior.num_timesteps == len(prior.alphas_cumprod) < 1000  # without the last, pure noise
    images = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist.mean
        latents = (mean - 0.0609) * 1.5305
        torch.testing.assert_close(prior.encode(images), latents)
        decoded = pipe.vae.decode(latents / 1.5305 + 0.0609).sample
        torch.testing.assert_close(prior.decode(latents), (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1))
        text, null = (prior.text_encoder.encode([each] * 2) for each in ("a cube", ""))
        sampled = ddim(prior, torch.randn(2, 16, 8, 8), text, null, num_steps=4, cfg=2.0)
    assert sampled.shape == (2, 16, 8, 8) and sampled.isfinite().all()


def test_a_batch_equals_its_items(sd3) -> None:
    prior = load_stable_diffusion(sd3, dtype=torch.float64)
    latents = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([0, 400, 990])
    batch = prior.predict_noise(latents, times, prior.text_encoder.encode(TEXTS))
    for n in range(3):
        single = prior.predict_noise(latents[[n]], times[[n]], prior.text_encoder.encode([TEXTS[n]]))
        torch.testing.assert_close(batch[[n]], single, rtol=0, atol=1e-9)


def test_an_adapter_is_a_lora_of_every_projection(sd3) -> None:
    prior = load_stable_diffusion(sd3, dtype=torch.float64)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = (latents, torch.tensor([100, 800]), prior.text_encoder.encode(TEXTS[:2]))
    before = prior.predict_noise(*inputs)
    linear = {
        f"{n}.weight": m for n, m in prior.transformer.named_modules() if "attn" in n and hasattr(m, "weight")
    }
    linear = {name: module for name, module in linear.items() if isinstance(module, torch.nn.Linear)}
    adapter = prior.add_adapter(rank=2, scale=0.5)
    assert len(list(adapter.parameters())) == 2 * len(linear)
    torch.testing.assert_close(prior.predict_noise(*inputs, adapted=True), before, rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1
    loss = prior.predict_noise(*inputs, adapted=True).square().sum()
    with torch.no_grad():
        assert torch.equal(prior.predict_noise(*inputs), before)
    loss.backward()
    # The last block drops its texts, so nothing depends on their queries there.
    no_gradient = {name for name, p in adapter.named_parameters() if not p.grad.abs().max() > 0}
    assert {name.rpartition("/lora")[0] for name in no_gradient} == {
        "weights.transformer_blocks/1/attn/add_q_proj"
    }
    assert all(p.grad is None for name, p in prior.transformer.named_parameters() if "lora_" not in name)


def test_devices_and_precision_are_those_of_other_priors(plain, monkeypatch) -> None:
    text = load_text_encoder(str(plain)).encode(["a cube", "a cone"])
    latents, times = torch.randn(2, 16, 8, 8), torch.tensor([300, 700])
    expected = load_prior(PriorConfig(path=str(plain))).predict_noise(latents, times, text)
    offloaded = load_prior(PriorConfig(path=str(plain), offload=True))
    weights, sent = [*offloaded.transformer.parameters()], []
    monkeypatch.setattr(
        "amortized.priors.offload.to_device", lambda tensor, device: sent.append(tensor) or tensor.clone()
    )
    assert torch.equal(offloaded.predict_noise(latents, times, text), expected)
    assert len(sent) >= len(weights)
    half = load_prior(PriorConfig(path=str(plain), dtype="bfloat16"))
    got = half.predict_noise(latents, times, text)
    assert got.dtype == torch.float32 and (got - expected).norm() < 0.1 * expected.norm()
    moved = load_stable_diffusion(plain, denoiser_device="meta")
    assert moved.device.type == "cpu" and next(moved.transformer.parameters()).device.type == "meta"


def test_the_shift_and_the_t5_are_part_of_the_identity(plain, tmp_path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    edit(copy / "scheduler/scheduler_config.json", {"shift": 1.0})
    first, second = load_stable_diffusion(plain), load_stable_diffusion(copy)
    assert fingerprint_of(first) != fingerprint_of(second)
    # At the same index a shift of 1 has less noise: s = u.
    assert second.alphas_cumprod[499].item() == pytest.approx(0.5)
    assert first.alphas_cumprod[499].item() == pytest.approx(1 / (1 + 3**2))


def test_only_needed_files_are_downloaded(sd3) -> None:
    own = {path.relative_to(sd3).as_posix() for path in sd3.rglob("*") if path.is_file()}
    others = ["sd3_medium.safetensors", "text_encoder/model.fp16.safetensors", "vae/x.bin", "README.md"]
    assert set(prior_folder.wanted_files([*own, *others])) == own
    parts = ("text_encoder", "tokenizer", "model_index", "transformer/config.json")
    assert set(text_folder.wanted_files([*own, *others])) == {name for name in own if name.startswith(parts)}


def edit(file: Path, changes: dict) -> None:
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


T, S = "transformer/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (S, {"_class_name": "DDIMScheduler"}, "'_class_name' is 'DDIMScheduler', and only FlowMatchEuler"),
        (S, {"use_dynamic_shifting": True}, "use_dynamic_shifting=true is not of a Stable Diffusion 3"),
        (S, {"shift": 0.0}, "'shift' must be from 0.05 to 20"),
        (S, {"shift": ...}, "lacks 'shift'"),
        (S, {"num_train_timesteps": 3}, "from 100 to 10,000, got 3"),
        (S, {"prediction_type": "epsilon"}, "unknown key 'prediction_type'"),
        (T, {"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel', and only SD3"),
        (T, {"guidance_embeds": True}, "unknown key 'guidance_embeds'"),
        (T, {"sample_size": ...}, "'sample_size' must be the side of square latents"),
        (T, {"sample_size": 128}, "do not|does not describe networks that run together"),
        (T, {"joint_attention_dim": 32}, "requires \\[16, 32\\]"),
        (T, {"num_layers": 1}, "unexpected"),
        (T, {"num_layers": 4}, "lacks"),
        (T, {"pos_embed_max_size": 10}, "pos_embed.pos_embed"),
        ("vae/config.json", {"latent_channels": 4}, "'encoder.conv_out.weight' has the shape"),
        ("text_encoder_2/config.json", {"projection_dim": 16}, "width 56, but its two CLIPs project to 48"),
        ("text_encoder/config.json", {"model_type": "t5"}, "'architectures'"),
        ("multi_view.json", {"num_views": 4}, "is of MVDream, which has a UNet"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(plain, tmp_path, file, changes, message) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    if not (copy / file).exists():
        (copy / file).write_text("{}")
    edit(copy / file, changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(PriorConfig(path=str(copy)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2", "vae", "scheduler"])
def test_missing_parts_are_named(plain, tmp_path, part) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    shutil.rmtree(copy / part)
    with pytest.raises(ValueError, match=f"the folder lacks {part}"):
        load_prior(PriorConfig(path=str(copy)))


def test_what_is_not_supported_is_refused(plain, folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="are of SDXL, which"):
        load_prior(PriorConfig(path=str(plain), crop=(0, 0)))
    lora = {"lora_unet_x.lora_up.weight": torch.ones(2, 2), "lora_unet_x.lora_down.weight": torch.ones(2, 2)}
    from safetensors.torch import save_file

    save_file(lora, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is a Stable Diffusion 3, for which prior.loras and prior.tokens"):
        load_prior(PriorConfig(path=str(plain), loras=(str(tmp_path / "x.safetensors"),)))
    save_file({"model.diffusion_model.joint_blocks.0.x": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="Stable Diffusion 3, of which only folders are supported"):
        load_prior(PriorConfig(path=str(tmp_path / "y.safetensors")))
    # A UNet with a scheduler of flows, such as those of SD-Turbo's relatives.
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(plain / S, copy / S)
    with pytest.raises(ValueError, match="flow matching is for the transformer of a Stable Diffusion 3"):
        load_prior(PriorConfig(path=str(copy)))
    encoder = load_text_encoder(str(plain))
    with pytest.raises(ValueError, match="encode with --pooled"):
        plan_encoding(prompt_list(["a cube"], "one"), encoder, name="x")
    assert plan_encoding(prompt_list(["a cube"], "one"), encoder, name="x", pooled_only=True).width == 64
