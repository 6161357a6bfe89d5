"""`evaluate --protocol`: each protocol with each kind of judge, resuming, and mistakes in one sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from amortized.assets import AssetConfig
from amortized.commands import shown
from amortized.commands.shown import check_show, path_of
from amortized.evaluation.protocols import PROTOCOLS
from amortized.names import slug
from amortized.types import Prompt
from amortized.untrusted import read_yaml_object
from tests.evaluation.judges.published_image_reward import VOCABULARY, make_folder
from tests.rooms import ROOT

GLB = ("--format", "glb", "--device", "cpu", "--resolution", "32", "--faces", "500", "--texture", "64")
CLIP = f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}"
OWN = '''
import torch

class Bright:
    """Counts its images in a file."""
    name, digest = "bright", "1"

    def __init__(self, device):
        self.device = device

    def encode(self, images):
        with open("COUNT", "a") as file:
            file.write("x" * len(images))
        return images.mean(dim=(1, 2, 3))

    def score(self, encoded, texts):
        return encoded[:, None].expand(-1, len(texts))
'''


@pytest.fixture
def run_folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    for name, protocol in PROTOCOLS.items():
        monkeypatch.setitem(PROTOCOLS, name, replace(protocol, image_size=8))


@pytest.fixture
def own(tmp_path, monkeypatch):
    count = tmp_path / "count"
    count.touch()
    (tmp_path / "own_judge.py").write_text(OWN.replace("COUNT", str(count)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return count


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_scaledreamer_scores_the_evaluated_prompts_by_clip(run, run_folder) -> None:
    done = run("evaluate.py", str(run_folder), "--limit", "2", "--protocol", "scaledreamer-clip", CLIP)
    assert done.returncode == 0 and not done.stderr.strip().startswith("Traceback"), done
    assert "2 prompts x 120 views = 240 images of 8 px to render and encode, 480 scores" in done.stdout
    assert "similarity" in done.stdout and "(chance 0.5000)" in done.stdout
    (folder,) = (run_folder / "evaluations").iterdir()
    data = scores(folder)
    assert data["protocol"] == "scaledreamer-clip" and data["judge"] == "clip-bilinear"
    assert data["images"] == "field" and len(data["judge_digest"]) == 64
    assert [len(prompt["views"]) for prompt in data["prompts"]] == [120, 120]
    assert not (run_folder / "evaluation").exists()


def test_t3bench_lite_by_image_reward_and_what_a_folder_needs(run, run_folder, tmp_path) -> None:
    judge = make_folder(tmp_path / "judge")
    options = (str(run_folder), "--limit", "1", "--protocol", "t3bench-lite")
    done = run("evaluate.py", *options, "--judge", f"image-reward={judge}", "--output", str(tmp_path / "out"))
    assert done.returncode == 0 and "1 prompt x 42 views" in done.stdout, done
    assert scores(tmp_path / "out")["judge"] == "image-reward"
    done = run("evaluate.py", *options)
    assert done.returncode == 2 and "image-reward needs a folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_resumes_and_starts_over_with_another_judge(run, run_folder, own, tmp_path) -> None:
    out = tmp_path / "out"
    options = ("--protocol", "t3bench-lite", "--output", str(out), str(run_folder))
    done = run("evaluate.py", *options, "--limit", "3", "--judge", "own_judge:Bright")
    assert done.returncode == 0 and own.stat().st_size == 3 * 42, done
    before = scores(out)
    file = out / "rows" / "000.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines)[:-50])  # killed in the third row
    done = run("evaluate.py", *options, "--limit", "3", "--judge", "own_judge:Bright")
    assert done.returncode == 0 and "2 of 3 prompts have scores already" in done.stdout, done
    assert own.stat().st_size == 4 * 42 and scores(out) == before
    done = run("evaluate.py", *options, "--limit", "1", "--judge", "clip", CLIP)
    assert "had scores with another judge, judge_digest, which are replaced" in done.stdout, done
    assert scores(out)["judge"] == "clip" and len(scores(out)["prompts"]) == 1


def test_meshes_and_files_are_shown_like_each_other(run, run_folder, own, tmp_path, monkeypatch) -> None:
    small = partial(AssetConfig, resolution=32, faces=500, texture=64)
    monkeypatch.setattr(shown, "AssetConfig", small)
    options = (str(run_folder), "--protocol", "t3bench-lite", "--judge", "own_judge:Bright")
    made = run("amortized", "generate", str(run_folder), "a red cube", "--output", str(tmp_path), *GLB)
    (glb,) = tmp_path.glob("*.glb")
    assert made.returncode == 0, made
    (tmp_path / "a_red_cube.glb").write_bytes(glb.read_bytes())
    one = (*options, "--prompt", "a red cube")
    found = {}
    for name, show in (("mesh", "mesh"), ("files", str(tmp_path / "{prompt}.glb"))):
        done = run("evaluate.py", *one, "--show", show, "--output", str(tmp_path / name))
        assert done.returncode == 0 and not scores(tmp_path / name)["missing"], done
        found[name] = scores(tmp_path / name)["prompts"][0]["views"]
        assert scores(tmp_path / name)["images"] == name
    assert found["mesh"] == pytest.approx(found["files"], abs=2e-3) and max(found["mesh"]) > 0.05
    nowhere = ("--show", str(tmp_path / "{id}.glb"), "--output", str(tmp_path / "none"))
    done = run("evaluate.py", *one, *nowhere)
    assert done.returncode == 0 and "1 object without a surface scored as black images" in done.stdout, done
    assert scores(tmp_path / "none")["metrics"]["quality"]["mean"] == 50


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("m/{id}.glb", "m/p1.glb"),
        ("{prompt}.glb", "a_cat_.._.._etc.glb"),
        ("{slug}/x.GLB", f"{slug('a cat/../../etc')}/x.GLB"),
    ],
)
def test_the_text_of_a_prompt_leads_to_no_other_folder(pattern, path) -> None:
    check_show(pattern)
    assert path_of(pattern, Prompt(id="p1", text="a cat/../../etc")) == Path(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--judge", "clip"), "--judge clip needs --protocol, one of scaledreamer-clip"),
        (("--show", "mesh"), "--show mesh needs --protocol, one of"),
        (
            ("--protocol", "t3bench-lite", "--show", "one.glb"),
            "--show must be field, mesh, or the path",
        ),
        (("--protocol", "t4bench"), "there is no --protocol t4bench: it is one of ring, scaledreamer-clip"),
        (("--protocol", "t3bench-lite", "--judge", "best"), "there is no judge best"),
        (("--protocol", "t3bench-lite", "--judge", "no_module:Judge"), "cannot be imported"),
        (("--protocol", "t3bench-lite", "--judge", "image-reward=/none"), "cannot read /none/config.json"),
    ],
)
def test_mistakes_are_one_sentence(run, trained, options, sentence) -> None:
    done = run("evaluate.py", str(trained), *options, CLIP)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done


def test_a_run_cannot_name_a_judge(run, run_folder, own) -> None:
    """Importing a class runs its code, so a run's config, which may come from elsewhere, has no such key."""
    import yaml

    data = read_yaml_object(run_folder / "config.yaml")
    data["evaluation"]["judge"] = "own_judge:Bright"
    (run_folder / "config.yaml").write_text(yaml.safe_dump(data))
    done = run("evaluate.py", str(run_folder), "--protocol", "t3bench-lite")
    assert done.returncode == 2 and "judge" in done.stderr and own.stat().st_size == 0, done


def test_image_reward_is_converted_and_mistakes_are_one_sentence(run, tmp_path) -> None:
    file, vocabulary = tmp_path / "ImageReward.pt", tmp_path / "vocab.txt"
    torch.save({"mlp.layers.0.weight": torch.ones(3)}, file)
    vocabulary.write_text("\n".join(VOCABULARY))
    words = ("convert", "image-reward", str(file), str(tmp_path / "judge"))
    done = run("amortized", *words, "--vocabulary", str(vocabulary))
    assert done.returncode == 2 and "30,522 are needed" in done.stderr and done.stderr.count("\n") == 1
    done = run("amortized", *words)
    assert done.returncode == 2 and "required: --vocabulary" in done.stderr
    assert not (tmp_path / "judge").exists()
