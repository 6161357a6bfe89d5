"""Folders as they were published since 2022 load, and compute what diffusers' pipelines compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amortized.conditioning import CLIPTextEncoder, load_text_encoder
from amortized.model_folders import formats
from amortized.priors import fingerprint_of, load_stable_diffusion
from tests.model_folders.families import copy_of, valid, write
from tests.tiny_sd import make_tiny_sd

SCHEDULER = "scheduler/scheduler_config.json"


def edit(folder: Path, name: str, **changes: Any) -> Path:
    """Change keys of a JSON file; a key is removed by the value `...`."""
    data = json.loads((folder / name).read_text()) | changes
    write(folder / name, {key: value for key, value in data.items() if value is not ...})
    return folder


def test_known_keys_are_those_of_the_libraries() -> None:
    import inspect
    from dataclasses import fields

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for keys, kind in (
        (formats.UNET, UNet2DConditionModel),
        (formats.VAE, AutoencoderKL),
        (formats.OPEN_CLIP, CLIP),
    ):
        assert set(keys) - {"custom_text"} <= set(inspect.signature(kind.__init__).parameters)
    for keys, kind in ((formats.OPEN_CLIP_VISION, CLIPVisionCfg), (formats.OPEN_CLIP_TEXT, CLIPTextCfg)):
        assert set(keys) <= {field.name for field in fields(kind)}


# Scheduler configs as they were published, and their prediction types.
PUBLISHED = {
    "1.4, 2022": (
        {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
         "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
         "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
         "clip_sample": False},
        "epsilon",
    ),
    "2.1": (
        {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012,
         "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
         "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
         "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None},
        "v_prediction",
    ),
    "euler": (
        {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
         "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
         "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
         "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
         "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
        "epsilon",
    ),
    "multistep": (
        {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.32.0", "beta_end": 0.02,
         "beta_schedule": "linear", "beta_start": 0.0001, "num_train_timesteps": 1000,
         "prediction_type": "epsilon", "use_flow_sigmas": False, "flow_shift": 1.0, "solver_order": 2,
         "algorithm_type": "dpmsolver++", "trained_betas": None, "final_sigmas_type": "zero"},
        "epsilon",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules(tmp_path, name) -> None:
    import diffusers

    config, prediction_type = PUBLISHED[name]
    folder = copy_of("prior", tmp_path)
    write(folder / SCHEDULER, config)
    prior = load_stable_diffusion(folder)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    assert torch.equal(prior.alphas_cumprod, theirs.alphas_cumprod)
    assert prior.prediction_type == prediction_type


@pytest.mark.parametrize(
    "name",
    "FlowMatchEulerDiscrete FlowMatchHeunDiscrete EDMEuler EDMDPMSolverMultistep LCM TCD "
    "CMStochasticIterative SCM UnCLIP DDPMWuerstchen VQDiffusion KarrasVe ScoreSdeVe Evil".split(),
)
@pytest.mark.parametrize("bare", [True, False])
def test_other_processes_are_refused_by_class_name(tmp_path, name, bare) -> None:
    folder = copy_of("prior", tmp_path)
    write(folder / SCHEDULER, {} if bare else json.loads((valid("prior") / SCHEDULER).read_text()))
    edit(folder, SCHEDULER, _class_name=f"{name}Scheduler")
    with pytest.raises(ValueError, match=f"{name}Scheduler: only models that were trained with DDPM's betas"):
        load_stable_diffusion(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_start": ...}, "lacks 'beta_start'"),
        ({"beta_end": ...}, "lacks 'beta_end'"),
        ({"beta_schedule": ...}, "lacks 'beta_schedule'"),
        ({"num_train_timesteps": ...}, "lacks 'num_train_timesteps'"),
        ({"prediction_type": ...}, "lacks 'prediction_type'"),
        ({"prediction_type": ..., "_diffusers_version": ...}, "lacks 'prediction_type'"),
        ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'; only epsilon"),
        ({"_class_name": ...}, "has no '_class_name'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=true"),
        ({"timestep_type": "continuous"}, "timestep_type="),
        ({"shift": 3.0}, "unknown key 'shift'"),
        ({"beta_schedule": "exponential"}, "does not describe a noise schedule"),
        ({"beta_end": 5.0}, "not decreasing|pure noise|noise schedule"),
        ({"beta_start": 0.5, "beta_end": 0.9}, "pure noise at"),
        ({"num_train_timesteps": 1_000_000}, "from 2 to 10,000"),
        ({"trained_betas": [0.1, 0.2]}, "2 values for 1000 timesteps"),
    ],
)
def test_schedules_that_are_not_determined_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_stable_diffusion(edit(copy_of("prior", tmp_path), SCHEDULER, **changes))
    assert "scheduler_config.json" in str(caught.value)


def test_zero_terminal_snr_is_distilled_from_the_last_usable_step(tmp_path) -> None:
    """arXiv 2305.08891: the last step is pure noise. The others are those of diffusers."""
    from diffusers import DDIMScheduler

    folder = make_tiny_sd(tmp_path, prediction_type="v_prediction")
    edit(folder, SCHEDULER, rescale_betas_zero_snr=True)
    prior = load_stable_diffusion(folder, dtype=torch.float64)
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    theirs = scheduler.alphas_cumprod
    assert theirs[-1] == 0 and 990 <= prior.num_timesteps < 1000
    assert torch.equal(prior.alphas_cumprod, theirs[: prior.num_timesteps])
    text = prior.text_encoder.encode(["a cube"])
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([prior.num_timesteps - 1])
    noise = prior.predict_noise(latents, last, text)
    abar = prior.alphas_cumprod[last].double()
    x0 = (latents - (1 - abar).sqrt() * noise) / abar.sqrt()
    v = prior.unet(latents, last, text.tokens.double()).sample
    torch.testing.assert_close(x0, abar.sqrt() * latents - (1 - abar).sqrt() * v, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"sample_size": 8}, 8),
        ({"sample_size": [8, 8]}, 8),
        ({"sample_size": 32, "_diffusers_version": "0.6.0"}, 64),  # as diffusers' pipelines correct it
        ({"sample_size": 32, "_diffusers_version": "0.8.1"}, 64),
        ({"sample_size": 32, "_diffusers_version": "0.9.0"}, 32),
        ({"sample_size": 96, "_diffusers_version": "0.6.0"}, 96),
        ({"sample_size": [8, 16]}, None),
        ({"sample_size": [8]}, None),
        ({"sample_size": None}, None),
        ({"sample_size": ...}, None),
        ({"sample_size": 0}, None),
        ({"sample_size": 100_000}, None),
    ],
)
def test_the_size_of_the_latents(tmp_path, caplog, changes, size) -> None:
    folder = edit(copy_of("prior", tmp_path), "unet/config.json", **changes)
    if size is None:
        with pytest.raises(
            ValueError, match="unet/config.json: 'sample_size' must be the side of square latents"
        ):
            load_stable_diffusion(folder)
    else:
        prior = load_stable_diffusion(folder)
        assert (prior.latent_size, prior.image_size) == (size, 2 * size)
        assert ("64 is used" in caplog.text) == (size == 64)


SCALINGS = [
    {"scaling_factor": 0.36, "shift_factor": 0.12},
    {"scaling_factor": 0.36, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]},
    {"scaling_factor": 0.36, "latents_std": [1.0, 2.0, 0.5, 1.5]},
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_shift_mean_and_deviation_of_the_latents_are_applied(tmp_path, scaling) -> None:
    """(latents - shift) * factor as for Stable Diffusion 3, (latents - mean) * factor / std as for SDXL."""
    plain = load_stable_diffusion(valid("prior"), dtype=torch.float64)
    prior = load_stable_diffusion(
        edit(copy_of("prior", tmp_path), "vae/config.json", **scaling), dtype=torch.float64
    )
    images = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).double()
    raw = plain.encode(images) / 0.18215
    shift = torch.tensor(scaling.get("latents_mean", [scaling.get("shift_factor", 0.0)] * 4)).double()
    std = torch.tensor(scaling.get("latents_std", [1.0] * 4)).double()
    scaled = (raw - shift[:, None, None]) * 0.36 / std[:, None, None]
    torch.testing.assert_close(prior.encode(images), scaled, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(prior.decode(scaled), plain.decode(raw * 0.18215), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 0}, "'scaling_factor' must be positive"),
        ({"scaling_factor": -1.0}, "'scaling_factor' must be positive"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "'latents_std' must be positive"),
        ({"latents_mean": [0.0]}, "'latents_mean' needs one number for each of the 4"),
        ({"latents_mean": [0.0] * 4, "shift_factor": 0.1}, "exclude each other"),
    ],
)
def test_scalings_without_meaning_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=f"vae/config.json: .*{message}"):
        load_stable_diffusion(edit(copy_of("prior", tmp_path), "vae/config.json", **changes))


def test_attention_of_a_vae_of_2022_and_its_counters_of_positions(tmp_path) -> None:
    """Names in files that diffusers 0.6 and transformers 4.22 wrote."""
    folder = copy_of("prior", tmp_path)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for name in [name for name in tensors if ".attentions." in name]:
        part = next((new for new in old if f".{new}." in name), None)
        if part:
            tensors[name.replace(f".{part}.", f".{old[part]}.")] = tensors.pop(name)
    assert any("proj_attn" in name for name in tensors)
    file.unlink()
    save_file(tensors, file)
    text = folder / "text_encoder/model.safetensors"
    tensors = {name.removeprefix("text_model."): value for name, value in load_file(text).items()}
    tensors = {f"text_model.{name}": value for name, value in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(48)[None]
    text.unlink()
    save_file(tensors, text)
    assert fingerprint_of(load_stable_diffusion(folder)) == fingerprint_of(
        load_stable_diffusion(valid("prior"))
    )


def test_the_text_half_of_a_whole_clip(tmp_path) -> None:
    """As openai/clip-vit-large-patch14: nested configs, the second counts; and leftovers of old versions."""
    from transformers import CLIPConfig, CLIPModel

    text = json.loads((valid("clip text") / "config.json").read_text())
    sizes = {
        key: text[key]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    folder = copy_of("clip text", tmp_path)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    whole.save_pretrained(folder)
    leftovers = {"architectures": None, "bad_words_ids": None, "id2label": {"0": "LABEL_0"}, "num_beams": 1,
                 "pruned_heads": {}, "use_bfloat16": False, "tie_encoder_decoder": False}  # fmt: skip
    nested = {"text_config": text | leftovers | {"hidden_size": 64}, "text_config_dict": sizes}
    edit(
        folder,
        "config.json",
        **nested,
        vision_config_dict={},
        torch_dtype="float32",
        logit_scale_init_value=2.6592,
    )
    encoder = load_text_encoder(str(folder))
    assert isinstance(encoder, CLIPTextEncoder)
    expected = whole.text_model(input_ids=encoder.token_ids(["a cube"])[0])[0]
    torch.testing.assert_close(encoder.encode(["a cube"]).tokens, expected.detach())


def test_the_encoder_of_a_whole_t5(tmp_path) -> None:
    """As google/t5-v1_1-xl: with decoder, head and the configs of tasks."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    config = T5Config(
        vocab_size=8, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    whole = T5ForConditionalGeneration(config).eval()
    folder = copy_of("t5", tmp_path)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    whole.save_pretrained(folder)
    tasks = {
        "task_specific_params": {"summarization": {"num_beams": 4}},
        "n_positions": 512,
        "output_past": True,
    }
    edit(folder, "config.json", **tasks, tie_word_embeddings=False, architectures=["T5WithLMHeadModel"])
    encoder = load_text_encoder(str(folder))
    ids = torch.tensor([[3, 4, 5, 1]])
    expected = whole.encoder(input_ids=ids)[0]
    torch.testing.assert_close(encoder.encode(["a red cube"]).tokens[:, :4], expected.detach())


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path) -> None:
    folder = copy_of("prior", tmp_path)
    data = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    data["model"]["vocab"]["extra</w>"] = len(data["model"]["vocab"]) + 7
    write(folder / "tokenizer/tokenizer.json", data)
    with pytest.raises(ValueError, match="has the id 88 .* embeddings of only 81 tokens: use the tokenizer"):
        load_stable_diffusion(folder)


def test_a_tokenizer_of_2022(tmp_path) -> None:
    """vocab.json, merges.txt and special tokens with flags, as in the folders of Stable Diffusion 1."""
    folder = copy_of("prior", tmp_path)
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    for file in (folder / "tokenizer").iterdir():
        file.unlink()

    def token(text: str) -> dict[str, Any]:
        return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    write(folder / "tokenizer/vocab.json", model["vocab"])
    write(folder / "tokenizer/merges.txt", "#version: 0.2\n")
    specials = {"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"), "pad_token": "!"}
    write(folder / "tokenizer/special_tokens_map.json", specials | {"unk_token": token("<|endoftext|>")})
    config = {
        key: {"__type": "AddedToken", **token(value["content"])}
        for key, value in specials.items()
        if key != "pad_token"
    }
    config |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 48,
               "name_or_path": "openai/clip-vit-large-patch14", "pad_token": "!",
               "tokenizer_class": "CLIPTokenizer",
               "special_tokens_map_file": "./special_tokens_map.json",
               "unk_token": config["eos_token"]}  # fmt: skip
    write(folder / "tokenizer/tokenizer_config.json", config)
    texts = ["a red cube", "", "q" * 60]
    new, old = (load_stable_diffusion(each).text_encoder.encode(texts) for each in (valid("prior"), folder))
    assert torch.equal(new.tokens, old.tokens) and torch.equal(new.mask, old.mask)
