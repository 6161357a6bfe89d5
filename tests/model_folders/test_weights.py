"""Weights are complete, of the right shapes and finite, or the part and the tensors are named."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amortized.conditioning import load_text_encoder
from amortized.evaluation.clip import load_clip
from amortized.priors import PriorConfig, load_prior, load_stable_diffusion
from tests.model_folders.families import LOADERS, ROOT, copy_of, valid, weight_files, write

CASES = [(kind, name) for kind in LOADERS for name in weight_files(kind)]


def changed(folder: Path, name: str, change) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    (folder / name).unlink()
    save_file(tensors, folder / name)


def refused(kind: str, folder: Path, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        LOADERS[kind](folder)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in tensors.items() if value.numel() > 8)


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize(
    "damage", ["missing", "all missing", "renamed", "unexpected", "transposed", "NaN", "infinite", "integers"]
)
def test_damaged_tensors_are_named_with_their_part(tmp_path, kind, name, damage) -> None:
    folder, names = copy_of(kind, tmp_path), []

    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = first(tensors)
        names.append(key)
        if damage == "missing":
            del tensors[key]
        elif damage == "all missing":
            tensors.clear()
        elif damage == "renamed":
            tensors[f"{key}_old"] = tensors.pop(key)
        elif damage == "unexpected":
            tensors["surprise"] = torch.zeros(3)
            names[0] = "surprise"
        elif damage == "transposed":
            tensors[key] = tensors[key].reshape(-1, 1, 1)
        elif damage == "integers":
            tensors[key] = tensors[key].to(torch.int8)
        else:
            tensors[key] = tensors[key].clone()
            tensors[key].view(-1)[5] = torch.nan if damage == "NaN" else -torch.inf

    changed(folder, name, change)
    shown = "tensors" if damage == "all missing" else names[0].removeprefix("text_model.")
    refused(kind, folder, str((folder / name).parent), shown)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_prefixes_of_wrappers_are_removed_with_a_note(tmp_path, caplog, kind, name, prefix) -> None:
    folder = copy_of(kind, tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[prefix + key] = tensors.pop(key)

    changed(folder, name, change)
    LOADERS[kind](folder)
    assert "which is removed" in caplog.text and str((folder / name).parent) in caplog.text
    changed(folder, name, lambda tensors: tensors.update({"one more": torch.zeros(1)}))
    refused(kind, folder, "lacks")  # a prefix of some names only is none


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] != "clip"])
def test_shards_and_the_only_variant_are_read(tmp_path, kind, name) -> None:
    folder = copy_of(kind, tmp_path)
    tensors, stem = load_file(folder / name), (folder / name).name.removesuffix(".safetensors")
    (folder / name).unlink()
    save_file(tensors, (folder / name).with_name(f"{stem}.fp16.safetensors"))
    LOADERS[kind](folder)
    (folder / name).with_name(f"{stem}.fp16.safetensors").unlink()
    keys = sorted(tensors)
    for number, part in enumerate((keys[:3], keys[3:]), 1):
        shard = (folder / name).with_name(f"{stem}-{number:05}-of-00002.safetensors")
        save_file({key: tensors[key] for key in part}, shard)
    LOADERS[kind](folder)
    shard.unlink()
    refused(kind, folder, "lacks shards")
    (folder / name).with_name(f"{stem}-00001-of-00002.safetensors").unlink()
    refused(kind, folder, f"has no {stem}.safetensors")
    write((folder / name).with_name(f"{stem}.h5"), b"keras")
    refused(kind, folder, f"{stem}.h5, which is not read")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] != "clip"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, kind, name, sharded) -> None:
    """The command is run here as it stands in the message, once for each shard, in a path with a blank."""
    (parent := tmp_path / "a folder").mkdir()
    folder = copy_of(kind, parent)
    tensors = load_file(folder / name)
    stem = "diffusion_pytorch_model" if "diffusion" in name else "pytorch_model"
    expected = {key: value.clone() for key, value in tensors.items()}
    (folder / name).unlink()
    keys = sorted(tensors)
    shards = {"-00001-of-00002": keys[:3], "-00002-of-00002": keys[3:]} if sharded else {"": keys}
    for end, part in shards.items():
        torch.save({key: tensors[key] for key in part}, (folder / name).with_name(f"{stem}{end}.bin"))
    with pytest.raises(ValueError, match=f"{stem}.*bin, which is not read") as caught:
        LOADERS[kind](folder)
    assert "\n" not in str(caught.value)
    found = re.search(r'`python -c "(.*)" (.*)`', str(caught.value))
    assert found is not None
    (script := tmp_path / "command.py").write_text(found[1])
    for end in shards:
        paths = [
            path.replace("-00001-", "-00002-") if "2-of" in end else path for path in shlex.split(found[2])
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["-c", *paths])
            runpy.run_path(str(script))
    new = {}
    for file in (folder / name).parent.glob("*.safetensors"):
        new |= load_file(file)
    assert new.keys() == expected.keys() and all(torch.equal(new[key], expected[key]) for key in new)
    LOADERS[kind](folder)


def test_a_variant_is_chosen_by_name(tmp_path) -> None:
    folder = copy_of("prior", tmp_path)
    for name in weight_files("prior"):
        tensors, plain = load_file(folder / name), folder / name
        halves = {key: value.half() * 0 for key, value in tensors.items()}
        save_file(halves, plain.with_name(plain.name.replace(".safetensors", ".fp16.safetensors")))
    path = str(folder)
    plain, zero = (load_prior(PriorConfig(path=path, variant=variant)) for variant in (None, "fp16"))
    assert any(value.any() for value in plain.unet.parameters())
    assert not any(value.any() for value in zero.unet.parameters())
    with pytest.raises(ValueError, match="has no variant 'ema' of .*: there is null, 'fp16'"):
        load_prior(PriorConfig(path=path, variant="ema"))
    for name in weight_files("prior"):
        shutil.move(folder / name, (folder / name).with_suffix(".ema.safetensors"))
    with pytest.raises(ValueError, match="the variants ema, fp16: choose one by prior.variant"):
        load_prior(PriorConfig(path=path))
    with pytest.raises(ValueError, match="variant must be letters"):
        PriorConfig(path=path, variant="../x")


def test_values_that_overflow_half_precision_are_named(tmp_path) -> None:
    folder = copy_of("prior", tmp_path)
    changed(folder, weight_files("prior")[1], lambda tensors: tensors[first(tensors)].fill_(1e6))
    load_stable_diffusion(folder)
    with pytest.raises(ValueError, match="overflows torch.float16: set prior.dtype=bfloat16"):
        load_stable_diffusion(folder, dtype=torch.float16)


# ---- equal to the libraries' own loaders ----------------------------------------------------------


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["prior", "checkpoints/shapes-prior", "checkpoints/shapes-multi-view"])
def test_priors_equal_those_of_diffusers_and_transformers(dtype, name) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = valid(name) if name == "prior" else ROOT / name
    prior = load_stable_diffusion(folder, dtype=dtype)
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        assert equal(getattr(prior, part), kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype))
    # transformers 5.0 fills the embedded priors' text encoder with random numbers, as later versions write
    # other names: compare with the file.
    stored = load_file(folder / "text_encoder/model.safetensors")
    plain = {key.removeprefix("text_model."): value.to(dtype) for key, value in stored.items()}
    ours = prior.text_encoder.model
    loaded = {key.removeprefix("text_model."): value for key, value in ours.state_dict().items()}
    assert loaded.keys() == plain.keys() and all(torch.equal(loaded[key], plain[key]) for key in plain)
    if name == "prior":
        theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        ids = torch.tensor([[1, 5, 2]])
        with torch.no_grad():
            assert torch.equal(ours(input_ids=ids)[0], theirs(input_ids=ids)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_t5_equals_that_of_transformers(dtype) -> None:
    """Tied embeddings included, and the layer that stays in float32; the fingerprint is that of shards."""
    from transformers import AutoTokenizer, T5EncoderModel

    from amortized.conditioning.text_encoder import T5TextEncoder

    ours = load_text_encoder(str(valid("t5")), dtype=dtype)
    theirs = T5EncoderModel.from_pretrained(valid("t5"), dtype=dtype)
    assert equal(ours.model, theirs)
    assert [p.dtype for p in ours.model.parameters()] == [p.dtype for p in theirs.parameters()]
    tokenizer = AutoTokenizer.from_pretrained(valid("t5"))
    assert ours.fingerprint() == T5TextEncoder(tokenizer, theirs).fingerprint()


def test_clip_equals_that_of_open_clip() -> None:
    import open_clip

    ours = load_clip(valid("clip"))
    theirs = open_clip.create_model(f"local-dir:{valid('clip')}", require_pretrained=True).eval()
    assert equal(ours.model, theirs)
    assert open_clip.get_model_preprocess_cfg(ours.model) == open_clip.get_model_preprocess_cfg(theirs)
    texts = ["a red cube", "A  blue sphere, front view az30", ""]
    assert torch.equal(ours.tokenizer(texts), open_clip.get_tokenizer(f"local-dir:{valid('clip')}")(texts))


def test_a_timm_tower_and_separate_text_load(tmp_path) -> None:
    """As in SigLIP's folders: an architecture that timm knows by name, without its own weights."""
    import open_clip

    model_cfg = {
        "embed_dim": 32,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "timm_model_name": "resnet10t", "timm_model_pretrained": True,
                       "timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                     "norm_kwargs": {"eps": 1e-6}},
    }  # fmt: skip
    plain = json.loads(json.dumps(model_cfg))
    plain["vision_cfg"]["timm_model_pretrained"] = False
    del plain["custom_text"]
    model = open_clip.CustomTextCLIP(**plain)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    write(tmp_path / "open_clip_config.json", {"model_cfg": model_cfg, "preprocess_cfg": {}})
    assert equal(load_clip(tmp_path).model, model)
    model_cfg["vision_cfg"]["timm_model_name"] = "local-dir:evil"
    write(tmp_path / "open_clip_config.json", {"model_cfg": model_cfg})
    with pytest.raises(ValueError, match="timm_model_name"):
        load_clip(tmp_path)
