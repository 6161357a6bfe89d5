"""Previews: pictures named by step and prompt, captioned, and in TensorBoard with rates and prompts."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amortized.media import CAPTION_HEIGHT, caption
from amortized.names import slug
from amortized.parallel import OptimizerConfig
from amortized.training import measure
from tests.training.toy import TEXTS, learning, log_lines, make_trainer, weights_of


@pytest.mark.parametrize("count", [1, 3])
def test_previews_are_named_by_step_and_prompt_and_linked_once(tmp_path, capfd, count):
    monitoring = {"preview_every": 2, "preview_prompts": count}
    make_trainer(tmp_path, steps=4, monitoring=monitoring).train()
    order = [f"{slug(text)}.png" for text in TEXTS]
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    strips = [name for name in names if name.count("-")]
    assert len(strips) == 2 * count and all(name[12:] in order for name in strips)
    overviews = ["step_000002.png", "step_000004.png"]
    assert [name for name in names if name not in strips] == (overviews if count > 1 else [])
    shown = capfd.readouterr().out
    linked = overviews if count > 1 else strips
    assert [line for line in shown.splitlines() if line.startswith("preview: ")] == [
        f"preview: {tmp_path}/previews/{name}" for name in linked
    ]
    assert shown.count(f"previews every 2 steps in {tmp_path}/previews; curves: tensorboard --logdir") == 1


def test_tensorboard_has_pictures_prompts_and_learning_rates(tmp_path):
    """Read by TensorBoard itself; steps that ran again hide those of the process before."""
    optimizer = OptimizerConfig(learning_rate=1e-2, encoding_learning_rate=2e-2, warmup_steps=4)
    changes = {"optimizer": optimizer, "guidance": learning("adapter"), "monitoring": {"preview_every": 2}}
    make_trainer(tmp_path, steps=2, **changes).train(quiet=True)
    trainer = make_trainer(tmp_path, steps=4, **changes)
    trainer.train(quiet=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()
    assert tags["images"] == ["preview"] and [image.step for image in board.Images("preview")] == [2, 4]
    picture = np.array(Image.open(io.BytesIO(board.Images("preview")[-1].encoded_image_string)))
    assert np.array_equal(picture, np.array(Image.open(tmp_path / "previews/step_000004.png")))
    prompts = board.Tensors("prompts/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert sorted(prompts.split("`")[1::2]) == sorted(TEXTS)
    lines = log_lines(tmp_path)
    rates = {"generator": 1e-2, "grid": 2e-2, "learned": 1e-2}
    for name, rate in rates.items():
        points = board.Scalars(f"learning_rate/{name}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        for point, line in zip(points, lines, strict=True):
            expected = rate * min(1, point.step / 4)
            assert point.value == pytest.approx(expected) == pytest.approx(line[f"learning_rate/{name}"])
    losses = [point.value for point in board.Scalars("loss")]
    assert losses == pytest.approx([line["loss"] for line in lines])


@given(text=st.text(st.characters(codec=None), max_size=2000), width=st.integers(40, 300))
def test_a_caption_accepts_any_text(text, width):
    band = caption(text, width)
    assert band.shape == (CAPTION_HEIGHT, width, 3) and 0 <= band.min() and band.max() == 1


def test_a_caption_shows_its_text_within_its_margins():
    short, long = caption("a red cube", 256), caption("a red cube " * 90, 256)
    assert (short < 0.5).any() and not torch.equal(short, caption("a red cone", 256))
    assert (short[CAPTION_HEIGHT // 2 :] == 1).all()  # one line
    assert (long[CAPTION_HEIGHT // 2 :] < 0.5).any() and (long[:, [0, 1, -2, -1]] == 1).all()
    assert torch.equal(caption("", 64), torch.ones(CAPTION_HEIGHT, 64, 3))


def test_a_forecast_is_logged_after_two_steps(tmp_path):
    make_trainer(tmp_path, steps=4).train(quiet=True)
    notes = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (note,) = [note for note in notes if note["note"].startswith("a step takes ")]
    assert note["step"] == 1 and note["note"].endswith("for the remaining 2 steps")


def test_measuring_writes_nothing_and_takes_real_steps(tmp_path):
    trainer, other = make_trainer(tmp_path / "run", steps=50), make_trainer(tmp_path / "other", steps=50)
    report = measure(trainer)
    assert "# time: a step takes " in report and "for the remaining 48 steps" in report
    assert not list((tmp_path / "run").iterdir())
    for step in range(2):
        assert all(map(math.isfinite, other.step(step).values.tolist()))
    other.prefetcher.close()
    assert all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(trainer).items())
