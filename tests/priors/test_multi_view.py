"""MVDream: joint attention over views, and the camera input."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from amortized.cameras import cameras_at, orbit
from amortized.priors import PriorConfig, load_prior, load_stable_diffusion
from amortized.priors.multi_view import camera_vectors
from amortized.types import Cameras, TextCondition
from tests.priors.multi_view_inputs import V, denoiser_inputs
from tests.tiny_sd import make_tiny_sd


@pytest.fixture(scope="module")
def multi_view(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("multi-view"), num_views=V)


@pytest.fixture(scope="module")
def prior(multi_view):
    return load_stable_diffusion(multi_view, dtype=torch.float64)


def test_attention_is_joint_over_views_and_separate_over_objects(prior):
    assert prior.views_per_group == V
    latents_noisy, times, text, cameras = denoiser_inputs(2)
    before = prior.predict_noise(latents_noisy, times, text, cameras)
    changed = latents_noisy.clone()
    changed[1] += 1  # a view of the first object
    change = (prior.predict_noise(changed, times, text, cameras) - before).abs().flatten(1).amax(1)
    assert (change[:V] > 1e-6).all() and (change[V:] == 0).all()


def test_a_batch_of_objects_equals_them_one_by_one(prior):
    latents_noisy, times, text, cameras = denoiser_inputs(3)
    batch = prior.predict_noise(latents_noisy, times, text, cameras)
    for p in range(3):
        rows = slice(V * p, V * p + V)
        one_text = TextCondition(**{name: value[rows] for name, value in vars(text).items()})
        ring = Cameras(**{name: value[p : p + 1] for name, value in vars(cameras).items()})
        one = prior.predict_noise(latents_noisy[rows], times[rows], one_text, ring)
        torch.testing.assert_close(one, batch[rows], rtol=0, atol=1e-10)


def test_joint_attention_is_attention_over_all_tokens(prior):
    """Against softmax(q k^T) v over the concatenated views of one object."""
    attention = next(m for name, m in prior.unet.named_modules() if name.endswith("attn1"))
    x = torch.randn(V, 5, attention.to_q.in_features, dtype=torch.float64)
    got = attention(x)
    tokens = x.reshape(1, V * 5, -1)
    q, k, v = (
        part(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    expected = attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2)).view_as(x)
    torch.testing.assert_close(got, expected)


def test_cameras_change_the_prediction_and_are_required(prior):
    latents_noisy, times, text, cameras = denoiser_inputs(1)
    turned = cameras_at(
        azimuth_deg=cameras.azimuth_deg + 40,
        elevation_deg=cameras.elevation_deg,
        distance=cameras.distance,
        fovy_deg=cameras.fovy_deg,
    )
    first, second = (prior.predict_noise(latents_noisy, times, text, ring) for ring in (cameras, turned))
    assert (first - second).abs().max() > 1e-6
    with pytest.raises(ValueError, match="a multi-view prior needs the cameras of its views"):
        prior.predict_noise(latents_noisy, times, text)


def test_camera_vectors_follow_mvdreams_training():
    """Blender axes: MVDream's azimuth 0 is at -y, and its objects face +x, its azimuth 90."""
    cameras = orbit(1, V, elevation_deg=30, distance=2.5, fovy_deg=40)
    vectors = camera_vectors(cameras).view(V, 4, 4)
    for v, azimuth in enumerate((90, 180, 270, 360)):
        a, e = math.radians(azimuth), math.radians(30)
        position = torch.tensor([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
        forward = -position
        right = torch.linalg.cross(forward, torch.tensor([0.0, 0, 1]))
        right = right / right.norm()
        expected = torch.eye(4)
        expected[:3, 0], expected[:3, 1] = right, torch.linalg.cross(right, forward)
        expected[:3, 2], expected[:3, 3] = -forward, position
        torch.testing.assert_close(vectors[v], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        cameras.c2w[..., :3, 3].norm(dim=-1), torch.full((1, V), 2.5)
    )  # the input is not modified


def test_a_config_may_require_a_number_of_views(multi_view, tmp_path):
    single = make_tiny_sd(tmp_path)
    assert load_prior(PriorConfig(path=str(multi_view), num_views=V)).views_per_group == V
    with pytest.raises(ValueError, match="prior.num_views is 4, but '.*' denoises 1 jointly"):
        load_prior(PriorConfig(path=str(single), num_views=4))


@pytest.mark.parametrize("content", ["{}", "[4]", "4 views", '{"num_views": 1}', '{"num_views": "4"}'])
def test_an_invalid_views_file_is_refused(multi_view, tmp_path, content):
    copy = tmp_path / "copy"
    shutil.copytree(multi_view, copy)
    (copy / "multi_view.json").write_text(content)
    with pytest.raises(ValueError, match=r"multi_view.json.*num_views"):
        load_stable_diffusion(copy)


def test_a_camera_embedding_without_views_file_is_refused(multi_view, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(multi_view, copy)
    (copy / "multi_view.json").unlink()
    with pytest.raises(ValueError, match="camera of a multi-view prior, its folder needs multi_view.json"):
        load_stable_diffusion(copy)


def test_a_views_file_without_camera_embedding_is_refused(tmp_path):
    single = make_tiny_sd(tmp_path)
    (single / "multi_view.json").write_text('{"num_views": 4}')
    with pytest.raises(ValueError, match="its UNet has no camera embedding .* it is not an MVDream model"):
        load_stable_diffusion(single)
