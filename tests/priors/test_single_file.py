"""A single-file checkpoint is the folder that it was made of; what it lacks is part of the program."""

from __future__ import annotations

import itertools
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amortized.conditioning import load_text_encoder
from amortized.model_folders import read_single_file, single_file
from amortized.model_folders.published_names import open_clip_name, unet_name, vae_name
from amortized.model_folders.tokenizers import published_tokenizer
from amortized.priors import PriorConfig, fingerprint_of, load_prior

V1, V2, V = "stable-diffusion-v1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"
# The published architectures with few channels; the vocabulary, and all else, is the published one.
TINY_UNET = {"block_out_channels": [32, 32, 64, 64], "sample_size": 8, "cross_attention_dim": 32}
TINY_VAE = {"block_out_channels": [32, 32, 32, 32]}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {V1: 8, V2: [2, 2, 4, 4], V: [2, 2, 4, 4]}


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """Small widths in place of the published ones; sockets fail the test."""
    for name, each in single_file.ARCHITECTURES.items():
        small = replace(
            each,
            unet={**each.unet, **TINY_UNET, "attention_head_dim": HEADS[name]},
            vae={**each.vae, **TINY_VAE},
            text_config={**each.text_config, **TINY_TEXT},
        )
        monkeypatch.setitem(single_file.ARCHITECTURES, name, small)

    def refuse(*arguments: object, **keywords: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def networks_of(name: str) -> dict[str, torch.nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    known = single_file.ARCHITECTURES[name]
    return {
        "unet": UNet2DConditionModel(**known.unet),
        "vae": AutoencoderKL(**known.vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**known.text_config)),
    }


def published(network: torch.nn.Module, rename, candidates) -> dict[str, torch.Tensor]:
    """The tensors of a network under those of the candidate names that `rename` gives to its tensors."""
    state, names = network.state_dict(), {}
    for name, end in itertools.product(candidates, (".weight", ".bias")):
        names.setdefault(rename(name + end), name + end)
    return {names[key]: value for key, value in state.items()}


def unet_candidates(unet: torch.nn.Module) -> list[str]:
    layers = {key.rpartition(".")[0] for key in unet.state_dict()}
    inner = {re.sub(r".*attentions\.\d+\.", "", layer) for layer in layers if "attentions" in layer}
    inner |= {"in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"}
    found = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
    found += [f"middle_block.{part}.{each}" for part in range(3) for each in inner]
    for number, part in itertools.product(range(12), range(2)):
        found += [f"{side}_blocks.{number}.{part}.{each}" for side in ("input", "output") for each in inner]
        found += [f"input_blocks.{number}.{part}.op"]
    # The upsampler comes after the attention of its block, which the first block lacks.
    return [*found, "output_blocks.2.1.conv", *(f"output_blocks.{number}.2.conv" for number in (5, 8))]


def vae_candidates() -> list[str]:
    inner = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"]
    found = ["quant_conv", "post_quant_conv"]
    for side, way in (("encoder", "down"), ("decoder", "up")):
        found += [f"{side}.{each}" for each in ("conv_in", "conv_out", "norm_out")]
        found += [f"{side}.mid.block_{number}.{each}" for number in (1, 2) for each in inner]
        found += [f"{side}.mid.attn_1.{each}" for each in ("norm", "q", "k", "v", "proj_out")]
        for number in range(4):
            found += [f"{side}.{way}.{number}.{way}sample.conv"]
            found += [f"{side}.{way}.{number}.block.{layer}.{each}" for layer in range(3) for each in inner]
    return found


def text_state(text: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    plain = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    if name == V1:
        plain["embeddings.position_ids"] = torch.arange(77)[None]
        return {f"cond_stage_model.transformer.text_model.{key}": value for key, value in plain.items()}
    state = {}
    for layer in range(2):
        for end in ("weight", "bias"):
            parts = [plain.pop(f"encoder.layers.{layer}.self_attn.{each}_proj.{end}") for each in "qkv"]
            state[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(parts)
    layers = ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
    names = [f"transformer.resblocks.{layer}.{each}" for layer in range(2) for each in layers]
    names = [
        f"{each}.{end}" for each in (*names, "ln_final", "token_embedding") for end in ("weight", "bias")
    ]
    for each in (*names, "positional_embedding"):
        if open_clip_name(each) in plain:
            state[each] = plain.pop(open_clip_name(each))
    assert not plain
    state["transformer.resblocks.2.ln_1.weight"] = torch.zeros(32)  # the last layer, which is not used
    state |= {"text_projection": torch.eye(32), "logit_scale": torch.zeros(())}
    return {f"cond_stage_model.model.{key}": value for key, value in state.items()}


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    """The state of a random checkpoint, with what published files have besides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = networks_of(name)
        for weight in networks["text_encoder"].parameters():
            torch.nn.init.normal_(weight, std=0.2)
    unet, vae = networks["unet"], networks["vae"]
    state = {
        f"model.diffusion_model.{key}": value
        for key, value in published(unet, lambda key: unet_name(key, 2), unet_candidates(unet)).items()
    }
    for key, value in published(vae, lambda key: vae_name(key, 4), vae_candidates()).items():
        one_pixel = ".attn_1." in key and value.ndim == 2
        state[f"first_stage_model.{key}"] = value[..., None, None] if one_pixel else value
    state |= text_state(networks["text_encoder"], name)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    state |= {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0), "model_ema.decay": torch.ones(())}
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def folder_of(state: dict[str, torch.Tensor], name: str, folder: Path) -> Path:
    """The folder that diffusers' own functions make of a checkpoint."""
    from diffusers import DDIMScheduler
    from diffusers.loaders import single_file_utils as utils

    networks = networks_of(name)
    text = networks["text_encoder"]
    converted = {
        "unet": utils.convert_ldm_unet_checkpoint(dict(state), networks["unet"].config),
        "vae": utils.convert_ldm_vae_checkpoint(dict(state), networks["vae"].config),
        "text_encoder": utils.convert_ldm_clip_checkpoint(dict(state))
        if name == V1
        else utils.convert_open_clip_checkpoint(text, dict(state)),
    }
    plain = {key.removeprefix("text_model."): value for key, value in converted["text_encoder"].items()}
    own = text.state_dict()
    converted["text_encoder"] = {key: plain[key.removeprefix("text_model.")] for key in own}
    for part, network in networks.items():
        network.load_state_dict(converted[part])
        network.save_pretrained(folder / part)
    known = single_file.ARCHITECTURES[name]
    published_tokenizer(known.padding, 77).save_pretrained(folder / "tokenizer")
    DDIMScheduler(**single_file.SCHEDULE, prediction_type=known.prediction_type).save_pretrained(
        folder / "scheduler"
    )
    return folder


def config_of(path: Path, name: str, **changes) -> PriorConfig:
    return PriorConfig(path=str(path), architecture=None if name == V1 else name, **changes)


@pytest.mark.parametrize("name", [V1, V2, V])
def test_a_file_is_the_folder_that_diffusers_makes_of_it(tmp_path, name) -> None:
    state = checkpoint(name)
    save_file(state, file := tmp_path / "model.safetensors")
    single, folder = load_prior(config_of(file, name)), folder_of(state, name, tmp_path / "folder")
    other = load_prior(PriorConfig(path=str(folder)))
    assert fingerprint_of(single) == fingerprint_of(other)
    assert (single.prediction_type, single.latent_size) == (other.prediction_type, other.latent_size)
    texts = ["a red cube, Front view", "", "naïve 3d 🙂 " * 40]
    for encoder in (single.text_encoder, load_text_encoder(str(file))):
        assert torch.equal(encoder.encode(texts).tokens, other.text_encoder.encode(texts).tokens)
        assert encoder.fingerprint() == other.text_encoder.fingerprint()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    images = torch.rand(2, 64, 64, 3, generator=generator)
    text = single.text_encoder.encode(["a cube", "a ball"])
    times = torch.tensor([3, 700])
    # Up to rounding: the tensors of a file are aligned otherwise in memory.
    ours, theirs = (each.predict_noise(latents, times, text) for each in (single, other))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(single.encode(images), other.encode(images))


def test_the_vocabulary_is_that_of_open_clip() -> None:
    import open_clip.tokenizer

    ours, theirs = published_tokenizer("<|endoftext|>", 77), open_clip.tokenizer.SimpleTokenizer()
    assert len(ours) == 49408 and (ours.bos_token_id, ours.eos_token_id) == (49406, 49407)
    assert ours.pad_token_id == 49407 and published_tokenizer("!", 77).pad_token_id == 0
    for text in ("a DSLR photo of a corgi, 8k", "über-café's 123 x2", "it's <b>!?</b> 東京"):
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)


def test_published_architectures_have_the_published_numbers_of_weights(monkeypatch) -> None:
    """Without memory, at full size; the figures are those of the published models."""
    monkeypatch.undo()
    expected = {
        V1: {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        V2: {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    }
    for name, counts in (expected | {V: expected[V2]}).items():
        with torch.device("meta"):
            networks = networks_of(name)
        assert {part: sum(p.numel() for p in each.parameters()) for part, each in networks.items()} == counts


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.out.2.bias": None}, "the UNet in .* lacks tensor conv_out.bias"),
        (
            {"first_stage_model.quant_conv.bias": torch.zeros(3)},
            "the VAE in .*'.*quant_conv.bias' has the shape",
        ),
        (
            {"first_stage_model.surprise": torch.zeros(3)},
            "the VAE in .* unexpected tensor first_stage_model.sur",
        ),
        ({"control_model.x": torch.zeros(3)}, "unexpected tensor control_model.x"),
        (
            {"model.diffusion_model.output_blocks.2.2.conv.bias": torch.zeros(3)},
            "output_blocks.2.[12].conv.bias' and '.*output_blocks.2.[12].conv.bias' are the same tensor",
        ),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "another noise schedule"),
        ({"alphas_cumprod": torch.zeros(3)}, "another noise schedule"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
            r"input_blocks.0.0.weight' has the shape \[32, 9, 3, 3\]",
        ),
        ({"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "not finite"),
    ],
)
def test_files_are_checked_as_folders_are(tmp_path, states, change, message) -> None:
    state = states.setdefault(V1, checkpoint(V1)) | change
    save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(PriorConfig(path=str(tmp_path / "x.safetensors")))
    assert "\n" not in str(caught.value)


def test_a_version_2_must_say_what_it_predicts(tmp_path) -> None:
    """By its metadata, as `modelspec` defines them, or by the setting."""
    state = {"cond_stage_model.model.ln_final.weight": torch.zeros(3)}
    file = tmp_path / "x.safetensors"
    for recorded in ({}, {"modelspec.architecture": "stable-diffusion-xl-v1-base"}):
        save_file(state, file, metadata=recorded)
        with pytest.raises(ValueError, match=f"set prior.architecture={V2} or {V}"):
            load_prior(PriorConfig(path=str(file)))
    for name in (V2, V):
        save_file(state, file, metadata={"modelspec.architecture": name})
        assert read_single_file(file).schedule["prediction_type"] == (
            "v_prediction" if name == V else "epsilon"
        )
        assert read_single_file(file, V).schedule["prediction_type"] == "v_prediction"
    with pytest.raises(ValueError, match=f"is {V1}, but .* text encoder of {V2} and {V}"):
        load_prior(PriorConfig(path=str(file), architecture=V1))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("conditioner.embedders.0.x", "SDXL, of which only folders are supported"),
        ("lora_unet_x.lora_up.weight", "this is a LoRA: give it as prior.loras"),
        ("x", "not a checkpoint of Stable Diffusion"),
    ],
)
def test_other_files_are_named(tmp_path, tensor, message) -> None:
    save_file({tensor: torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        load_prior(PriorConfig(path=str(tmp_path / "x.safetensors")))


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        load_prior(PriorConfig(path=str(tmp_path / "x.safetensors")))
    (tmp_path / "x.ckpt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="x.ckpt, which is not read.*weights_only=True"):
        load_prior(PriorConfig(path=str(tmp_path / "x.ckpt")))
    (tmp_path / "x.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_prior(PriorConfig(path=str(tmp_path / "x.safetensors")))
    with pytest.raises(ValueError, match="prior.architecture is for a single file"):
        load_prior(PriorConfig(path="checkpoints/shapes-prior", architecture=V2))
