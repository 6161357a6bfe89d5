"""Conversion of MVDream's published checkpoint to a folder in diffusers format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amortized.priors import load_stable_diffusion
from amortized.priors.convert_mvdream import NetworkConfigs, convert, convert_networks
from tests.priors.multi_view_inputs import V, denoiser_inputs
from tests.tiny_sd import make_tiny_sd


def resnet(name: str, cin: int, cout: int, temb: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "in_layers.0": (cin,),
        "in_layers.2": (cout, cin, 3, 3),
        "emb_layers.1": (cout, temb),
        "out_layers.0": (cout,),
        "out_layers.3": (cout, cout, 3, 3),
    }
    shapes |= {"skip_connection": (cout, cin, 1, 1)} if cin != cout else {}
    return {
        f"{name}.{part}.{kind}": shape if kind == "weight" else shape[:1]
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def transformer(name: str, width: int, context: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part, shape in {"norm": (width,), "proj_in": (width, width), "proj_out": (width, width)}.items():
        shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": (width,)}
    block = f"{name}.transformer_blocks.0"
    for number, source in ((1, width), (2, context)):
        shapes |= {f"{block}.attn{number}.to_q.weight": (width, width)}
        shapes |= {f"{block}.attn{number}.to_{part}.weight": (width, source) for part in "kv"}
        shapes |= {f"{block}.attn{number}.to_out.0.weight": (width, width)}
        shapes |= {f"{block}.attn{number}.to_out.0.bias": (width,)}
    feed = {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}
    for part, shape in {**feed, **{f"norm{i}": (width,) for i in (1, 2, 3)}}.items():
        shapes |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape[:1]}
    return shapes


def published_unet(widths: tuple[int, ...], context: int, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the UNet in CompVis' code: attention on all levels except the last."""
    temb, last = 4 * widths[0], len(widths) - 1
    linear = {"time_embed.0": (temb, widths[0]), "time_embed.2": (temb, temb)}
    linear |= {"camera_embed.0": (temb, 16), "camera_embed.2": (temb, temb)}
    linear |= {"input_blocks.0.0": (widths[0], 4, 3, 3), "out.0": (widths[0],), "out.2": (4, widths[0], 3, 3)}
    shapes: dict[str, tuple[int, ...]] = {}
    current, skips, number = widths[0], [widths[0]], 0
    for level, width in enumerate(widths):
        for _ in range(layers):
            number += 1
            shapes |= resnet(f"input_blocks.{number}.0", current, width, temb)
            shapes |= transformer(f"input_blocks.{number}.1", width, context) if level < last else {}
            current = width
            skips.append(current)
        if level < last:
            number += 1
            linear[f"input_blocks.{number}.0.op"] = (current, current, 3, 3)
            skips.append(current)
    shapes |= resnet("middle_block.0", current, current, temb) | transformer(
        "middle_block.1", current, context
    )
    shapes |= resnet("middle_block.2", current, current, temb)
    number = -1
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            number += 1
            shapes |= resnet(f"output_blocks.{number}.0", current + skips.pop(), widths[level], temb)
            current = widths[level]
            shapes |= transformer(f"output_blocks.{number}.1", current, context) if level < last else {}
            if layer == layers and level > 0:
                index = 2 if level < last else 1
                linear[f"output_blocks.{number}.{index}.conv"] = (current, current, 3, 3)
    for part, shape in linear.items():
        shapes |= {f"{part}.weight": shape, f"{part}.bias": shape[:1]}
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def published_text(width: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's text tower, including the unused last layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        parts = {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }
        for part, shape in {**parts, "ln_1": (width,), "ln_2": (width,)}.items():
            shapes |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape[:1]}
    return {f"cond_stage_model.model.{name}": shape for name, shape in shapes.items()}


def published_vae(vae: nn.Module) -> dict[str, tuple[int, ...]]:
    """Convert diffusers' names of the VAE to CompVis'."""
    num_levels, shapes = len(vae.config.block_out_channels), {}
    for name, value in vae.state_dict().items():
        shape, parts = tuple(value.shape), name.split(".")
        if "attentions" in name:
            rename = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
            new = f"{parts[0]}.mid.attn_1.{rename[parts[4]]}.{parts[-1]}"
            shape = shape if len(shape) == 1 else (*shape, 1, 1)
        elif "mid_block" in name:
            new = f"{parts[0]}.mid.block_{int(parts[3]) + 1}.{'.'.join(parts[4:])}"
        elif "down_blocks" in name or "up_blocks" in name:
            down = "down_blocks" in name
            level = int(parts[2]) if down else num_levels - 1 - int(parts[2])
            new = f"{parts[0]}.{'down' if down else 'up'}.{level}."
            new += f"block.{'.'.join(parts[4:])}" if parts[3] == "resnets" else ""
            new += (
                f"{'downsample' if down else 'upsample'}.{'.'.join(parts[5:])}" if "samplers" in name else ""
            )
        else:
            new = name.replace("conv_norm_out", "norm_out")
        shapes[f"first_stage_model.{new.replace('conv_shortcut', 'nin_shortcut')}"] = shape
    return shapes


TINY = NetworkConfigs(
    unet={
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "cross_attention_dim": 32,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "attention_head_dim": [2, 4],
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
    },
    vae={
        "block_out_channels": [8, 16],
        "layers_per_block": 2,
        "sample_size": 16,
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    text={
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 23,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "eos_token_id": 89,
        "bos_token_id": 88,
        "pad_token_id": 0,
    },
)


def published(
    configs: NetworkConfigs, widths: tuple[int, ...], device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """A state dict in the published names, with random weights."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**configs.vae)
    width, vocabulary = configs.text["hidden_size"], configs.text["vocab_size"]
    names = published_unet(widths, width) | published_text(width, 24, vocabulary) | published_vae(vae)
    torch.manual_seed(0)
    state = {name: torch.randn(shape, device=device) / 8 for name, shape in names.items()}
    return state | {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}


def test_the_published_names_and_shapes_fit_at_full_size():
    state = published(NetworkConfigs(), (320, 640, 1280, 1280), device="meta")
    networks = convert_networks(state, NetworkConfigs())
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    # Stable Diffusion 2.1's UNet has 865.91 M; the cameras' two layers add 16 * 1280 + 1280^2 + 2 * 1280.
    assert count["unet"] == 865_910_724 + 1_661_440
    assert count["text_encoder"] == 340_387_840 and count["vae"] == 83_653_863


def test_a_converted_checkpoint_has_its_weights_under_the_right_names(tmp_path):
    state = published(TINY, (16, 32))
    torch.save(state, tmp_path / "mv.pt")
    single = make_tiny_sd(tmp_path / "single")
    convert(tmp_path / "mv.pt", tmp_path / "converted", str(single), TINY)
    prior = load_stable_diffusion(tmp_path / "converted")
    assert (
        prior.views_per_group == V and prior.prediction_type == "epsilon" and prior.latent_shape == (4, 8, 8)
    )
    unet, prefix = prior.unet.state_dict(), "model.diffusion_model."
    key = "transformer_blocks.0.attn1.to_k.weight"
    for ours, theirs in {
        "class_embedding.linear_1.weight": "camera_embed.0.weight",
        "class_embedding.linear_2.bias": "camera_embed.2.bias",
        "time_embedding.linear_1.weight": "time_embed.0.weight",
        f"down_blocks.0.attentions.1.{key}": f"input_blocks.2.1.{key}",
        "up_blocks.1.resnets.2.conv2.weight": "output_blocks.5.0.out_layers.3.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    }.items():
        torch.testing.assert_close(unet[ours], state[prefix + theirs], rtol=1e-3, atol=1e-4)
    latents_noisy, times, _, cameras = denoiser_inputs(1)
    encoded = prior.text_encoder.encode(["a cube"] * V)
    assert prior.predict_noise(latents_noisy.float(), times, encoded, cameras).isfinite().all()


def test_other_checkpoints_are_refused(tmp_path):
    state = published(TINY, (16, 32))
    with pytest.raises(ValueError, match="camera_embed.*this is not an MVDream checkpoint"):
        convert_networks({k: v for k, v in state.items() if "camera" not in k}, TINY)
    state["model.diffusion_model.time_embed.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="the weights of the unet do not fit: size mismatch"):
        convert_networks(state, TINY)
