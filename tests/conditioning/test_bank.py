"""The bank encodes each distinct sentence once and mixes nothing up."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import cameras_at, orbit
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.conditioning.views import take_view_rows
from amortized.types import TextCondition


class RecordingEncoder:
    """Encodes a sentence as its letters' codes, and remembers every call."""

    def __init__(self, batch_size: int = 1) -> None:
        self.calls: list[list[str]] = []
        self.batch_size = batch_size

    def encode(self, texts) -> TextCondition:
        self.calls.append(list(texts))
        tokens = torch.zeros(len(texts), 40, 1)
        for row, text in enumerate(texts):
            tokens[row, : len(text), 0] = torch.tensor([float(ord(c)) for c in text] or [0.0])[: len(text)]
        return TextCondition(pooled=tokens[:, :, 0].clone(), tokens=tokens, mask=tokens[..., 0] > 0)


def read(text: TextCondition) -> list[str]:
    return ["".join(chr(int(code)) for code in row if code) for row in text.pooled]


def test_get_returns_the_sentences_in_order_repeats_included():
    bank = TextBank(RecordingEncoder())
    assert read(bank.get(["b", "a", "b"])) == ["b", "a", "b"]
    assert bank.told.encoder.calls == [["b"], ["a"]]
    bank.get(["a", "c"])
    assert bank.told.encoder.calls[2:] == [["c"]]


def test_each_sentence_is_encoded_once():
    bank = TextBank(RecordingEncoder())
    cameras = orbit(3, 4, elevation_deg=0, distance=1, fovy_deg=40)
    for _ in range(2):
        bank.get(["a", "b", "a", "c"])
        bank.views(["b", "c", "a"], cameras)
    sent = [text for call in bank.told.encoder.calls for text in call]
    assert len(sent) == len(set(sent)) == len(bank) == 3 * 4 + 1  # no camera looks from above


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_views_are_prompt_major(num_prompts, perp_neg):
    bank = TextBank(RecordingEncoder(), ViewTextConfig(negative_prompt="ugly", perp_neg=perp_neg))
    prompts = ["cone", "cube", "ball"][:num_prompts]
    cameras = orbit(num_prompts, 4, elevation_deg=0, distance=1, fovy_deg=40)  # 0, 90, 180, -90 deg
    view = bank.views(prompts, cameras)
    names = ["front", "side", "back", "side"]
    assert read(view.positive) == [f"{prompt}, {name} view" for prompt in prompts for name in names]
    assert read(view.unconditional) == ["ugly"] * (4 * num_prompts)
    assert len(view.negatives) == (2 if perp_neg else 0)
    if perp_neg:
        wrong = ["front", "side", "side", "side"]
        assert read(view.negatives[0]) == [f"{prompt}, {name} view" for prompt in prompts for name in wrong]


@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_directions_are_told_in_degrees(num_prompts, num_views):
    bank = TextBank(RecordingEncoder(), ViewTextConfig(negative_prompt="ugly", direction_step_deg=10))
    azimuth = torch.tensor([[4.0, 94.9, 178.0, -34.0]]).expand(num_prompts, 4)[:, :num_views]
    elevation = torch.tensor([[-3.0], [64.9], [-26.0]])[:num_prompts].expand_as(azimuth)
    ones = torch.ones_like(azimuth)
    cameras = cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=ones, fovy_deg=ones)
    view = bank.views(["cone", "cube", "ball"][:num_prompts], cameras)
    names = [["front 0", "side 90", "back 180", "front 330"], ["overhead 0", "overhead 90", "overhead 180",
             "overhead 330"], ["front 0", "side 90", "back 180", "front 330"]]  # fmt: skip
    expected = [
        f"{prompt}, {name.split()[0]} view az{name.split()[1]} el{height}"
        for prompt, row, height in zip(["cone", "cube", "ball"], names, ["0", "60", "-30"], strict=True)
        for name in row[:num_views]
    ]
    assert read(view.positive) == expected[: num_prompts * num_views]
    assert read(view.unconditional) == ["ugly"] * (num_prompts * num_views)
    assert view.negatives == () and view.negative_weights.shape == (0, num_prompts * num_views)
    assert len(bank) == 2  # the unconditional sentence and the empty one: directions are too many to keep


def test_suffixes_that_are_alike_are_encoded_once():
    bank = TextBank(RecordingEncoder(), ViewTextConfig(suffixes=("", "", "", "")))
    bank.views(["a"], orbit(1, 4, elevation_deg=0, distance=1, fovy_deg=40))
    assert len(bank) == 2  # the prompt and the empty negative prompt


def test_a_stored_row_does_not_keep_others_alive():
    bank = TextBank(RecordingEncoder())
    bank.get(["a", "b"])
    for row in bank.read._memory.values():
        assert row.tokens.untyped_storage().nbytes() == row.tokens.nbytes


def test_a_row_does_not_depend_on_what_was_encoded_with_it(encoder):
    sentences = ["a cube", "a cone", "a red cube on top of a blue cone"]
    together, alone = TextBank(encoder), TextBank(encoder)
    together.get(sentences)
    for sentence in sentences:
        alone.get([sentence])
    got, expected = together.get(sentences[::-1]), alone.get(sentences[::-1])
    for part in ("pooled", "tokens", "mask"):
        assert torch.equal(getattr(got, part), getattr(expected, part))
    for row, sentence in enumerate(sentences[::-1]):
        one = encoder.encode([sentence])
        assert torch.equal(got.tokens[row], one.tokens[0]) and torch.equal(got.pooled[row], one.pooled[0])
        assert torch.equal(got.mask[row], one.mask[0])


@pytest.mark.parametrize("settings", [{}, {"perp_neg": True}, {"direction_step_deg": 10}], ids=str)
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_any_number_of_negatives_follows_those_of_perp_neg(num_prompts, settings):
    config = ViewTextConfig(
        negative_prompt="ugly", negatives=("blurred", "grey"), negative_weights=(-0.5, -0.25), **settings
    )
    cameras = orbit(num_prompts, 4, elevation_deg=0, distance=1, fovy_deg=40)
    view = TextBank(RecordingEncoder(), config).views(["cone", "cube", "ball"][:num_prompts], cameras)
    num = 4 * num_prompts
    assert (
        config.num_negatives == len(view.negatives) == len(view.negative_weights) == 2 + 2 * config.perp_neg
    )
    assert [read(text) for text in view.negatives[-2:]] == [["blurred"] * num, ["grey"] * num]
    assert view.negative_weights[-2:].tolist() == [[-0.5] * num, [-0.25] * num]
    assert read(view.unconditional) == ["ugly"] * num and read(view.empty) == [""] * num


def test_rows_of_a_view_text_are_rows_of_its_parts():
    config = ViewTextConfig(negatives=("blurred",), negative_weights=(-1.0,), perp_neg=True)
    cameras = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
    view = TextBank(RecordingEncoder(), config).views(["cone", "cube"], cameras)
    some = take_view_rows(view, torch.tensor([5, 0]))
    assert read(some.positive) == [read(view.positive)[5], read(view.positive)[0]]
    for part, whole in zip(some.negatives, view.negatives, strict=True):
        assert read(part) == [read(whole)[5], read(whole)[0]]
    assert torch.equal(some.negative_weights, view.negative_weights[:, [5, 0]])
    assert len(some.empty.pooled) == len(some.unconditional.pooled) == 2


def test_a_step_encodes_what_is_new_in_full_batches():
    """And a batch's other sentences change no row: the encoder is always asked for equally many."""
    config = ViewTextConfig(negative_prompt="bad", negatives=("ugly",), negative_weights=(-1.0,))
    encoder, alone = RecordingEncoder(batch_size=4), RecordingEncoder()
    cameras = orbit(2, 2, elevation_deg=0.0, distance=1.0, fovy_deg=40.0)
    bank, other = TextBank(encoder, config), TextBank(alone, config)
    for texts in (["a", "b"], ["b", "c"]):
        read, told = bank.of_step(texts, cameras)
        assert torch.equal(read.tokens, other.get(texts).tokens)
        assert torch.equal(told.positive.tokens, other.views(texts, cameras).positive.tokens)
        assert torch.equal(told.negatives[0].tokens, other.views(texts, cameras).negatives[0].tokens)
    assert {len(call) for call in encoder.calls} == {4}
    words = [word for call in encoder.calls for word in call]
    # 3 constants, 2 prompts and their 2 views; then 1 prompt and its views: 9 and 3, in 3 and 1 batches.
    assert len(encoder.calls) == 4 and sorted(set(words)) == sorted(set(sum(alone.calls, [])))
    for word in set(words) - {""}:
        assert words.count(word) == 1
