"""CLIP as a judge, judges of the user's, and Pillow's resizing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from amortized.evaluation import load_clip
from amortized.evaluation.judges import ClipJudge, checked_scores, load_judge
from amortized.evaluation.judges.judge import resized
from tests.rooms import ROOT

CLIP = str(ROOT / "checkpoints" / "shapes-clip")
CPU = torch.device("cpu")
OWN = '''
import torch

class Red:
    """The mean of the red channel."""
    name, digest = "red", "1"

    def __init__(self, device):
        self.device = device

    def encode(self, images):
        return images[..., 0].mean(dim=(1, 2))

    def score(self, encoded, texts):
        return encoded[:, None].expand(-1, len(texts))

class Half(Red):
    digest = None

class Silent(Red):
    score = None
'''


@pytest.fixture
def images():
    return torch.rand(3, 48, 48, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_judges", None)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(48, 48), (48, 80), (90, 48)])
def test_resizing_is_pillows(method, shape) -> None:
    images = torch.rand(2, *shape, 3, generator=torch.Generator().manual_seed(3))
    side = min(shape)
    expected = []
    for image in images.numpy():
        picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
        left, top = (shape[1] - side) // 2, (shape[0] - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
        expected.append(np.asarray(picture.resize((20, 20), getattr(Image.Resampling, method.upper()))))
    found = resized(images, (20, 20), method) * 255
    assert np.array_equal(found.round().numpy(), np.stack(expected))


def test_clip_scores_are_the_cosines_of_the_scorer(images) -> None:
    texts = ["a red cube", "a blue sphere"]
    scorer = load_clip(CLIP)
    judge = load_judge("clip", clip=CLIP, device=CPU)
    expected = scorer.encode_images(images) @ scorer.encode_texts(texts).T
    for order in (texts, texts[::-1], texts):  # the texts of the last call are stored
        found = judge.score(judge.encode(images), order)
        assert torch.equal(found, expected if order == texts else expected.flip(1))
    assert judge.score(judge.encode(images), texts[:1]).shape == (3, 1)


def test_the_filter_is_a_part_of_name_and_digest() -> None:
    scorer = load_clip(CLIP)
    plain, bilinear = ClipJudge(scorer), load_judge(f"clip-bilinear={CLIP}", clip="none", device=CPU)
    assert (plain.name, bilinear.name) == ("clip", "clip-bilinear")
    assert plain.digest != bilinear.digest == ClipJudge(load_clip(CLIP), resize="bilinear").digest
    with torch.no_grad():
        next(scorer.model.parameters()).flatten()[0] += 1e-3
    assert ClipJudge(scorer).digest != plain.digest


def test_a_class_of_the_users_is_a_judge(own, images) -> None:
    judge = load_judge("my_judges:Red", clip="none", device=CPU)
    scores = checked_scores(judge.score(judge.encode(images), ["a", "b"]), judge, 3, 2)
    assert scores.dtype == torch.float64 and judge.device == CPU
    assert torch.allclose(scores[:, 1].float(), images[..., 0].mean(dim=(1, 2)))
    for wrong in (scores[:, :1], scores.tolist(), scores[:2]):
        with pytest.raises(ValueError, match=r"the judge red must return scores \[3, 2\]"):
            checked_scores(wrong, judge, 3, 2)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("my_judges:Blue", "my_judges has no such class"),
        ("my_judges:torch", "my_judges has no such class"),
        ("my_judges:Half", "is not a judge: it lacks the text 'digest'"),
        ("my_judges:Silent", "is not a judge: it lacks the method 'score'"),
        ("no_such_module:Red", "no_such_module:Red cannot be imported .* PYTHONPATH"),
        (":Red", "does not name a judge: write module:Class"),
        ("..my_judges:Red", "does not name a judge"),
        ("best", "there is no judge best: name clip, clip-bilinear, image-reward=FOLDER"),
        ("image-reward", "needs a folder"),
        ("clip=/no/such/folder", "neither a folder nor one of open_clip's"),
    ],
)
def test_other_names_are_one_sentence(own, spec, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_judge(spec, clip="none", device=CPU)
