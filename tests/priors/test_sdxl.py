"""SDXL: two text encoders and sizes, as diffusers computes them; the published config with tiny widths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amortized.conditioning import load_text_encoder
from amortized.model_folders import prior_folder, read_prior_folder, text_folder
from amortized.priors import PriorConfig, fingerprint_of, load_prior
from amortized.priors.loading import size_ids_of
from tests.tiny_sdxl import make_tiny_sdxl

TEXTS = ["a red cube", "two blue balls", ""]


@pytest.fixture(scope="module")
def xl(tmp_path_factory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("xl"))


def pipeline(folder: Path):
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    return StableDiffusionXLPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        unet=UNet.from_pretrained(folder / "unet"),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        add_watermarker=False,
    )


@pytest.fixture(scope="module")
def pipe(xl):
    return pipeline(xl)


def encoded(pipe, text: str):
    """Tokens and pooled vector of a prompt, or of no prompt, as the pipeline makes them."""
    with torch.no_grad():
        prompt, nothing, pooled, pooled_nothing = pipe.encode_prompt(text or "x", num_images_per_prompt=1)
    return (prompt, pooled) if text else (nothing, pooled_nothing)


def test_texts_are_those_of_the_pipeline(xl, pipe) -> None:
    prior = load_prior(PriorConfig(path=str(xl)))
    for encoder in (prior.text_encoder, load_text_encoder(str(xl))):
        assert encoder.width == 32 + 24
        condition = encoder.encode(TEXTS)
        for row, text in enumerate(TEXTS):
            tokens, pooled = encoded(pipe, text)
            torch.testing.assert_close(condition.tokens[row], tokens[0])
            torch.testing.assert_close(condition.pooled[row, -24:], pooled[0])
        assert encoder.fingerprint() == prior.text_encoder.fingerprint()
    assert bool(condition.pooled[0, :32].any()) and not condition.pooled[2].any()
    assert condition.mask.sum(1).tolist() == [10, 14, 2]


@pytest.mark.parametrize(
    "sizes", [{}, {"original_size": (12, 20), "crop": (3, 5), "target_size": (9, 7)}, {"crop": (0, 1)}]
)
def test_predictions_are_those_of_the_pipelines_unet(xl, pipe, sizes) -> None:
    prior = load_prior(PriorConfig(path=str(xl), **sizes))
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([5, 500, 999])
    ours = prior.predict_noise(latents, times, prior.text_encoder.encode(TEXTS))
    tokens, pooled = (torch.cat(each) for each in zip(*(encoded(pipe, text) for text in TEXTS), strict=True))
    ids = pipe._get_add_time_ids(
        sizes.get("original_size", (16, 16)),
        sizes.get("crop", (0, 0)),
        sizes.get("target_size", (16, 16)),
        torch.float32,
        24,
    )
    added = {"text_embeds": pooled, "time_ids": ids.repeat(3, 1)}
    with torch.no_grad():
        theirs = pipe.unet(latents, times, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs)
    assert (prior.image_size, prior.prediction_type, prior.num_timesteps) == (16, "epsilon", 1000)
    torch.testing.assert_close(prior.alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_sizes_and_the_empty_text_are_part_of_the_identity(xl, tmp_path) -> None:
    copy = Path(shutil.copytree(xl, tmp_path / "copy"))
    (copy / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": False}))
    plain = load_prior(PriorConfig(path=str(xl)))
    others = [PriorConfig(path=str(xl), crop=(1, 0)), PriorConfig(path=str(copy))]
    files = read_prior_folder(xl)
    assert size_ids_of(files, (None, (0, 0), (16, 16))) == size_ids_of(files, (None, None, None))
    loaded = [load_prior(config) for config in others]
    assert len({fingerprint_of(prior) for prior in (plain, *loaded)}) == 3
    assert loaded[1].text_encoder.encode([""]).tokens.any()
    second = plain.text_encoder.second.model
    before = fingerprint_of(plain)
    second.text_projection.weight.data[0, 0] += 1
    assert fingerprint_of(plain) != before


def test_only_needed_files_are_downloaded(xl) -> None:
    own = {path.relative_to(xl).as_posix() for path in xl.rglob("*") if path.is_file()}
    others = ["sd_xl_base_1.0.safetensors", "text_encoder_2/model.fp16.safetensors", "vae_1_0/config.json"]
    assert set(prior_folder.wanted_files([*own, *others])) == own
    parts = ("text_encoder", "tokenizer", "model_index")
    assert set(text_folder.wanted_files([*own, *others])) == {name for name in own if name.startswith(parts)}


def test_half_precision_spares_the_vae(xl) -> None:
    """Which overflows float16 in the published SDXL; a config without `force_upcast` is of a repaired one."""
    prior = load_prior(PriorConfig(path=str(xl), dtype="float16"))
    assert (prior.unet.dtype, prior.vae.dtype) == (torch.float16, torch.float32)
    images = torch.rand(1, 16, 16, 3)
    assert prior.encode(images).dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("text_encoder_2/config.json", {"projection_dim": 16}, "text_projection.weight"),
        ("text_encoder_2/config.json", {"model_type": "bert"}, "is a bert, not a CLIP"),
        ("unet/config.json", {"addition_embed_type": None}, "unexpected 4 tensors add_embedding"),
        ("unet/config.json", {"addition_time_embed_dim": 7}, "networks that run together|cannot be built"),
        ("unet/config.json", {"cross_attention_dim": 32}, r"requires \[16, 32\]"),
        ("model_index.json", {"force_zeros_for_empty_prompt": 1}, "must be bool"),
    ],
)
def test_parts_that_do_not_fit_are_named(xl, tmp_path, file, changes, message) -> None:
    copy = Path(shutil.copytree(xl, tmp_path / "copy"))
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(PriorConfig(path=str(copy)))
    assert "\n" not in str(caught.value)


def test_what_is_not_supported_is_refused(xl, folder, tmp_path) -> None:
    save_file({"<x>": torch.zeros(1, 32)}, file := tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is an SDXL, for which prior.loras and prior.tokens"):
        load_prior(PriorConfig(path=str(xl), tokens=(str(file),)))
    shutil.copytree(xl, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/unet")
    shutil.copytree(folder / "unet", tmp_path / "copy/unet")
    with pytest.raises(ValueError, match="takes text of width 32, but its text encoder has 56"):
        load_prior(PriorConfig(path=str(tmp_path / "copy")))
    with pytest.raises(ValueError, match="are of SDXL"):
        load_prior(PriorConfig(path=str(folder), crop=(0, 0)))
    with pytest.raises(ValueError, match="crop must be at least 0"):
        PriorConfig(path=str(folder), crop=(-1, 0))
