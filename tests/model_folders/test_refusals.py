"""Damaged and hostile model folders: one ValueError that names the file, and no code of the folder runs."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.model_folders.families import (
    LOADERS,
    copy_of,
    json_files,
    leaves,
    replaced,
    valid,
    weight_files,
    write,
)

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("ran")
class Evil: pass
"""
# (file name's end, where, key, value): names of code, other models and other files
HOSTILE = [
    ("config.json", "auto_map", {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}),
    ("config.json", "trust_remote_code", True),
    ("config.json", "hf_model_name", "someone/model"),
    ("config.json", "quantization_config", {"quant_method": "bitsandbytes"}),
    ("config.json", "custom_pipelines", "evil"),
    ("config.json", "surprise", 1),
    ("config.json", "hidden_size_" + "x" * 300, 1),
    ("config.json", "base_model_name_or_path", "someone/model"),
]


def refused(kind: str, folder: Path, *parts: str) -> str:
    """The message of the refusal, which must have all parts."""
    with pytest.raises(ValueError) as caught:
        LOADERS[kind](folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500
    assert all(part in message for part in parts), message
    return message


@pytest.mark.parametrize("kind", LOADERS)
def test_the_valid_folders_load(kind: str, tmp_path: Path) -> None:
    LOADERS[kind](copy_of(kind, tmp_path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(("end", "key", "value"), HOSTILE, ids=lambda value: str(value)[:20])
def test_keys_that_name_code_or_other_models_are_refused_by_name(tmp_path, kind, end, key, value) -> None:
    """In every config of every kind of folder, and in every object inside open_clip's."""
    names = [name for name in json_files(kind) if name.endswith(end)]
    assert names
    for number, name in enumerate(names):
        data = json.loads((valid(kind) / name).read_text())
        inner = [path for path in leaves(data) if name == "open_clip_config.json" and path[-1] in
                 ("model_cfg", "preprocess_cfg", "vision_cfg", "text_cfg")]  # fmt: skip
        for depth, path in enumerate([(), *inner]):
            (base := tmp_path / f"{number}-{depth}").mkdir()
            folder = copy_of(kind, base)
            for place in (folder, (folder / name).parent):
                write(place / "evil.py", CODE)
            write(folder / name, replaced(data, (*path, key), value))
            refused(kind, folder, Path(name).name, key[:20])
            assert not list(folder.rglob("ran"))


def test_the_tokenizer_settings_of_open_clip_cannot_run_code(tmp_path: Path) -> None:
    """transformers would import the file that auto_map names, with trust_remote_code from the config."""
    folder = copy_of("clip", tmp_path)
    write(folder / "evil.py", CODE)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    write(folder / "open_clip_config.json", config)
    refused("clip", folder, "open_clip_config.json", "trust_remote_code")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "open_clip_config.json", (valid("clip") / "open_clip_config.json").read_text())
    write(folder / "tokenizer_config.json", tokenizer | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    refused("clip", folder, "tokenizer_config.json", "auto_map")
    write(folder / "tokenizer_config.json", tokenizer | {"tokenizer_class": "Evil"})
    refused("clip", folder, "tokenizer_config.json", "tokenizer_class", "Evil")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "name", "key", "value"),
    [
        ("prior", "unet/config.json", "_class_name", "UNetMotionModel"),
        ("prior", "unet/config.json", "_class_name", ["evil", "UNet2DConditionModel"]),
        ("prior", "vae/config.json", "_class_name", "AutoencoderTiny"),
        ("prior", "text_encoder/config.json", "model_type", "bert"),
        ("prior", "text_encoder/config.json", "architectures", ["Evil"]),
        ("t5", "config.json", "model_type", ["t5"]),
        ("clip", "open_clip_config.json", "model_cfg", "ViT-B-32"),
    ],
)
def test_other_classes_are_refused_by_name(tmp_path, kind, name, key, value) -> None:
    folder = copy_of(kind, tmp_path)
    write(folder / name, replaced(json.loads((folder / name).read_text()), (key,), value))
    refused(kind, folder, Path(name).name if key != "model_type" else "text encoder")


@pytest.mark.parametrize("value", ["hf-hub:someone/model", "https://host/x"])
@pytest.mark.parametrize("key", ["hf_tokenizer_name", "timm_model_name"])
def test_names_of_models_elsewhere_are_refused(tmp_path, key, value) -> None:
    folder = copy_of("clip", tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg" if key.startswith("hf") else "vision_cfg"][key] = value
    write(folder / "open_clip_config.json", config)
    refused("clip", folder, "open_clip_config.json", key, value)


@pytest.mark.parametrize("kind", LOADERS)
def test_an_adapter_is_refused(tmp_path, kind) -> None:
    for number, name in enumerate({Path(name).parent for name in weight_files(kind)}):
        (tmp_path / str(number)).mkdir()
        folder = copy_of(kind, tmp_path / str(number))
        write(folder / name / "adapter_config.json", {"base_model_name_or_path": "someone/model"})
        refused(kind, folder, "adapter_config.json")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["pipe", "loop", "folder", "sparse", "empty", "LFS pointer", "not UTF-8"])
@pytest.mark.parametrize("kind", LOADERS)
def test_files_that_are_no_files(tmp_path, kind, damage) -> None:
    extra = ["multi_view.json"] if kind == "prior" else []
    names = [*json_files(kind), *weight_files(kind), *extra]
    names += [p.relative_to(valid(kind)).as_posix() for p in valid(kind).rglob("tokenizer.json")]
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        folder = copy_of(kind, tmp_path / str(number))
        file = folder / name
        file.unlink(missing_ok=True)
        if damage == "pipe":
            os.mkfifo(file)
        elif damage == "loop":
            file.symlink_to(file)
        elif damage == "folder":
            file.mkdir()
        elif damage == "sparse":
            with file.open("wb") as sparse:
                sparse.truncate(2**34)
        else:
            content = {
                "empty": b"",
                "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            }
            file.write_bytes(content.get(damage, b"\xff\xfe{}"))
        message = refused(kind, folder, file.name)
        assert damage != "LFS pointer" or "git lfs pull" in message


BAD_VALUES = [
    None,
    True,
    -1,
    0,
    10**9,
    10**400,
    1e300,
    float("nan"),
    "x",
    "",
    "a" * 5000,
    [],
    [None],
    [[10**9]],
    {"a": 1},
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 60), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", LOADERS)
def test_mistyped_values_load_or_are_refused_in_one_sentence(tmp_path, kind, seed) -> None:
    """A sample of all (value, replacement) pairs; the slow run tries many more."""
    for each in [seed] if isinstance(seed, int) else seed:
        rng = random.Random(f"{kind} {each}")
        for number in range(25):
            name = rng.choice(json_files(kind))
            data = json.loads((valid(kind) / name).read_text())
            path, value = rng.choice(list(leaves(data))), rng.choice(BAD_VALUES)
            (base := tmp_path / f"{each}-{number}").mkdir()
            folder = copy_of(kind, base)
            write(folder / name, replaced(data, path, value))
            try:
                LOADERS[kind](folder)
            except ValueError as error:
                message = str(error)
                assert "\n" not in message and len(message) < 1500, (name, path, value)
                assert str(folder) in message, (name, path, value)


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("prior", "unet/config.json", "cross_attention_dim"),
        ("prior", "unet/config.json", "layers_per_block"),
        ("prior", "vae/config.json", "latent_channels"),
        ("prior", "text_encoder/config.json", "hidden_size"),
        ("prior", "text_encoder/config.json", "num_hidden_layers"),
        ("t5", "config.json", "d_ff"),
        ("t5", "config.json", "num_layers"),
    ],
)
@pytest.mark.parametrize("value", [10**9, 10**6, 2000])
def test_sizes_beyond_the_weights_are_refused_before_memory_is_taken(
    tmp_path, kind, name, key, value
) -> None:
    import resource

    folder = copy_of(kind, tmp_path)
    write(folder / name, replaced(json.loads((folder / name).read_text()), (key,), value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(kind, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
