"""The embedded models: saved models load as they were trained."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from amortized.random import generator_for
from corpora.shapes.grammar import MARK, sentence, singles
from corpora.shapes.recipe import __main__ as command
from corpora.shapes.recipe import clip, multi_view, prior, scoring
from corpora.shapes.recipe.images import JUDGE, ImageSet, draw, plan
from corpora.shapes.recipe.linear_encoder import make_linear, principal_directions
from corpora.shapes.recipe.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# ---- formats ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise() -> ImageSet:
    """One image of pure noise for each of 340 scenes."""
    descriptions = [description for description, _ in plan(dataclasses.replace(JUDGE, num_pairs=84))]
    random = torch.Generator().manual_seed(0)
    return ImageSet(
        images=torch.randint(256, (340, 64, 64, 3), generator=random).byte(),
        scene=torch.arange(340),
        azimuth_deg=360 * torch.rand(340, generator=random) - 180,
        elevation_deg=145 * torch.rand(340, generator=random) - 60,
        descriptions=descriptions,
    )


@pytest.fixture(scope="module")
def clip_folder(noise, tmp_path_factory) -> Path:
    """The folder of a CLIP after two training steps."""
    folder = tmp_path_factory.mktemp("clip")
    plain = ImageSet(
        images=noise.images[:64],
        scene=noise.scene[:64],
        azimuth_deg=noise.azimuth_deg[:64],
        elevation_deg=noise.elevation_deg[:64],
        descriptions=noise.descriptions[:64],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "draw", lambda config, cache: noise)
        patch.setattr(clip, "draw_held_out", lambda: plain)
        patch.setattr(clip, "STEPS", 2)
        patch.setattr(clip, "BATCH", 66)
        clip.make_clip(folder / "work", folder / "output")
    return folder / "output"


def test_the_clip_loads_as_it_was_trained(clip_folder, noise, tokenizer):
    """Evaluation, from the folder alone, and the recipe give the same similarities."""
    from amortized.evaluation.clip import load_clip

    scorer, similarity = load_clip(clip_folder), scoring.load_judge(clip_folder)
    texts = [sentence(description) for description in noise.descriptions[::40]]
    padded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(scorer.tokenizer(texts), padded)
    images = noise.images[:5].float() / 255
    expected = scorer.encode_images(images) @ scorer.encode_texts(texts).T
    torch.testing.assert_close(similarity(images.movedim(-1, 1), texts), expected, atol=1e-5, rtol=0)
    assert (clip_folder / "README.md").exists() and expected.std() > 0


def test_a_clip_batch_has_distinct_scenes():
    weight = torch.rand(340, generator=torch.Generator().manual_seed(1)) + 0.1
    starts = set()
    for step in range(40):
        scenes = clip.sample_scenes(weight, 80, generator_for("scenes", step))
        assert len(scenes) == len(set(scenes.tolist())) == 80 and scenes.max() < 340
        starts.add(min(int(scenes[0]) // 64, 4))
    assert starts == set(range(5))  # plain, marked, small, large and pairs each come first in some batch


class PixelClip:
    """A fake CLIP: an image is the scene in its first pixel plus `shift`, a sentence its index."""

    def __init__(self, tokenizer, shift: int = 0) -> None:
        texts = [sentence(description) for description in singles()]
        self.index = {tuple(tokenizer(text).input_ids): i for i, text in enumerate(texts)}
        self.eos, self.shift = tokenizer.eos_token_id, shift

    def eval(self) -> None: ...

    def train(self) -> None: ...

    def encode_text(self, ids, normalize: bool) -> torch.Tensor:
        rows = [tuple(row[: row.index(self.eos) + 1]) for row in ids.tolist()]
        return torch.eye(64)[[self.index[row] for row in rows]]

    def encode_image(self, pixels, normalize: bool) -> torch.Tensor:
        scene = ((pixels[:, 0, 0, 0] * clip.STD[0] + clip.MEAN[0]) * 255).round().long()
        return torch.eye(64)[(scene + self.shift) % 64]


@pytest.mark.parametrize(
    ("shift", "expected"), [(0, (1, 1, 1)), (8, (0, 1, 0)), (4, (1 / 2, 0, 0)), (9, (0, 0, 0))]
)
def test_accuracy_of_the_judge(tokenizer, shift: int, expected: tuple[float, float, float]):
    scene = torch.arange(64)
    images = scene[:, None, None, None].expand(64, 4, 4, 3).byte()
    angle = torch.zeros(64)
    data = ImageSet(
        images=images, scene=scene, azimuth_deg=angle, elevation_deg=angle, descriptions=singles()
    )
    scores = clip.accuracy(PixelClip(tokenizer, shift), tokenizer, data)
    assert (scores["shape"], scores["color"], scores["both"]) == expected


def test_the_encoder_is_half_whitened_pca_of_patches(noise):
    """Compared with NumPy's eigenvectors of the same patches."""
    # A cumulative sum over rows: unlike noise, it has distinct principal directions.
    images = (noise.images[:40].float().cumsum(1) / 64).byte()
    pixels = prior.as_pixels(images)
    mean, projection, retained = principal_directions(pixels, prior.LATENT_CHANNELS)
    vae = prior.build_vae()
    make_linear(vae, mean, projection)
    latents = prior.encode_all(vae, images)

    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # [N, 3, 16, 16, 4, 4]
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    values, vectors = values[::-1][:8], vectors[:, ::-1][:, :8]
    expected = (rows - rows.mean(0)) @ vectors / np.sqrt(np.sqrt(values))
    actual = latents.movedim(1, -1).reshape(-1, 8).double().numpy()
    signs = np.sign((actual * expected).sum(0))
    np.testing.assert_allclose(actual, signs * expected, atol=0.02)
    assert retained == pytest.approx(values.sum() / np.trace(np.cov(rows.T)), rel=1e-6)


def test_the_prior_loads_as_it_was_trained(clip_folder, noise, tmp_path, monkeypatch):
    """Two steps of every stage give a folder that diffusers and guidance load."""
    from diffusers import StableDiffusionPipeline

    from amortized.priors import load_stable_diffusion

    small = dataclasses.replace(noise, images=noise.images[:, ::2, ::2])
    monkeypatch.setattr(prior, "load_teacher_images", lambda folder: small)
    monkeypatch.setattr(prior, "DECODER_STEPS", 2)
    monkeypatch.setattr(prior, "STEPS", 2)
    monkeypatch.setattr(prior, "BATCH", 4)
    monkeypatch.setattr(scoring, "NUM_STEPS", 2)
    monkeypatch.setattr(prior, "score_prior", lambda pipe, judge, views, marked_every=2: {"shape": 0.25})
    prior.make_prior(tmp_path / "work", tmp_path / "prior", clip_folder)
    assert "| shape | 0.250 |" in (tmp_path / "prior" / "README.md").read_text()

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "prior", torch_dtype=torch.float32)
    images = scoring.sample(pipe, ["a red cube", "a blue sphere next to a green cone, back view"])
    assert images.shape == (2, 3, 32, 32) and images.std() > 0
    loaded = load_stable_diffusion(tmp_path / "prior")
    assert (loaded.image_size, loaded.latent_size, loaded.latent_channels) == (32, 8, 8)
    # The denoiser is trained on latents of unit variance.
    assert loaded.encode(small.images[::8].float() / 255).std().item() == pytest.approx(1.0, abs=0.01)


def test_rings_are_evenly_spaced_views_of_one_object(tmp_path):
    few = dataclasses.replace(
        multi_view.RINGS, views_single=4, views_cornered=8, views_marked=4, views_sized=4, num_pairs=2
    )
    data = draw(few)
    assert len(data.images) % 4 == 0 and data.images.shape[1:] == (32, 32, 3)
    rings = [values.view(-1, 4) for values in (data.scene, data.azimuth_deg, data.elevation_deg)]
    assert (rings[0] == rings[0][:, :1]).all() and torch.equal(rings[2], rings[2][:, :1].expand(-1, 4))
    relative = torch.remainder(rings[1] - rings[1][:, :1] + 1, 360) - 1
    torch.testing.assert_close(
        relative, torch.tensor([0.0, 90, 180, 270]).expand_as(relative), atol=0.01, rtol=0
    )
    assert len(set(rings[1][:, 0].tolist())) == len(rings[1])


def test_the_multi_view_prior_starts_from_the_single_view_prior_and_loads(
    clip_folder, noise, tmp_path, monkeypatch
):
    from amortized.priors import load_stable_diffusion

    single = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-prior"
    rings = ImageSet(
        images=noise.images[:32, ::2, ::2],
        scene=noise.scene[:8].repeat_interleave(4),
        azimuth_deg=torch.arange(32) * 90.0 - 180,
        elevation_deg=torch.zeros(32),
        descriptions=noise.descriptions,
    )
    monkeypatch.setattr(multi_view, "draw", lambda config, cache: rings)
    monkeypatch.setattr(multi_view, "STEPS", 2)
    monkeypatch.setattr(multi_view, "BATCH", 16)
    monkeypatch.setattr(multi_view, "NUM_STEPS", 2)
    fit_cameras = multi_view.fit_cameras
    monkeypatch.setattr(
        multi_view, "fit_cameras", lambda unet, prior: fit_cameras(unet, prior, steps=3, batch=8)
    )
    monkeypatch.setattr(multi_view, "score", lambda prior, judge: {"views": 0.25})
    multi_view.make_multi_view(tmp_path / "work", tmp_path / "prior", single, clip_folder)
    assert "| views | 0.250 |" in (tmp_path / "prior" / "README.md").read_text()

    prior, before = load_stable_diffusion(tmp_path / "prior"), load_stable_diffusion(single)
    assert prior.views_per_group == 4 and prior.latent_shape == before.latent_shape
    images = multi_view.sample(prior, ["a red cube"], start_deg=0.0)
    assert images.shape == (4, 3, 32, 32) and images.std() > 0
    weights, single_weights = prior.unet.state_dict(), before.unet.state_dict()
    assert {name for name in weights if name not in single_weights} == {
        f"class_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    assert all(
        (weights[name] - single_weights[name]).abs().max() < 0.01 for name in single_weights
    )  # two steps away


def test_the_camera_embedding_is_fitted_to_the_direction_words():
    from amortized.priors import load_stable_diffusion

    single = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-prior"
    prior = load_stable_diffusion(single)
    unet = multi_view.build_unet(prior.unet)
    early = multi_view.fit_cameras(unet, prior, steps=3, batch=16)
    assert multi_view.fit_cameras(unet, prior, steps=100, batch=16) < 0.8 * early


def test_a_ring_is_scored_by_its_views():
    """A fake prior whose images are indices into their contents, which the fake judge compares."""
    shown: list[tuple[str, float]] = []

    def sample(prior, texts, *, start_deg):
        shown[:] = [prior(text, start_deg + 90 * view) for text in texts for view in range(4)]
        return torch.arange(len(shown))

    def judge(images, texts):
        return torch.tensor([[float(shown[int(i)] == text) for text in texts] for i in images])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_view, "sample", sample)
        mark = f" {MARK}"
        good = multi_view.score(lambda text, az: text if az < 45 else text.replace(mark, ""), judge)
        assert good == {"views": 1, "rings": 1, "front": 1}
        behind = multi_view.score(lambda text, az: text if az == 180 else text.replace(mark, ""), judge)
        assert behind["front"] == 0
        wrong = multi_view.score(lambda text, az: "a red cube" if az == 20 else text, judge)
        assert wrong["views"] == pytest.approx(1 - 63 / 256) and wrong["rings"] == pytest.approx(1 / 64)


# ---- command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ([], ["clip", "prior", "multi-view"]),
        (["prior"], ["prior"]),
        (["clip"], ["clip"]),
        (["multi-view"], ["multi-view"]),
    ],
)
def test_command(arguments: list[str], stages: list[str], tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        multi_view, "make_multi_view", lambda *folders: calls.append(("multi-view", *folders))
    )
    monkeypatch.setattr(clip, "make_clip", lambda *folders: calls.append(("clip", *folders)))
    monkeypatch.setattr(prior, "make_prior", lambda *folders: calls.append(("prior", *folders)))
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments, "--work", "w", "--output", str(tmp_path)])
    judge = tmp_path / "shapes-clip"
    judge.mkdir()
    (judge / "open_clip_model.safetensors").touch()
    command.main()
    single, rings = tmp_path / "shapes-prior", tmp_path / "shapes-multi-view"
    folders = {
        "clip": (Path("w"), judge),
        "prior": (Path("w"), single, judge),
        "multi-view": (Path("w"), rings, single, judge),
    }
    assert calls == [(stage, *folders[stage]) for stage in stages]


def test_the_prior_needs_a_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prior, "make_prior", lambda *folders: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["recipe", "prior", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert f"python -m corpora.shapes.recipe clip --output {tmp_path}" in capsys.readouterr().err
