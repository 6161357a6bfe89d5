"""Converted ScaleDreamer checkpoints: the field of an independent numpy implementation, and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.generation import TextTo3D
from amortized.generation.convert_scaledreamer import RENDERER, convert, convert_tensors
from amortized.generation.scaledreamer import structure_of
from amortized.rendering import RendererConfig, render
from amortized.types import TextCondition
from tests.generation import scaledreamer_files as files
from tests.generation import scaledreamer_numpy as published
from tests.tiny_sd import make_tiny_sd

WRAPPED = {"epoch": 0, "global_step": 50_000}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A tiny Stable Diffusion, whose text embeddings have width 32."""
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd")))


def saved(state: dict[str, Tensor], file: Path, prefix: str = "", wrapped: bool = True) -> Path:
    named = {f"{prefix}{name}": value for name, value in state.items()}
    torch.save({"state_dict": named, **WRAPPED} if wrapped else named, file)
    return file


def ball(num: int, seed: int) -> Tensor:
    """Points [1, N, 3] in the ball of radius 2, one of them near its surface."""
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(1, num, 3, generator=random, dtype=torch.float64)
    radii = torch.linspace(0.05, 1.99, num, dtype=torch.float64)[None, :, None]
    return points / points.norm(dim=-1, keepdim=True) * radii


@pytest.mark.parametrize(
    ("kind", "prefix", "wrapped"),
    [
        ("hyper-ingp", "", True),
        ("3dconv-net", "system.", True),
        ("3dconv-net of width 2", "", False),
        ("triplane-transformer", "module.", False),
    ],
)
def test_a_converted_generator_is_the_published_field(kind, prefix, wrapped, encoder, tmp_path) -> None:
    """From the file to the folder to the object of a text: distances, colors, background, in float64."""
    state = files.state_of(files.SMALL[kind]())
    file = saved(state, tmp_path / "MG15.pth", prefix, wrapped)
    convert(file, tmp_path / "out", "mg15")
    model = TextTo3D.from_pretrained(tmp_path / "out", text_encoder=encoder)
    text = model.texts.generator_text(["a red cube"])
    assert not text.mask.all()  # it is padded
    double = TextCondition(pooled=text.pooled.double(), tokens=text.tokens.double(), mask=text.mask)
    z = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points, directions = ball(7, 2), ball(6, 3)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        scene = model.generator.double()(double, z if kind.startswith("3d") else None)
        sdf, albedo = scene.sdf_and_albedo(points)
        background = scene.background(directions)
    arrays = {name: value.double().numpy() for name, value in state.items()}
    x, d = points[0].numpy(), directions[0].numpy()
    pooled, tokens = double.pooled[0].numpy(), double.tokens[0].numpy()
    if kind == "hyper-ingp":
        expected = published.hyper_ingp(arrays, x, pooled)
        behind = published.hash_background(arrays, d, pooled)
    else:
        behind = published.sigmoid(published.sphere_background(arrays, d))
        if kind == "triplane-transformer":
            expected, behind = published.triplane_transformer(arrays, x, tokens), 1.002 * behind - 0.001
        else:
            expected = published.conv3d_net(arrays, x, pooled, z[0].numpy())
    np.testing.assert_allclose(sdf[0].numpy(), expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(albedo[0].numpy(), expected[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(background[0].numpy(), behind, rtol=0, atol=1e-9)
    assert np.ptp(expected[1]) > 0.05 and np.ptp(behind) > 0.05  # the weights matter at these points
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["scenes"]["sharpness"] == pytest.approx(30, abs=1e-3)
    assert config["generator"]["bounding_radius"] == 2 and config["text_encoder"]["fingerprint"] == ""
    assert config["training"]["step"] == (50_000 if wrapped else None)
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "ScaleDreamer" in card
        and "| training corpus | mg15 |" in card
        and "stable-diffusion-2-1-base" in card
    )


FULL: dict[str, tuple[Callable[[], files.Shapes], int, int]] = {
    # entries of the state dict, and parameters of the generator, as its own modules count them
    "hyper-ingp": (files.hyper_ingp, 15, 12_948_464),
    "3dconv-net": (files.conv3d_net, 113, 88_686_923),
    "3dconv-net of width 2": (lambda: files.conv3d_net(2), 113, 144_798_155),
    "triplane-transformer": (files.triplane_transformer, 257, 120_564_480),
}


@pytest.mark.parametrize("kind", FULL)
def test_published_names_and_shapes_fit_at_full_size(kind: str) -> None:
    shapes, entries, parameters = FULL[kind]
    state = files.state_of(shapes(), device="meta")
    assert len(state) == entries
    structure = structure_of(state)
    weights = convert_tensors(state, structure)
    counted = sum(value.numel() for name, value in weights.items() if name.startswith("generator."))
    assert counted == parameters and structure.text_dim == 1024
    assert structure.generator.name == kind.split()[0]
    assert getattr(structure.generator, "width", None) in (None, 1.0, 2.0, 768)


def test_every_tensor_of_the_file_matters(tmp_path: Path) -> None:
    """Another value of any tensor changes the folder's weights, unless it is listed as unused."""
    for kind in ("3dconv-net", "triplane-transformer"):
        state = files.state_of(files.SMALL[kind]())
        weights = convert_tensors(state, structure_of(state))
        for name in state:
            changed = convert_tensors({**state, name: state[name] + 1}, structure_of(state))
            differs = any(not torch.equal(weights[key], changed[key]) for key in weights)
            unused = "bbox" in name or name.endswith(("w_avg", "noise_const", "_inv_std", "encoding.params"))
            assert differs != unused, name


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def replaced(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, name: value}


LAYER = "geometry.space_generator.layers.1."
BAD = {
    "geometry.space_generator.extra.weight would have no place in a triplane-transformer": replaced(
        "geometry.space_generator.extra.weight", torch.zeros(2)
    ),
    "layers.2.norm1.bias and 1 more would have no place": lambda state: {
        **state,
        "geometry.space_generator.layers.2.norm1.bias": torch.zeros(32),
        "geometry.space_generator.other": torch.zeros(1),
    },
    f"{LAYER}mlp.3.bias is missing": without(f"{LAYER}mlp.3.bias"),
    f"{LAYER}mlp.3.bias is float32 [31], expected floats [32]": replaced(
        f"{LAYER}mlp.3.bias", torch.zeros(31)
    ),
    f"{LAYER}mlp.3.bias is int64 [32], expected floats": replaced(
        f"{LAYER}mlp.3.bias", torch.zeros(32, dtype=torch.int64)
    ),
    "mlp.2.bias would have values that are not finite": replaced(
        f"{LAYER}mlp.3.bias", torch.full((32,), math.nan)
    ),
    "geometry.bbox is not a cube around the origin": replaced(
        "geometry.bbox", torch.tensor([[-2.0] * 3, [1.0] * 3])
    ),
    "geometry.bbox is missing": without("geometry.bbox"),
    "renderer.variance._inv_std is missing": without("renderer.variance._inv_std"),
    "renderer.variance._inv_std is not finite": replaced(
        "renderer.variance._inv_std", torch.tensor(math.nan)
    ),
    "it has no Hyper-iNGP, 3DConv-net or Triplane-Transformer": without("geometry.space_generator.pos_embed"),
    "sphere_radius must lie between 0 and bounding_radius 0.5": replaced(
        "geometry.bbox", torch.tensor([[-0.5] * 3, [0.5] * 3])
    ),
    "pos_embed has the shape [27, 32], expected 3 dimensions": replaced(
        "geometry.space_generator.pos_embed", torch.zeros(27, 32)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_other_tensors_are_refused_in_a_sentence(message: str, tmp_path: Path) -> None:
    state = BAD[message](files.state_of(files.SMALL["triplane-transformer"]()))
    file = saved(state, tmp_path / "file.pth")
    with pytest.raises(ValueError) as raised:
        convert(file, tmp_path / "out", "dl17k")
    assert message in str(raised.value) and "file.pth" in str(raised.value)
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == [file]


def test_a_text_encoder_is_recorded_with_its_fingerprint_and_must_fit(encoder, tmp_path) -> None:
    file = saved(files.state_of(files.SMALL["triplane-transformer"]()), tmp_path / "file.pth")
    convert(file, tmp_path / "out", "dl17k", encoder)
    recorded = json.loads((tmp_path / "out/config.json").read_text())["text_encoder"]
    assert recorded["path"] == encoder and recorded["fingerprint"].startswith("float32 ")
    model = TextTo3D.from_pretrained(tmp_path / "out")
    text, end = (model.scenes([prompt]).sdf(ball(5, 1).float()) for prompt in ("a cube", "a blue ball"))
    between = model.interpolate("a cube", "a blue ball", 3).sdf(ball(5, 1).float().expand(3, -1, -1))
    torch.testing.assert_close(between[[0, 2]], torch.cat([text, end]), rtol=0, atol=1e-5)
    narrow = files.triplane_transformer(text=24, width=32, side=3, layers=1, channels=4, hidden=(5,))
    file = saved(files.state_of(narrow), tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match="takes text embeddings of width 24, but those of .* have 32"):
        convert(file, tmp_path / "narrow", "dl17k", encoder)
    convert(file, tmp_path / "narrow", "dl17k")
    with pytest.raises(ValueError, match="takes text embeddings of width 24, but those of .* have 32"):
        TextTo3D.from_pretrained(tmp_path / "narrow", text_encoder=encoder)


class ThinObjects:
    """A ring of radius 0.6 that is 0.06 thick, and a plate of 0.04, in a ball of radius 2."""

    num_prompts, bounding_radius = 1, 2.0

    def sdf(self, points: Tensor) -> Tensor:
        ring = torch.stack([points[..., :2].norm(dim=-1) - 0.6, points[..., 2]], dim=-1).norm(dim=-1) - 0.03
        beyond = (points - torch.tensor([0.0, 0.0, 0.5])).abs() - torch.tensor([0.4, 0.4, 0.02])
        plate = beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0)
        return torch.minimum(ring, plate)

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.sdf(points), 0.5 + 0.5 * torch.sin(9 * points)

    def select(self, index: int) -> ThinObjects:
        return self


def test_the_renderer_of_a_converted_generator_resolves_its_ball() -> None:
    """Against 2048 even samples a ray; the default settings are meant for a ball of radius 1."""

    def image(config: RendererConfig) -> Tensor:
        cameras = orbit(1, 1, elevation_deg=25, distance=1.5, fovy_deg=70)
        behind = torch.full((1, 1, 3), 0.5)
        options = {"background": behind, "sharpness": 30.0, "training": False}
        return render(ThinObjects(), cameras, 24, 24, config=config, **options).rgb

    exact = image(RendererConfig(num_coarse=2048, num_fine=0, lattice=0))
    error, default = ((image(config) - exact).abs() for config in (RENDERER, RendererConfig()))
    assert exact.std() > 0.05 and error.max() < 0.01 and error.mean() < 0.7 * default.mean()
