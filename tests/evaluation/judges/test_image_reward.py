"""ImageReward: the published names, the network against an independent pass, the folder, its refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from amortized.evaluation.judges import load_judge
from amortized.evaluation.judges.convert_image_reward import convert, renamed
from amortized.evaluation.judges.image_reward import (
    MEAN,
    STD,
    TEXT_TOKENS,
    ImageRewardConfig,
    ImageRewardNetwork,
    load_image_reward,
)
from tests.evaluation.judges.published_image_reward import (
    TINY,
    VOCABULARY,
    make_folder,
    published_shapes,
    random_state,
    reward_of,
)

TEXTS = ("a red cube", "A big blue ball's hat, on the cones.", "", "zebra " + "a red cube on " * 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("judge") / "image-reward")


@pytest.fixture(scope="module")
def judge(folder):
    return load_image_reward(folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 40, 40, 3, generator=torch.Generator().manual_seed(1))


def test_the_real_architecture_takes_every_tensor_of_the_published_file() -> None:
    shapes = published_shapes(ImageRewardConfig())
    numbers = [math.prod(shape) for name, shape in shapes.items() if "position_ids" not in name]
    assert len(shapes) == 625 and f"{sum(numbers) / 1e6:.1f}" == "446.7"  # as published
    with torch.device("meta"):
        network = ImageRewardNetwork(ImageRewardConfig())
    ours = {new: shapes[old] for old, new in renamed(shapes).items()}
    assert ours == {name: tuple(value.shape) for name, value in network.state_dict().items()}
    unused = {name.rpartition(".")[0] for name in shapes.keys() - renamed(shapes)}
    assert unused == {"blip.vision_proj", "blip.text_proj", "blip.text_encoder.embeddings"}


@pytest.mark.parametrize("text", TEXTS)
def test_rewards_equal_an_independent_pass_over_the_published_weights(judge, images, text, tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    bert = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    tokens = bert(
        [text] * len(images),
        padding="max_length",
        truncation=True,
        max_length=TEXT_TOKENS,
        return_tensors="pt",
    )
    pixels = []
    for image in images:
        picture = Image.fromarray((image * 255).round().to(torch.uint8).numpy()).resize(
            (32, 32), Image.BICUBIC
        )
        pixels.append(torch.tensor(list(picture.getdata())).reshape(32, 32, 3) / 255)
    pixels = (torch.stack(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)
    expected = reward_of(
        random_state(), TINY, pixels.movedim(-1, 1), tokens["input_ids"], tokens["attention_mask"]
    )
    found = judge.score(judge.encode(images), [text])[:, 0]
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4) and expected.std() > 0.01


def test_a_batch_equals_its_pairs_one_by_one(judge, images) -> None:
    together = judge.score(judge.encode(images), TEXTS)
    assert together.shape == (5, 4)
    judge.batch_size = 2
    parts = judge.score(judge.encode(images), TEXTS)
    judge.batch_size = 32
    single = [[float(judge.score(judge.encode(image[None]), [text])) for text in TEXTS] for image in images]
    assert torch.allclose(parts, together, atol=1e-5)
    assert torch.allclose(torch.tensor(single), together, atol=1e-5)
    assert together.std(dim=0).min() > 0.01 and together.std(dim=1).min() > 0.01


def test_words_after_the_35th_token_do_not_count(judge, images) -> None:
    encoded = judge.encode(images[:1])
    long = "a red cube on the big ball " * 5  # 35 words; two tokens are the ends
    scores = judge.score(encoded, [long, long + "blue cone", "blue cone " + long])[0]
    assert scores[0] == scores[1] != scores[2]


def test_the_digest_is_that_of_weights_and_preprocessing(folder, judge, tmp_path) -> None:
    assert load_image_reward(folder).digest == judge.digest and len(judge.digest) == 64
    other = load_image_reward(make_folder(tmp_path / "other" / "judge", seed=1))
    config = json.loads((folder / "config.json").read_text())
    same = make_folder(tmp_path / "third" / "judge")
    (same / "config.json").write_text(json.dumps(config | {"reward_mean": 0.5}))
    assert len({judge.digest, other.digest, load_image_reward(same).digest}) == 3


def test_the_folder_names_its_source(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["source"]["file"] == "ImageReward.pt" and len(config["source"]["sha256"]) == 64
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


def test_load_judge_reads_the_folder(folder, judge) -> None:
    cpu = torch.device("cpu")
    assert load_judge(f"image-reward={folder}", clip="none", device=cpu).digest == judge.digest
    with pytest.raises(ValueError, match="needs a folder: image-reward=FOLDER, made by amortized convert"):
        load_judge("image-reward", clip="none", device=cpu)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "clip"}, "'model_type' is 'clip'"),
        ({"auto_map": {"a": "b"}}, "'auto_map' is refused"),
        ({"vision_layers": 3}, "lacks 12 tensors"),
        ({"vision_layers": 10**6}, "names 1,000,000 layers"),
        ({"head": [20, 12, 8, 5]}, "has the shape"),
        ({"vocabulary": 10}, "has the shape"),
        ({"text_positions": 8}, "'text_positions' must be at least 35"),
        ({"image_size": "big"}, "'image_size' must be int"),
        ({"reward_std": 0.0}, "'reward_std' must be positive"),
        ({"vision_heads": 5}, "does not describe a network"),
        ({"unknown": 1}, "unknown key"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(tmp_path, change, sentence) -> None:
    broken = make_folder(tmp_path / "judge")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence) as error:
        load_image_reward(broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_one_sentence(tmp_path, name) -> None:
    broken = make_folder(tmp_path / "judge")
    (broken / name).unlink()
    with pytest.raises(ValueError, match=r"cannot read|has no model.safetensors|has neither"):
        load_image_reward(broken)


def test_another_file_is_not_converted(tmp_path) -> None:
    vocabulary, file = tmp_path / "vocab.txt", tmp_path / "other.pt"
    vocabulary.write_text("\n".join(VOCABULARY), encoding="utf-8")
    state = random_state()
    for broken, sentence in (
        ({**state, "extra": torch.ones(1)}, "is not ImageReward: extra is missing, unexpected"),
        ({k: v for k, v in state.items() if "cls_token" not in k}, "vision.embeddings.class_embedding"),
        ({**state, "mlp.layers.7.bias": torch.ones(2)}, "head.4.bias"),
    ):
        torch.save(broken, file)
        with pytest.raises(ValueError, match=sentence):
            convert(file, tmp_path / "judge", vocabulary, TINY)
    for words, sentence in (
        (VOCABULARY[:-1], "has 23 tokens, and 24 are needed"),
        ([*VOCABULARY[:-1], "a"], "is not BERT's vocabulary"),
        (["x"] * 24, "is not BERT's vocabulary"),
    ):
        vocabulary.write_text("\n".join(words), encoding="utf-8")
        with pytest.raises(ValueError, match=sentence):
            convert(file, tmp_path / "judge", vocabulary, TINY)
    assert not (tmp_path / "judge").exists()
    (tmp_path / "judge").mkdir()
    with pytest.raises(ValueError, match="exists: choose another folder"):
        convert(file, tmp_path / "judge", vocabulary, TINY)
