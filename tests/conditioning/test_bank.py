"""The text bank encodes each distinct text once and returns the rows in order."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import cameras_at, orbit
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.conditioning.views import take_view_rows
from amortized.types import TextCondition


class RecordingEncoder:
    """Encodes a text as its character codes and records every call."""

    max_length = 40

    def __init__(self, batch_size: int = 1) -> None:
        self.calls: list[list[str]] = []
        self.batch_size = batch_size

    def is_overlong(self, text: str) -> bool:
        return len(text) > self.max_length

    def num_pieces(self, word: str) -> int:
        return 1

    def encode(self, texts) -> TextCondition:
        self.calls.append(list(texts))
        tokens = torch.zeros(len(texts), 40, 1)
        for row, text in enumerate(texts):
            tokens[row, : len(text), 0] = torch.tensor([float(ord(c)) for c in text] or [0.0])[: len(text)]
        return TextCondition(pooled=tokens[:, :, 0].clone(), tokens=tokens, mask=tokens[..., 0] > 0)


def decode(text: TextCondition) -> list[str]:
    """Invert RecordingEncoder."""
    return ["".join(chr(int(code)) for code in row if code) for row in text.pooled]


def test_generator_text_keeps_order_and_repeats():
    bank = TextBank(RecordingEncoder())
    assert decode(bank.generator_text(["b", "a", "b"])) == ["b", "a", "b"]
    assert bank.prior_encoder.encoder.calls == [["b"], ["a"]]
    bank.generator_text(["a", "c"])
    assert bank.prior_encoder.encoder.calls[2:] == [["c"]]


def test_each_text_is_encoded_once():
    bank = TextBank(RecordingEncoder())
    cameras = orbit(3, 4, elevation_deg=0, distance=1, fovy_deg=40)
    for _ in range(2):
        bank.generator_text(["a", "b", "a", "c"])
        bank.prior_text(["b", "c", "a"], cameras)
    encoded = [text for call in bank.prior_encoder.encoder.calls for text in call]
    assert len(encoded) == len(set(encoded)) == len(bank) == 3 * 4 + 1  # no camera looks from above


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_views_are_prompt_major(num_prompts, perp_neg):
    bank = TextBank(RecordingEncoder(), ViewTextConfig(negative_prompt="ugly", perp_neg=perp_neg))
    prompts = ["cone", "cube", "ball"][:num_prompts]
    cameras = orbit(num_prompts, 4, elevation_deg=0, distance=1, fovy_deg=40)  # 0, 90, 180, -90 deg
    view = bank.prior_text(prompts, cameras)
    names = ["front", "side", "back", "side"]
    assert decode(view.positive) == [f"{prompt}, {name} view" for prompt in prompts for name in names]
    assert decode(view.unconditional) == ["ugly"] * (4 * num_prompts)
    assert len(view.negatives) == (2 if perp_neg else 0)
    if perp_neg:
        wrong = ["front", "side", "side", "side"]
        assert decode(view.negatives[0]) == [f"{prompt}, {name} view" for prompt in prompts for name in wrong]


@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_directions_are_appended_in_degrees(num_prompts, num_views):
    bank = TextBank(RecordingEncoder(), ViewTextConfig(negative_prompt="ugly", direction_step_deg=10))
    azimuth = torch.tensor([[4.0, 94.9, 178.0, -34.0]]).expand(num_prompts, 4)[:, :num_views]
    elevation = torch.tensor([[-3.0], [64.9], [-26.0]])[:num_prompts].expand_as(azimuth)
    ones = torch.ones_like(azimuth)
    cameras = cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=ones, fovy_deg=ones)
    view = bank.prior_text(["cone", "cube", "ball"][:num_prompts], cameras)
    names = [
        ["front 0", "side 90", "back 180", "front 330"],
        ["overhead 0", "overhead 90", "overhead 180", "overhead 330"],
        ["front 0", "side 90", "back 180", "front 330"],
    ]
    expected = [
        f"{prompt}, {name.split()[0]} view az{name.split()[1]} el{height}"
        for prompt, row, height in zip(["cone", "cube", "ball"], names, ["0", "60", "-30"], strict=True)
        for name in row[:num_views]
    ]
    assert decode(view.positive) == expected[: num_prompts * num_views]
    assert decode(view.unconditional) == ["ugly"] * (num_prompts * num_views)
    assert view.negatives == () and view.negative_weights.shape == (0, num_prompts * num_views)
    assert len(bank) == 2  # the negative prompt and the empty text: numbered directions are not cached


def test_equal_suffixes_are_encoded_once():
    bank = TextBank(RecordingEncoder(), ViewTextConfig(suffixes=("", "", "", "")))
    bank.prior_text(["a"], orbit(1, 4, elevation_deg=0, distance=1, fovy_deg=40))
    assert len(bank) == 2  # the prompt and the empty negative prompt


def test_a_cached_row_owns_its_memory():
    bank = TextBank(RecordingEncoder())
    bank.generator_text(["a", "b"])
    for row in bank.generator_encoder._cache.values():
        assert row.tokens.untyped_storage().nbytes() == row.tokens.nbytes


def test_a_row_does_not_depend_on_its_batch(encoder):
    texts = ["a cube", "a cone", "a red cube on top of a blue cone"]
    together, alone = TextBank(encoder), TextBank(encoder)
    together.generator_text(texts)
    for text in texts:
        alone.generator_text([text])
    got, expected = together.generator_text(texts[::-1]), alone.generator_text(texts[::-1])
    for part in ("pooled", "tokens", "mask"):
        assert torch.equal(getattr(got, part), getattr(expected, part))
    for row, text in enumerate(texts[::-1]):
        one = encoder.encode([text])
        assert torch.equal(got.tokens[row], one.tokens[0]) and torch.equal(got.pooled[row], one.pooled[0])
        assert torch.equal(got.mask[row], one.mask[0])


@pytest.mark.parametrize("settings", [{}, {"perp_neg": True}, {"direction_step_deg": 10}], ids=str)
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_further_negatives_follow_those_of_perp_neg(num_prompts, settings):
    config = ViewTextConfig(
        negative_prompt="ugly", negatives=("blurred", "gray"), negative_weights=(-0.5, -0.25), **settings
    )
    cameras = orbit(num_prompts, 4, elevation_deg=0, distance=1, fovy_deg=40)
    view = TextBank(RecordingEncoder(), config).prior_text(["cone", "cube", "ball"][:num_prompts], cameras)
    num = 4 * num_prompts
    assert (
        config.num_negatives == len(view.negatives) == len(view.negative_weights) == 2 + 2 * config.perp_neg
    )
    assert [decode(text) for text in view.negatives[-2:]] == [["blurred"] * num, ["gray"] * num]
    assert view.negative_weights[-2:].tolist() == [[-0.5] * num, [-0.25] * num]
    assert decode(view.unconditional) == ["ugly"] * num and decode(view.empty) == [""] * num


def test_take_view_rows_selects_rows_of_every_condition():
    config = ViewTextConfig(negatives=("blurred",), negative_weights=(-1.0,), perp_neg=True)
    cameras = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
    view = TextBank(RecordingEncoder(), config).prior_text(["cone", "cube"], cameras)
    subset = take_view_rows(view, torch.tensor([5, 0]))
    assert decode(subset.positive) == [decode(view.positive)[5], decode(view.positive)[0]]
    for taken, full in zip(subset.negatives, view.negatives, strict=True):
        assert decode(taken) == [decode(full)[5], decode(full)[0]]
    assert torch.equal(subset.negative_weights, view.negative_weights[:, [5, 0]])
    assert len(subset.empty.pooled) == len(subset.unconditional.pooled) == 2


def test_a_step_encodes_new_texts_in_full_batches():
    """Every call has the same number of texts, so a row does not depend on the others in its batch."""
    config = ViewTextConfig(negative_prompt="bad", negatives=("ugly",), negative_weights=(-1.0,))
    batched, single = RecordingEncoder(batch_size=4), RecordingEncoder()
    cameras = orbit(2, 2, elevation_deg=0.0, distance=1.0, fovy_deg=40.0)
    bank, other = TextBank(batched, config), TextBank(single, config)
    for texts in (["a", "b"], ["b", "c"]):
        generator_text, prior_text = bank.for_step(texts, cameras)
        expected = other.prior_text(texts, cameras)
        assert torch.equal(generator_text.tokens, other.generator_text(texts).tokens)
        assert torch.equal(prior_text.positive.tokens, expected.positive.tokens)
        assert torch.equal(prior_text.negatives[0].tokens, expected.negatives[0].tokens)
    assert {len(call) for call in batched.calls} == {4}
    encoded = [text for call in batched.calls for text in call]
    # 3 constants, 2 prompts with 2 views, then 1 prompt with 2 views: 9 and 3 texts, in 3 and 1 batches.
    assert len(batched.calls) == 4 and sorted(set(encoded)) == sorted(set(sum(single.calls, [])))
    for text in set(encoded) - {""}:
        assert encoded.count(text) == 1
