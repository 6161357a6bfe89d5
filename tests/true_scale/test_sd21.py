"""Stable Diffusion 2.1-base at its real size, with random weights."""

from __future__ import annotations

import shutil

import pytest
import torch

from benchmarks.sizes import MVDREAM, SD21, make_sd21_random, tokenizer

PUBLISHED_MILLIONS = {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        network = SD21.networks()[name]()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == PUBLISHED_MILLIONS[name]


def test_mvdream_adds_only_the_camera_embedding():
    with torch.device("meta"):
        plain, with_cameras = (sizes.networks()["unet"]() for sizes in (SD21, MVDREAM))
    added = {name: tuple(p.shape) for name, p in with_cameras.named_parameters()}
    for name, _ in plain.named_parameters():
        del added[name]
    assert sorted(added.values()) == [(1280,), (1280,), (1280, 16), (1280, 1280)]


def test_the_tokenizer_equals_clips():
    """Against open_clip's implementation of the same byte-pair encoding."""
    from open_clip.tokenizer import SimpleTokenizer

    ours, theirs = tokenizer(), SimpleTokenizer()
    assert len(ours) == theirs.vocab_size == 49408
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (49406, 49407, 0)
    # No "!" here: it is the padding token (id 0), which transformers drops from texts.
    for text in ["a DSLR photo of a squirrel playing guitar", "it's 12 o'clock, naïve café?", ""]:
        assert ours(text)["input_ids"] == [49406, *theirs.encode(text), 49407]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_sd21_random(tmp_path_factory.mktemp("sd21"))
    yield folder
    shutil.rmtree(folder)  # 2.6 GB, which pytest would keep for three runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_folder_loads_as_a_prior_and_predicts(folder):
    from amortized.conditioning import take_rows
    from amortized.priors import load_stable_diffusion

    prior = load_stable_diffusion(folder, dtype=torch.float32)
    assert (prior.image_size, prior.latent_size, prior.latent_channels) == (512, 64, 4)
    assert prior.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=5e-5)
    text = prior.text_encoder.encode(["a red cube", "a red cube " * 40])
    assert text.tokens.shape == (2, 77, 1024)
    with torch.no_grad():
        latents = prior.encode(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
        noise = prior.predict_noise(latents, torch.tensor([500]), take_rows(text, torch.tensor([1])))
    assert noise.shape == latents.shape == (1, *prior.latent_shape)
    assert torch.isfinite(noise).all() and noise.std() > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_asd_step_of_hyper_ingp_at_its_published_size(folder, tmp_path, capsys):
    """Text, 64 px render, 512 px encoding, 5 denoiser branches and backward pass in float32 on the CPU."""
    import resource
    import time
    from pathlib import Path

    from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
    from amortized.config import load_config

    root = Path(__file__).resolve().parents[2]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a DSLR photo of a squirrel playing guitar\n")
    config = load_config(
        RunConfig,
        root / "configs/published/asd-sd-hyper-ingp-mg15.yaml",
        [
            f"output={tmp_path / 'run'}",
            f"prior={folder}",
            "prior.dtype=float32",
            f"corpus={prompts}",
            "trainer.steps=1",
            "device=cpu",
        ],
    )
    from amortized.parallel import World
    from amortized.training import Trainer

    started = time.perf_counter()
    prior, bank, generator = build_parts(config, World().device)
    guidance = guidance_of(config, prior, bank, num_prompts=1)
    trainer = Trainer(
        config, world=World(), corpus=load_corpus(config), guidance=guidance, bank=bank, generator=generator
    )
    loaded = time.perf_counter()
    record = trainer.step(0, interrupted=False)
    done = time.perf_counter()
    generator = trainer.state.generator
    for name in ("grid.table", "hypernet.0.weight", "hypernet.3.weight"):
        gradient = dict(generator.named_parameters())[f"generator.{name}"].grad
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
    numbers = dict(zip(record.names, record.values.tolist(), strict=True))
    assert numbers["denoiser_calls"] == 5 and all(value == value for value in numbers.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\nload {loaded - started:.0f} s, step {done - loaded:.0f} s, peak memory {peak:.1f} GiB")
