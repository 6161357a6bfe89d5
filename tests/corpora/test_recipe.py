"""The recipe of the embedded models: tokenizer, training images and resumable stages."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from amortized.cameras import VIEW_NAMES
from amortized.conditioning import ViewTextConfig
from amortized.random import generator_for
from corpora import open_corpus
from corpora.shapes.grammar import (
    COLORS,
    MARK,
    NUM_PAIRS,
    RELATIONS,
    SHAPES,
    SIZES,
    describe,
    marked,
    pair,
    sentence,
    singles,
    under_specified,
)
from corpora.shapes.recipe import images, prior
from corpora.shapes.recipe.images import CORNERED, JUDGE, TEACHER, ImageSet, caption, draw, plan
from corpora.shapes.recipe.progress import Ema, backward_in_halves, batch_indices, run_stage
from corpora.shapes.recipe.tokenizer import BOS, CONTEXT_LENGTH, EOS, build_tokenizer, words
from corpora.shapes.scene import truth_of

SUFFIXES = ViewTextConfig().suffixes
# Few scenes, more views than one chunk, and everything randomized.
FEW = dataclasses.replace(
    JUDGE, seed=5, views_single=0, views_marked=0, views_sized=0, num_pairs=2, views_pair=35
)


# ---- tokenizer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def tokens(tokenizer, text: str) -> list[str]:
    first, *inner, last = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert (first, last) == (BOS, EOS)
    return inner


def test_words_cover_the_grammar():
    phrases = [*SHAPES, *COLORS, *SIZES, *RELATIONS, MARK, *VIEW_NAMES, "a an the something view"]
    assert set(words()) >= set(" ".join(phrases).split())
    assert len(words()) == len(set(words()))


def test_every_word_is_one_token(tokenizer):
    assert [tokens(tokenizer, word) for word in words()] == [[f"{word}</w>"] for word in words()]
    assert tokens(tokenizer, " ".join(words()[:20])) == [f"{word}</w>" for word in words()[:20]]


def test_directions_are_one_token_each(tmp_path):
    words = ["az330", "az30", "el-10", "el10"]
    build_tokenizer(words).save_pretrained(tmp_path)
    for tokenizer in (build_tokenizer(words), CLIPTokenizer.from_pretrained(tmp_path)):
        pieces = tokens(tokenizer, "a cube, front view az30 el-10")
        assert pieces == [*(f"{word}</w>" for word in ["a", "cube", ",", "front", "view"]), "az30", "el-10"]
        assert tokenizer.eos_token_id == len(tokenizer) - 1  # EOS still has the largest id
        assert "az330" not in tokens(tokenizer, "baz330")


def test_direction_embeddings_start_from_fourier_features():
    tokenizer = prior.build_prior_tokenizer()
    text_encoder = prior.build_text_encoder(tokenizer)
    prior.init_direction_embeddings(text_encoder, tokenizer)
    ids = tokenizer.convert_tokens_to_ids([f"az{azimuth}" for azimuth in range(0, 360, 10)])
    rows = text_encoder.get_input_embeddings().weight[ids].detach().double()
    # Rows are linear in the 17 Fourier features up to the eighth harmonic: they have rank 17, and a rotation
    # by 10 degrees is a linear map.
    assert torch.linalg.matrix_rank(rows, rtol=1e-4) == 17
    rotation = torch.linalg.lstsq(rows, rows.roll(-1, 0), driver="gelsd").solution
    torch.testing.assert_close(rows @ rotation, rows.roll(-1, 0), rtol=1e-4, atol=1e-5)
    # The other words keep their random embeddings.
    assert text_encoder.get_input_embeddings().weight[: min(ids)].std().item() == pytest.approx(
        0.02, rel=0.05
    )


def test_sentences_tokenize_into_words_and_commas(tokenizer):
    every = [*singles(), *marked(), *under_specified(), *map(pair, range(0, NUM_PAIRS, 1999))]
    for description, suffix in zip(every, itertools.cycle(SUFFIXES), strict=False):
        text = sentence(description) + suffix
        assert tokens(tokenizer, text) == [f"{word}</w>" for word in text.replace(",", " ,").split()]


def test_unknown_words_split_into_known_pieces(tokenizer):
    assert tokens(tokenizer, "zzz") == ["z", "z", "z</w>"]
    for text in ("a corgi, 35 mm", "don't!", "~ `x` {y}"):
        pieces = tokens(tokenizer, text)
        assert "".join(pieces).replace("</w>", "") == text.replace(" ", "")
        assert EOS not in pieces


def test_eos_is_the_last_id_and_the_padding(tokenizer):
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == max(tokenizer.get_vocab().values())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    batch = tokenizer(["a red cube", ""], **settings).input_ids
    assert batch.shape == (2, CONTEXT_LENGTH)
    assert (batch[0, 4:] == tokenizer.eos_token_id).all() and (batch[1, 1:] == tokenizer.eos_token_id).all()
    # Pooling at the largest id and at the first EOS pick the same position.
    assert batch.argmax(-1).tolist() == [4, 1]


def test_no_sentence_is_truncated(tokenizer):
    longest = max((sentence(pair(i)) for i in range(NUM_PAIRS)), key=lambda text: len(text.split()))
    for text in (longest, max((sentence(d) for d in marked()), key=lambda text: len(text.split()))):
        for suffix in SUFFIXES:
            assert len(tokenizer(text + suffix).input_ids) <= CONTEXT_LENGTH


def test_a_loaded_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a small red cube next to an orange torus, back view", "something pink", "", "zebra's 1,5"]
    settings = {"padding": "max_length", "truncation": True}
    assert loaded(texts, **settings).input_ids == tokenizer(texts, **settings).input_ids
    assert loaded.model_max_length == CONTEXT_LENGTH


def test_the_tokenizer_has_a_token_for_every_word_of_the_corpora(tokenizer):
    vocabulary = {f"{word}</w>" for word in words()}
    for name in ("shapes16", "shapes-comp"):
        corpus = open_corpus(name)
        texts = [corpus[index].text for index in range(len(corpus))]
        assert {piece for text in texts for piece in tokens(tokenizer, text)} <= vocabulary


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
