"""LoRAs are fused as diffusers fuses them, whatever tool named their tensors; others are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amortized.priors import PriorConfig, fingerprint_of, load_prior

ATTENTION = ["attn1.to_q", "attn1.to_k", "attn2.to_v", "attn2.to_out.0"]
BLOCK = "down_blocks.0.attentions.0"
UNET = [f"{BLOCK}.transformer_blocks.0.{each}" for each in ATTENTION]
# Which the scripts of kohya (with LoCon) train besides: linear layers, and filters of one and more pixels.
MORE = [f"{BLOCK}.proj_in", f"{BLOCK}.transformer_blocks.0.ff.net.0.proj", "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.downsamplers.0.conv", "up_blocks.0.resnets.0.conv_shortcut",
        "up_blocks.1.resnets.0.time_emb_proj"]  # fmt: skip
TEXT = [f"text_model.encoder.layers.{layer}.self_attn.{each}_proj" for layer in (0, 1) for each in "qkv"]
TEXT += ["text_model.encoder.layers.1.self_attn.out_proj"]
MLP = ["text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.1.mlp.fc2"]
RANK = 3


def pipeline(folder: Path):
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def factors(folder: Path, unet: list[str], text: list[str]) -> dict[tuple[str, str], list[torch.Tensor]]:
    """Random factors [down, up] of layers, by ("unet" or "text_encoder", layer)."""
    pipe, generator = pipeline(folder), torch.Generator().manual_seed(0)
    plain = {key.removeprefix("text_model."): v for key, v in pipe.text_encoder.state_dict().items()}
    found = {("unet", layer): pipe.unet.state_dict()[f"{layer}.weight"] for layer in unet}
    found |= {("text_encoder", layer): plain[f"{layer.removeprefix('text_model.')}.weight"] for layer in text}
    shapes = {
        key: [(RANK, *weight.shape[1:]), (len(weight), RANK, *[1] * (weight.ndim - 2))]
        for key, weight in found.items()
    }
    return {key: [torch.randn(s, generator=generator) * 0.2 for s in both] for key, both in shapes.items()}


def write_lora(file: Path, folder: Path, form: str) -> Path:
    """A LoRA's file in one of the forms that are published."""
    more = (MORE, MLP) if form in ("kohya", "peft", "peft with alpha") else ([], [])
    tensors: dict[str, torch.Tensor] = {}
    metadata = None
    for (part, layer), both in factors(folder, UNET + more[0], TEXT + more[1]).items():
        if form == "kohya":
            prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[part]
            name, ends = f"{prefix}_{layer.replace('.', '_')}", ("lora_down.weight", "lora_up.weight")
            # diffusers (0.42) ignores the alpha of an attention that differs from those of most layers.
            tensors[f"{name}.alpha"] = torch.tensor(1.0 if "conv" in layer else 5.0)
        elif form.startswith("peft"):
            name, ends = f"{part}.{layer}", ("lora_A.weight", "lora_B.weight")
        elif form == "diffusers":
            name = f"{part}.{layer}"
            ends = ("lora.down.weight", "lora.up.weight")
            if part == "text_encoder":
                ends = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
        else:  # of diffusers before 0.21, with one name for each attention's processor
            block, _, own = layer.replace(".to_out.0", ".to_out").rpartition(".")
            own = own if part == "unet" else own.replace("out_proj", "to_out")
            own = {f"{each}_proj": f"to_{each}" for each in "qkv"}.get(own, own)
            name = f"{part}.{block}.processor.{own}" if part == "unet" else f"{part}.{block}.{own}"
            ends = ("_lora.down.weight", "_lora.up.weight")
        dot = "" if ends[0].startswith("_") else "."
        tensors |= {f"{name}{dot}{end}": value for end, value in zip(ends, both, strict=True)}
    if form == "peft with alpha":
        settings = {"r": RANK, "lora_alpha": 7, "alpha_pattern": {f"{BLOCK}.proj_in": 2}, "use_rslora": True}
        settings |= {"target_modules": UNET + MORE}
        text = {
            "r": RANK,
            "lora_alpha": 1,
            "target_modules": [name.removeprefix("text_model.") for name in TEXT + MLP],
        }
        both = {"unet": settings, "text_encoder": text}
        flat = {f"{part}.{key}": value for part, each in both.items() for key, value in each.items()}
        metadata = {"lora_adapter_metadata": json.dumps(flat)}
    save_file(tensors, file, metadata=metadata)
    return file


def difference(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    return max(float((state[key] - other[key]).abs().max()) for key in state)


@pytest.mark.parametrize("form", ["kohya", "peft", "peft with alpha", "diffusers", "old diffusers"])
@pytest.mark.parametrize("scale", [1.0, -0.6])
def test_a_fused_lora_equals_that_of_diffusers(folder, tmp_path, form, scale) -> None:
    file = write_lora(tmp_path / "lora.safetensors", folder, form)
    prior = load_prior(PriorConfig(path=str(folder), loras=(str(file),), lora_scales=(scale,)))
    pipe = pipeline(folder)
    before = difference(prior.unet, pipe.unet), difference(prior.text_encoder.model, pipe.text_encoder)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    assert min(before) > 0.01
    assert difference(prior.unet, pipe.unet) < 1e-6
    assert difference(prior.text_encoder.model, pipe.text_encoder) < 1e-6


def refusal(folder: Path, tensors: dict[str, torch.Tensor], file: Path, metadata=None) -> str:
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(ValueError) as caught:
        load_prior(PriorConfig(path=str(folder), loras=(str(file),)))
    assert "\n" not in str(caught.value) and file.name in str(caught.value)
    assert "diffusers folder" not in str(caught.value)  # the remedy of another problem
    return str(caught.value)


def kohya(layer: str, down: tuple[int, ...], up: tuple[int, ...], **more: float) -> dict[str, torch.Tensor]:
    tensors = {f"{layer}.lora_down.weight": torch.ones(down), f"{layer}.lora_up.weight": torch.ones(up)}
    return tensors | {f"{layer}.{name}": torch.tensor(value) for name, value in more.items()}


QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def test_every_layer_has_its_own_alpha(folder, tmp_path) -> None:
    key = QUERY.replace("_q", "_k")
    layers = kohya(QUERY, (2, 16), (16, 2), alpha=1.0) | kohya(key, (2, 16), (16, 2), alpha=6.0)
    save_file(layers, tmp_path / "x.safetensors")
    plain = load_prior(PriorConfig(path=str(folder)))
    changed = load_prior(PriorConfig(path=str(folder), loras=(str(tmp_path / "x.safetensors"),)))
    blocks = [each.unet.down_blocks[0].attentions[0].transformer_blocks[0] for each in (plain, changed)]
    for name, step in (("to_q", 1.0), ("to_k", 6.0)):  # alpha / 2 times a product of ones
        before, after = (getattr(each.attn1, name).weight for each in blocks)
        torch.testing.assert_close(after - before, torch.full((16, 16), step))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_loras_add_up_in_any_precision(folder, tmp_path, dtype) -> None:
    """Twice a half is one, a scale of zero is none, and the fingerprint says so."""
    file = str(write_lora(tmp_path / "lora.safetensors", folder, "peft"))
    settings = [None, (0.0,), (1.0,), (0.5,)]
    none, zero, one, half = (
        fingerprint_of(
            load_prior(
                PriorConfig(path=str(folder), dtype=dtype, loras=scales and (file,), lora_scales=scales)
            )
        )
        for scales in settings
    )
    assert none == zero and len({none, one, half}) == 3
    if dtype == "float64":
        both = load_prior(
            PriorConfig(path=str(folder), dtype=dtype, loras=(file, file), lora_scales=(0.5, 0.5))
        )
        whole = load_prior(PriorConfig(path=str(folder), dtype=dtype, loras=(file,)))
        assert difference(both.unet, whole.unet) < 1e-12


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has no tensors"),
        ({"x": torch.ones(3)}, "'x' is not of a LoRA"),
        (kohya("lora_unet_none", (2, 16), (16, 2)), "layer 'none', which this prior's UNet lacks"),
        (kohya("lora_te2_text_model_x", (2, 16), (16, 2)), "which this prior's UNet lacks"),
        (kohya("lora_te_text_model_x", (2, 16), (16, 2)), "this prior's text encoder lacks"),
        (kohya(QUERY, (2, 99), (16, 2)), r"is for weights \[16, 99\], but this prior's UNet has \[16, 16\]"),
        (kohya(QUERY, (2, 16), (99, 2)), r"is for weights \[99, 16\]"),
        (kohya(QUERY, (2, 16), (16, 3)), "which have no product"),
        (kohya(QUERY, (16,), (16,)), "which have no product"),
        (kohya(QUERY, (0, 16), (16, 0)), "which have no product"),
        (kohya(QUERY, (2, 16), (16, 2), alpha=float("nan")), "not finite"),
        ({f"{QUERY}.lora_up.weight": torch.ones(16, 2)}, "lacks one of its two factors"),
        ({f"{QUERY}.alpha": torch.ones(())}, "lacks one of its two factors"),
        ({f"{QUERY}.lora_up.weight": torch.ones(16, 2, dtype=torch.int8)}, "is I8, and only"),
        ({f"{QUERY}.hada_w1_a": torch.ones(3)}, "is a LoHa"),
        ({f"{QUERY}.lokr_w1": torch.ones(3)}, "is a LoKr"),
        ({f"{QUERY}.dora_scale": torch.ones(3)}, "is a DoRA"),
        ({"base_model.model.x.lora_A.weight": torch.ones(3)}, "peft's own format"),
    ],
)
def test_other_files_are_refused_in_one_sentence(folder, tmp_path, tensors, message) -> None:
    assert re.search(message, refusal(folder, tensors, tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "settings",
    ["{", "[]", '{"unet.use_dora": true}', '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": {"(": 1}}',
     '{"unet.alpha_pattern": 3}', '{"unet.lora_alpha": NaN}'],
)  # fmt: skip
def test_invalid_metadata_is_refused(folder, tmp_path, settings) -> None:
    tensors = kohya(QUERY, (2, 16), (16, 2))
    message = refusal(folder, tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": settings})
    assert "metadata" in message or "DoRA" in message


def test_settings_are_checked(folder, tmp_path) -> None:
    for settings, message in (
        ({"lora_scales": (1.0,)}, "lora_scales has 1 values for 0 LoRAs"),
        ({"loras": ("a", "b"), "lora_scales": (1.0,)}, "lora_scales has 1 values for 2 LoRAs"),
    ):
        with pytest.raises(ValueError, match=message):
            PriorConfig(path=str(folder), **settings)
    with pytest.raises(ValueError, match="No such file"):
        load_prior(PriorConfig(path=str(folder), loras=("none.safetensors",)))
    (tmp_path / "x.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="which is not read"):
        load_prior(PriorConfig(path=str(folder), loras=(str(tmp_path / "x.pt"),)))
