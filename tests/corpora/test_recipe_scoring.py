"""Scores and model cards of the embedded models."""

import json
import re
from pathlib import Path

import torch

from corpora.shapes.grammar import MARK, Description, Item, describe, sentence
from corpora.shapes.recipe import card, clip, multi_view, prior, scoring
from corpora.shapes.recipe.images import JUDGE, TEACHER, plan


class Painter:
    """A fake pipeline: images are indices into its prompts, as it `interpret`s them."""

    def __init__(self, interpret=lambda text: text) -> None:
        self.interpret, self.prompts = interpret, []

    def set_progress_bar_config(self, **_) -> None:
        pass

    def __call__(self, prompts, **_):
        self.prompts = [self.interpret(prompt) for prompt in prompts]
        return type("Output", (), {"images": torch.arange(len(prompts))})

    def judge(self, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """1 if the text is the image's prompt, else 0."""
        return torch.tensor([[float(self.prompts[int(i)] == text) for text in texts] for i in images])


def without_view(text: str) -> str:
    """The content of a perfect sample: the sentence, with the mark only from the front."""
    text, view = text.split(", ")
    return text if view.startswith("front view") else text.replace(f" {MARK}", "")


def test_a_perfect_prior_scores_one():
    painter = Painter(without_view)
    assert scoring.score_prior(painter, painter.judge, prior.VIEWS) == {
        "shape": 1,
        "color": 1,
        "both": 1,
        "view": 1,
    }


def test_a_prior_that_confuses_words_or_views_scores_less():
    def in_purple(text: str) -> str:
        (item,) = describe(without_view(text)).items  # type: ignore[union-attr]
        return sentence(Description((Item(item.shape, "purple"),)))

    painter = Painter(in_purple)
    scores = scoring.score_prior(painter, painter.judge, prior.VIEWS)
    assert (scores["shape"], scores["color"], scores["both"]) == (1, 1 / 8, 1 / 8)

    painter = Painter(lambda text: text.split(", ")[0])  # the mark on every side
    assert scoring.score_prior(painter, painter.judge, prior.VIEWS)["view"] == 0

    swapped = {"front view": "back view", "back view": "front view"}
    painter = Painter(
        lambda text: without_view(re.sub("(front|back) view", lambda match: swapped[match[0]], text))
    )
    assert scoring.score_prior(painter, painter.judge, prior.VIEWS)["view"] == 0


def test_card(tmp_path):
    card.write_card(tmp_path, "A model", "\nWhat it is.\n", {"shape": 0.98765})
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n---\n\n# A model\n\nWhat it is.\n")
    assert "| shape | 0.988 |" in text
    assert json.loads((tmp_path / "figures.json").read_text()) == {"shape": 0.98765}


def test_shipped_cards_are_those_of_the_recipe(tmp_path):
    folder = Path(__file__).resolve().parents[2] / "checkpoints"
    num_teacher, num_judge, num_rings = (
        sum(views for _, views in plan(config)) for config in (TEACHER, JUDGE, multi_view.RINGS)
    )
    details = {
        "shapes-clip": clip.CARD.format(images=num_judge, steps=clip.STEPS, batch=clip.BATCH, seed=clip.SEED),
        "shapes-prior": prior.CARD.format(
            images=num_teacher,
            decoder_steps=prior.DECODER_STEPS,
            steps=prior.STEPS,
            batch=prior.BATCH,
            seed=prior.SEED,
        ),
        "shapes-multi-view": multi_view.CARD.format(
            images=num_rings,
            steps=multi_view.STEPS,
            rings=multi_view.BATCH // multi_view.NUM_VIEWS,
            seed=multi_view.SEED,
        ),
    }
    for name, body in details.items():
        shipped = (folder / name / "README.md").read_text()
        title = shipped.split("# ", 1)[1].partition("\n")[0]
        card.write_card(tmp_path, title, body, json.loads((folder / name / "figures.json").read_text()))
        assert (tmp_path / "README.md").read_text() == shipped, name
