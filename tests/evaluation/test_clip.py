import json
import string

import pytest
import torch
from PIL import Image

from amortized.evaluation.clip import load_clip

WORDS = ["a", "red", "blue", "cube", "ball"]
CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 8,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "here",
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"},
}


def make_folder(folder):
    """Write a tiny CLIP with random weights and a word tokenizer, in the layout that `load_clip` reads."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    letters = [c for c in string.ascii_lowercase] + [f"{c}</w>" for c in string.ascii_lowercase]
    vocab, merges = {token: i for i, token in enumerate(letters)}, []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):  # EOS last: open_clip pools at the largest id
        vocab[token] = len(vocab)
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=8).save_pretrained(folder)
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"]["text_cfg"]["vocab_size"] = len(vocab)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model_cfg = {k: v for k, v in config["model_cfg"].items()}
    model = open_clip.CLIP(**model_cfg)
    torch.nn.init.normal_(model.visual.proj)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model.eval()


@pytest.fixture(scope="module")
def folder_and_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, make_folder(folder)


@pytest.fixture(scope="module")
def scorer(folder_and_model):
    return load_clip(folder_and_model[0], device="cpu", batch_size=4)


@pytest.mark.parametrize("size", [32, 64, 20])
def test_preprocessing_matches_open_clip(folder_and_model, scorer, size):
    import open_clip

    # Mid-range levels: PIL clips bicubic overshoot after each of its two passes, we after both.
    pixels = torch.randint(80, 176, (6, size, size, 3), generator=torch.Generator().manual_seed(size))
    inputs = scorer.preprocess(pixels / 255)
    transform = open_clip.image_transform(
        32, is_train=False, mean=CONFIG["preprocess_cfg"]["mean"], std=CONFIG["preprocess_cfg"]["std"]
    )
    expected = torch.stack([transform(Image.fromarray(image.byte().numpy())) for image in pixels])
    assert inputs.shape == (6, 3, 32, 32)
    # PIL rounds to 8 bits after each of two passes: 1/255 in pixels, 5/255 after the smallest std.
    assert (inputs - expected).abs().max() < 2.5 / 255 / 0.2
    model = folder_and_model[1]
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(model.encode_image(inputs), dim=-1)
    assert torch.allclose(
        scorer.encode_images(pixels / 255), embeddings, atol=1e-5
    )  # 6 images in batches of 4


def test_a_non_square_image_is_cropped_to_its_center(scorer):
    image = torch.rand(1, 40, 64, 3, generator=torch.Generator().manual_seed(0))
    center = image[:, :, 12:52]
    assert torch.equal(scorer.encode_images(image), scorer.encode_images(center))


def test_half_precision_images_are_accepted(scorer):
    image = torch.rand(2, 48, 48, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(scorer.encode_images(image), scorer.encode_images(image.float()))


def test_texts_use_the_tokenizer_of_the_folder(folder_and_model, scorer):
    texts = ["a red cube", "a blue cube", "a red ball", "A  RED cube", "a ball", "red"]
    embeddings = scorer.encode_texts(texts)
    assert embeddings.shape == (6, 16) and embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(6), atol=1e-5)
    assert torch.allclose(embeddings[0], embeddings[3], atol=1e-6)
    distinct = embeddings[[0, 1, 2, 4, 5]]
    assert torch.pdist(distinct).min() > 1e-3
    # One token per word, between BOS and EOS, padded.
    tokens = scorer.tokenizer(["a red cube"])
    assert tokens.shape == (1, 8)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(folder_and_model[1].encode_text(tokens), dim=-1)
    assert torch.allclose(embeddings[:1], expected, atol=1e-5)


def test_the_local_dir_prefix_names_the_same_folder(folder_and_model, scorer):
    other = load_clip(f"local-dir:{folder_and_model[0]}", device="cpu")
    assert torch.equal(other.encode_texts(["a red cube"]), scorer.encode_texts(["a red cube"]))


@pytest.mark.parametrize("name", ["checkpoints/no-such-clip", "local-dir:nowhere", "ViT-L-14", "a/b/c"])
def test_a_missing_folder_raises_one_sentence_with_the_remedy(name):
    with pytest.raises(ValueError, match="give an existing folder") as caught:
        load_clip(name, device="cpu")
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)


def test_only_safetensors_are_loaded(folder_and_model, tmp_path):
    import shutil

    shutil.copytree(folder_and_model[0], tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").rename(tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="open_clip_model.safetensors"):
        load_clip(tmp_path / "clip", device="cpu")


def test_a_missing_tokenizer_is_named(folder_and_model, tmp_path):
    import shutil

    shutil.copytree(folder_and_model[0], tmp_path / "clip", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match="tokenizer"):
        load_clip(tmp_path / "clip", device="cpu")


def test_published_weights_in_another_format_raise(monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "/cache/ViT-L-14.pt")
    with pytest.raises(ValueError, match="only safetensors"):
        load_clip("ViT-L-14/openai", device="cpu")

    def no_network(config):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(ValueError, match="no route to host.*network"):
        load_clip("ViT-L-14/openai", device="cpu", allow_network=True)
    with pytest.raises(ValueError, match="not in the local cache: set evaluation.allow_network=true"):
        load_clip("ViT-L-14/openai", device="cpu")


def test_openai_weights_get_their_quick_gelu(monkeypatch):
    import open_clip

    arguments = {}

    def create_model(name, **settings):
        arguments.update(settings, name=name)
        raise KeyboardInterrupt

    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "/cache/x.safetensors")
    monkeypatch.setattr(open_clip, "create_model", create_model)
    for pair, quick in (("ViT-L-14/openai", True), ("ViT-B-32/laion2b_s34b_b79k", False)):
        with pytest.raises(KeyboardInterrupt):
            load_clip(pair, device="cpu")
        assert arguments["force_quick_gelu"] is quick and arguments["require_pretrained"] is True
        assert f"{arguments['name']}/{arguments['pretrained']}" == pair
