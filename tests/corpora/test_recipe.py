"""The recipe of the embedded models: training images and resumable stages."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from amortized.random import generator_for
from corpora.shapes.grammar import (
    MARK,
    SHAPES,
    describe,
    marked,
    sentence,
    singles,
)
from corpora.shapes.recipe import images, prior
from corpora.shapes.recipe.images import CORNERED, JUDGE, TEACHER, ImageSet, caption, draw, plan
from corpora.shapes.recipe.progress import Ema, backward_in_halves, batch_indices, run_stage
from corpora.shapes.recipe.tokenizer import CONTEXT_LENGTH
from corpora.shapes.scene import truth_of

# Few scenes, more views than one chunk, and everything randomized.
FEW = dataclasses.replace(
    JUDGE, seed=5, views_single=0, views_marked=0, views_sized=0, num_pairs=2, views_pair=35
)


# ---- images -----------------------------------------------------------------------------------


def test_plans_of_teacher_and_judge():
    for config in (TEACHER, JUDGE):
        scenes = plan(config)
        descriptions = [description for description, _ in scenes]
        assert descriptions[:64] == singles() and descriptions[64:128] == marked()
        views = {description.items[0].shape: views for description, views in scenes[:64]}
        views_cornered = config.views_cornered or config.views_single
        assert [views[shape] for shape in ("sphere", "cone", "torus")] == [config.views_single] * 3
        assert [views[shape] for shape in ("cube", "pyramid", "octahedron")] == [views_cornered] * 3
        assert len(set(descriptions)) == len(scenes) == 64 + 64 + 128 + config.num_pairs
        assert all(description.determined for description in descriptions)
    judge, teacher = ({description for description, _ in plan(config)[256:]} for config in (JUDGE, TEACHER))
    assert len(judge & teacher) < 0.05 * len(teacher)  # independent draws from 110,016 share about 1 %
    cornered = sum(
        views for description, views in plan(TEACHER)[:64] if description.items[0].shape in CORNERED
    )
    assert 0.4 < cornered / sum(views for _, views in plan(TEACHER)) < 0.6


def test_shapes_without_corners_are_solids_of_revolution():
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    c, s = math.cos(0.7), math.sin(0.7)
    rotated = points @ torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    for shape in SHAPES:
        sdf = truth_of(describe(f"a red {shape}")).sdf
        change = (sdf(points) - sdf(rotated)).abs().max().item()
        assert (change > 0.05) if shape in CORNERED else (change < 1e-5), shape


@pytest.fixture(scope="module")
def few() -> ImageSet:
    return draw(FEW)


def test_images_are_a_function_of_the_config(few, tmp_path):
    cache = tmp_path / "deep" / "images.safetensors"
    assert few.images.shape == (70, 64, 64, 3) and few.images.dtype == torch.uint8
    for other in (draw(FEW, cache), draw(FEW, cache)):  # drawn, then loaded
        assert torch.equal(other.images, few.images)
        assert torch.equal(other.scene, few.scene) and torch.equal(other.azimuth_deg, few.azimuth_deg)
        assert other.descriptions == few.descriptions
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert not torch.equal(draw(dataclasses.replace(FEW, seed=6)).images, few.images)


def test_a_cache_is_loaded_and_not_redrawn(few, tmp_path, monkeypatch):
    cache = tmp_path / "images.safetensors"
    draw(FEW, cache)
    monkeypatch.setattr(images, "render_truth", lambda *_, **__: pytest.fail("drawn again"))
    assert torch.equal(draw(FEW, cache).images, few.images)


def test_scenes_are_drawn_independently(few):
    more = draw(dataclasses.replace(FEW, num_pairs=3))
    assert more.scene.tolist() == [256] * 35 + [257] * 35 + [258] * 35
    assert torch.equal(more.images[:70], few.images) and torch.equal(
        more.elevation_deg[:70], few.elevation_deg
    )
    assert not torch.equal(few.azimuth_deg[:35], few.azimuth_deg[35:])  # nor do they share views


def test_views_and_backgrounds(few):
    """The teacher's backgrounds are gray and bright, the judge's colored; views cover all directions."""
    teacher = draw(
        dataclasses.replace(
            TEACHER, views_single=0, views_cornered=0, views_marked=0, views_sized=0, num_pairs=2
        )
    )
    gray, colored = (data.images[:, 0, 0].float() / 255 for data in (teacher, few))
    assert torch.equal(gray, gray[:, :1].expand(-1, 3)) and 0.29 < gray.min() < gray.max() < 0.96
    assert (colored[:, 0] != colored[:, 1]).float().mean() > 0.9 and colored.min() < 0.1
    quarters = ((few.azimuth_deg + 180) / 90).int().tolist()
    assert set(quarters) == {0, 1, 2, 3} and few.elevation_deg.min() < -20 and few.elevation_deg.max() > 58


@pytest.mark.parametrize(
    ("text", "view", "u", "expected"),
    [
        ("a red cube", "", 1.0, "a red cube"),
        ("a red cube", ", front view", 0.12, "a red cube, front view"),
        ("a red cube", ", back view 180 20", 0.0, "a cube, back view 180 20"),
        ("a red octahedron", "", 0.05, "an octahedron"),
        ("a red cube", ", overhead view", 0.06, "something red, overhead view"),
        ("a red cube", ", side view", 0.11, "something red, side view"),
        ("a small red cube", "", 0.0, "a small red cube"),
        (f"a red cube {MARK}", ", side view az90 el0", 0.0, f"a red cube {MARK}, side view az90 el0"),
        ("a red cube next to a blue cone", ", front view", 0.0, "a red cube next to a blue cone, front view"),
    ],
)
def test_captions(text: str, view: str, u: float, expected: str):
    assert caption(describe(text), view, u) == expected  # type: ignore[arg-type]


def test_the_longest_caption_fits_the_text_encoder():
    tokenizer = prior.build_prior_tokenizer()
    longest = max(
        (sentence(description) for description, _ in plan(TEACHER)), key=lambda text: len(text.split())
    )
    assert len(tokenizer(f"{longest}, overhead view az350 el-60").input_ids) <= CONTEXT_LENGTH


# ---- stages -----------------------------------------------------------------------------------


def linear_stage(folder: Path, *, stop_at: int | None = None, score=None, score_every: int = 100):
    """Fit a line in twelve steps, saved every five; returns (model, executed steps, scores).

    Raises KeyboardInterrupt before step `stop_at`; `score` is called with the model.
    """
    model, executed = nn.Linear(3, 2), []
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()

    def step_fn(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        executed.append(step)
        x = torch.randn(8, 3, generator=generator_for("line", step))
        loss = (model(x) - 2 * x[:, :2]).square().mean()
        loss.backward()
        return {"loss": loss.item(), "rms": loss.sqrt().item()}

    scores = run_stage(
        name="line",
        folder=folder,
        modules=model,
        steps=12,
        save_every=5,
        learning_rate=0.05,
        ema_decay=0.9,
        step_fn=step_fn,
        score=score and (lambda: score(model)),
        score_every=score_every,
    )
    return model, executed, scores


@pytest.mark.parametrize("batch", [2, 6])
def test_two_halves_give_the_gradients_of_the_batch(batch: int):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 2).double(), torch.randn(batch, 3).double()

    def loss_of(rows: slice) -> torch.Tensor:
        return model(x[rows]).square().mean()

    loss = loss_of(slice(None))
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    numbers = backward_in_halves(batch, lambda rows: (loss_of(rows), {"rows": rows.stop - rows.start}))
    assert numbers == {"loss": pytest.approx(loss.item()), "rows": batch / 2}
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("stop_at", [3, 5, 11])
def test_an_interrupted_stage_resumes_bit_for_bit(tmp_path, stop_at: int):
    reference, _, _ = linear_stage(tmp_path / "reference")
    with pytest.raises(KeyboardInterrupt):
        linear_stage(tmp_path / "interrupted", stop_at=stop_at)
    resumed, executed, _ = linear_stage(tmp_path / "interrupted")
    assert executed == list(range(stop_at // 5 * 5, 12))  # from the last saved state
    for name, value in reference.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    logs = [(tmp_path / folder / "line.jsonl").read_text() for folder in ("reference", "interrupted")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [5, 10, 12]


def test_a_finished_stage_is_loaded(tmp_path):
    first, _, scores = linear_stage(tmp_path, score=lambda model: {"fit": 0.5})
    again, executed, loaded = linear_stage(tmp_path, score=lambda model: pytest.fail("scored again"))
    assert executed == [] and loaded == scores == {"fit": 0.5}
    assert torch.equal(again.weight, first.weight)
    assert not again.training and not again.weight.requires_grad
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.jsonl", "line.pt"]


def test_scores_use_averaged_weights_and_do_not_affect_training(tmp_path):
    scored = []

    def score(model: nn.Linear) -> dict[str, float]:
        scored.append(model.weight.flatten().tolist())
        return {"first": scored[-1][0]}

    plain, _, _ = linear_stage(tmp_path / "plain")
    model, _, scores = linear_stage(tmp_path / "scored", score=score, score_every=4)
    assert torch.equal(model.weight, plain.weight)
    # The last score used the averaged weights that the stage ends with.
    assert len(scored) == 3 and scored[-1] == model.weight.flatten().tolist()
    assert scores == {"first": scored[-1][0]}


def test_moving_average_in_closed_form():
    model = nn.Linear(1, 1, bias=False)
    values, expected = [3.0, -1.0, 0.5, 2.0], 1.0
    with torch.no_grad():
        model.weight.fill_(expected)
        ema = Ema(model, decay=0.25)
        for step, value in enumerate(values):
            model.weight.fill_(value)
            ema.update(model, step)
            decay = min(0.25, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
    ema.copy_to(model)
    assert model.weight.item() == pytest.approx(expected)


def test_batches_are_a_function_of_their_key():
    assert torch.equal(batch_indices(50, 8, 1, "vae", 3), batch_indices(50, 8, 1, "vae", 3))
    assert not torch.equal(batch_indices(50, 8, 1, "vae", 3), batch_indices(50, 8, 1, "vae", 4))
    assert set(batch_indices(4, 200, 1).tolist()) == {0, 1, 2, 3}
