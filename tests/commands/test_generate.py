"""`amortized generate`: what it writes, what it skips and makes again, and its mistakes in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from amortized.commands import generated
from amortized.generation import TextTo3D
from amortized.locks import FileLock
from amortized.media import CAPTION_HEIGHT
from amortized.names import slug

QUICK = ("--size", "16", "--views", "2", "--frames", "2")
HOSTILE = {
    "markup": "<script>alert(1)</script>",
    "path": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "right to left": "\u202egnp.ebuc \u0645\u0643\u0639\u0628",
    "long": "a cube " * 580,
    "emoji": "\U0001f4a5" * 40,
    "device": "CON",
    "option": "--=1",
}


def index_of(folder: Path) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads((folder / "index.json").read_text(encoding="utf-8"))}


def files_in(folder: Path) -> dict[str, int]:
    """The visible files, with the time at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name[0] != "."}


@pytest.fixture
def generate(run, trained, tmp_path):
    """Calls generate for the run, with small pictures by default, into tmp_path/"out"."""

    def call(*arguments: str, model: Path = trained):
        output = ("--output", str(tmp_path / "out"))
        return run("amortized", "generate", str(model), *QUICK, *arguments, *output)

    return call


def test_it_writes_pictures_and_an_index(generate, tmp_path):
    done = generate("a red cube", "<b>=1", "--seeds", "2", "--seed", "3")
    assert done.returncode == 0 and "4 objects in" in done.stdout, done.stderr
    index = index_of(tmp_path / "out")
    assert [(entry["prompt"], entry["seed"]) for entry in index.values()] == [
        (text, seed) for text in ("a red cube", "<b>=1") for seed in (3, 4)
    ]
    for name, entry in index.items():
        assert name == f"{slug(entry['prompt'])}_{entry['seed']}" and entry["slug"] == slug(entry["prompt"])
        assert {format: made["file"] for format, made in entry["files"].items()} == {
            "png": f"{name}.png",
            "mp4": f"{name}.mp4",
        }
    names = {f"{name}.{format}" for name in index for format in ("png", "mp4")}
    assert files_in(tmp_path / "out").keys() == {*names, "index.json", "index.html"}
    # A later call adds to the index.
    assert generate("a cone").returncode == 0
    later = index_of(tmp_path / "out")
    assert list(later.items())[:4] == list(index.items()) and len(later) == 5


def test_a_second_call_makes_nothing_and_another_one_only_what_is_missing(generate, trained, tmp_path):
    folder = tmp_path / "out"
    assert generate("a", "b").returncode == 0
    before, index = files_in(folder), index_of(folder)
    again = generate("a", "b")
    assert "note: 2 objects in" in again.stdout and "skipped" in again.stdout
    assert files_in(folder) == before

    def remade(*arguments: str, **options) -> set[str]:
        before = files_in(folder)
        done = generate("a", "b", *arguments, **options)
        assert done.returncode == 0, done.stderr
        after = files_in(folder)
        changed = [name for name in after if before.get(name) != after[name]]
        return {re.sub("-[0-9a-f]{8}_0", "", name) for name in changed}

    own = {"index.json", "index.html"}
    (folder / index[f"{slug('a')}_0"]["files"]["mp4"]["file"]).unlink()
    assert remade() == {"a.mp4"}
    assert remade("--format", "webp") == {"a.webp", "b.webp", *own}
    assert remade("--fps", "5") == {"a.mp4", "b.mp4", *own}
    assert remade("--fps", "5", "--background", "#ff8000") == {"a.png", "a.mp4", "b.png", "b.mp4", *own}
    # Another checkpoint is another model; a copy of a run elsewhere is the same.
    copy = shutil.copytree(trained, tmp_path / "elsewhere")
    assert remade("--fps", "5", "--background", "#ff8000", model=copy) == set()
    other = generate("a", "--fps", "5", "--background", "#ff8000", "--checkpoint", "step_000002")
    assert "note: 1 object of another model or other settings: made again" in other.stdout
    models = {name: entry["files"]["png"]["model"] for name, entry in index_of(folder).items()}
    assert models[f"{slug('a')}_0"].startswith("step_000002 ")
    assert models[f"{slug('b')}_0"].startswith("step_000004 ")


def test_settings_that_change_the_images_change_the_model(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    identity = TextTo3D.from_run(run, device="cpu").identity
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("ambient: 0.2", "ambient: 0.1"), encoding="utf-8")
    assert identity.split()[0] == TextTo3D.from_run(run, device="cpu").identity.split()[0] == "step_000004"
    assert identity != TextTo3D.from_run(run, device="cpu").identity


def test_an_index_of_an_earlier_version_is_read_and_its_files_made_again(generate, tmp_path):
    folder, name = tmp_path / "out", f"{slug('a')}_0"
    folder.mkdir()
    for suffix in (".png", ".mp4"):
        (folder / f"{name}{suffix}").write_text("old")
    old = {
        "prompt": "a",
        "seed": 0,
        "slug": slug("a"),
        "strip": f"{name}.png",
        "turntable": f"{name}.mp4",
    }
    other = {**old, "prompt": "c", "slug": slug("c"), "strip": f"{slug('c')}_0.png"}
    (folder / "index.json").write_text(json.dumps([old, other]))
    assert "1 object of another model" in generate("a").stdout
    assert (folder / f"{name}.png").stat().st_size > 50 and list(index_of(folder)) == [name, f"{slug('c')}_0"]


@pytest.mark.parametrize("index", ["mine", "{}", "[1]", '[{"id": "0", "strip": "strips/a.png"}]', "[[]]"])
def test_it_does_not_replace_an_index_of_others(generate, tmp_path, index):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index.json").write_text(index)
    refused = generate("a cube")
    assert refused.returncode == 2 and "was not written by generate" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.json"]
    assert (tmp_path / "out/index.json").read_text() == index


def test_a_file_or_a_busy_folder_is_refused(generate, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused = generate("a")
    assert refused.returncode == 2 and "is a file: choose a folder (--output)" in refused.stderr
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    lock = FileLock(tmp_path / "out/.lock")
    refused = generate("a")
    lock.close()
    assert refused.returncode == 2 and "is generating into" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_what_is_there_is_listed(generate, tmp_path, monkeypatch):
    from amortized.generation import pictures

    save, calls = pictures.save_video, []

    def fail_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(pictures, "save_video", fail_second)
    failed = generate("a", "b", "c")
    assert failed.returncode == 2 and "No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr
    first, second = index_of(tmp_path / "out").values()
    assert first["prompt"] == "a" and set(first["files"]) == {"png", "mp4"}
    assert second["prompt"] == "b" and set(second["files"]) == {"png"}
    monkeypatch.undo()
    assert "note: 1 object in" in generate("a", "b", "c").stdout
    assert len(files_in(tmp_path / "out")) == 8


def test_out_of_memory_names_the_size(generate, monkeypatch):
    def run_out(*_):
        raise MemoryError

    monkeypatch.setattr("amortized.rendering.renderer.camera_rays", run_out)
    failed = generate("a")
    assert failed.returncode == 1 and "out of memory in a picture" in failed.stderr
    assert "lower --size" in failed.stderr.splitlines()[-1] and "Traceback" not in failed.stderr


def test_pictures_that_do_not_fit_the_memory_are_refused(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("amortized.memory_errors.available_cpu_bytes", lambda: 2**30)
    for arguments in (("--size", "3072"), ("--size", "512", "--views", "256", "--format", "png")):
        failed = generate("a", *arguments)
        assert failed.returncode == 2 and "and 1.0 GiB are available: lower it" in failed.stderr
        assert failed.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert generate("a").returncode == 0


def test_a_kill_loses_the_records_of_seconds_only(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(generated.time, "monotonic", lambda: clock[0])
    record = {"file": "a.png", "model": "m", "settings": {}}
    with generated.open_index(tmp_path) as index:
        for tenth in range(25):
            clock[0] = tenth / 10
            index.add(f"{tenth}", {"seed": 0}, {"png": record})
        # The others are found incomplete by the next call, which makes them again.
        assert 25 - 10 <= len(generated.read_index(tmp_path)) < 25
    assert len(generated.read_index(tmp_path)) == 25


def test_generate_from_an_export(generate, exported):
    done = generate("a red cube", model=exported)
    assert done.returncode == 0 and "1 object in" in done.stdout, done.stderr


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_names_of_files_are_safe_for_any_prompt(generate, tmp_path, text):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([text, "a cube"]))
    done = generate("--prompts", str(prompts), "--interpolate", "--frames", "0")
    assert done.returncode == 0, done.stderr
    done = generate("--prompts", str(prompts), "--format", "png")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out", "prompts.json"}
    names = files_in(tmp_path / "out").keys()
    assert len(names) == 5 and all(name.isascii() and len(name) < 100 for name in names)
    assert not any(set(name) & set('/\\<>:"|?* ') for name in names)


@pytest.mark.parametrize("rows", ["rgb", "normal,depth", "rgb,normal,depth,opacity"])
@pytest.mark.parametrize(("size", "fps"), [(16, "12"), (15, "7.5")])
def test_pictures_and_videos_have_the_chosen_sizes(generate, tmp_path, rows, size, fps):
    chosen = ("--show", rows, "--fps", fps, "--camera", "orbit", "--format", "png,mp4,webp")
    done = generate("a red cube", *chosen, "--size", str(size), "--frames", "5", "--views", "3")
    assert done.returncode == 0, done.stderr
    (entry,) = index_of(tmp_path / "out").values()
    height = size * (rows.count(",") + 1)
    with Image.open(tmp_path / "out" / entry["files"]["png"]["file"]) as image:
        assert image.size == (3 * size, height)
    with Image.open(tmp_path / "out" / entry["files"]["webp"]["file"]) as image:
        assert image.size == (size, height) and image.n_frames == 5
    with av.open(str(tmp_path / "out" / entry["files"]["mp4"]["file"])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == 5 and frames[0].shape == (height + height % 2, size + size % 2, 3)
        assert float(stream.average_rate) == float(fps)
    assert ("depth_range" in entry["files"]["png"]) == ("depth" in rows)


def test_the_way_between_two_prompts_is_a_grid_and_a_video(generate, tmp_path):
    chosen = ("--interpolate", "a red cube", "a blue sphere", "--show", "rgb,normal")
    for method, loop, num_frames in (("lerp", (), 4), ("slerp", ("--loop",), 6)):
        done = generate(*chosen, "--method", method, *loop, "--seed", "1", "--frames", "4")
        assert done.returncode == 0 and "1 object in" in done.stdout, done.stderr
        name = f"{slug('a red cube')}_to_{slug('a blue sphere')}_{method}_1"
        entry = index_of(tmp_path / "out")[name]
        assert entry["prompts"] == ["a red cube", "a blue sphere"] and entry["seed"] == 1
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size == (2 * 16, 2 * 16 + CAPTION_HEIGHT)
            ends = np.asarray(image)[CAPTION_HEIGHT:]
        with av.open(str(tmp_path / "out" / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == num_frames
        for frame, end in ((frames[0], ends[:, :16]), (frames[3], ends[:, 16:])):
            assert np.abs(frame.astype(float) - end).mean() < 12  # 4:2:0 at 16 pixels


def test_backgrounds_are_grays_colors_or_the_environment(generate, tmp_path):
    corners = []
    for value in ("0", "0.25", "#ff8000", "#0000FF"):
        assert generate("a", "--background", value, "--format", "png").returncode == 0
        with Image.open(tmp_path / "out" / f"{slug('a')}_0.png") as image:
            corners.append(image.getpixel((0, 0)))
    assert corners == [(0, 0, 0), (64, 64, 64), (255, 128, 0), (0, 0, 255)]
    refused = generate("a", "--background", "environment")
    assert refused.returncode == 2 and "this generator has none" in refused.stderr


MISTAKES = (
    ((), "there is nothing to generate: give a PROMPT"),
    (("a", "--seeds", "0"), "--seeds must be at least 1, got 0"),
    (("a", "--seed", "-1"), "--seed must be at least 0, got -1"),
    (("a", "--text-encoder", "x"), "--text-encoder is for exported folders"),
    (("a", "--checkpoint", "step_9"), "step_9"),
    (
        ("a", "--format", "gif"),
        "--format must be of png, mp4, webp, glb, ply, obj, stl, 3mf, usdz, splat, splat-ply, separated by "
        "commas, got gif",
    ),
    (("a", "--format", ""), "--format must be of png, mp4, webp"),
    (("a", "--show", "rgb,albedo"), "--show must be of rgb, normal, depth, opacity"),
    (("a", "--camera", "spiral"), "--camera: invalid choice: 'spiral'"),
    (("a", "--background", "#12345"), "--background must be a gray from 0 to 1, a color #rrggbb or"),
    (("a", "--background", "1.5"), "--background must be a gray from 0 to 1"),
    (("a", "--background", "nan"), "--background must be a gray from 0 to 1"),
    (("a", "--elevation", "91"), "--elevation must be at most 90, got 91"),
    (("a", "--fovy", "inf"), "--fovy must be a number, got inf"),
    (("a", "--distance", "0"), "--distance must be at least 0.01, got 0"),
    (("a", "--fps", "0"), "--fps must be at least 1, got 0"),
    (("a", "--loop"), "--loop is for --interpolate"),
    (("a", "--method", "slerp"), "--method is for --interpolate"),
    (("a", "--interpolate"), "--interpolate needs exactly two different prompts, got 1"),
    (("a", "a", "--interpolate"), "--interpolate needs exactly two different prompts, got 1"),
    (("a", "b", "c", "--interpolate"), "--interpolate needs exactly two different prompts, got 3"),
    (("a", "b", "--interpolate", "--frames", "1"), "needs at least 2 --views and --frames"),
    (("a", "--format", "mp4", "--frames", "0"), "--format mp4 needs a video, but --frames 0"),
    (("a", "--format", "mp4", "--camera", "fixed"), "needs a video, but --camera fixed: nothing moves"),
    (("a", "--camera", "fixed", "--views", "3"), "--camera fixed has one view, not the 3 of --views"),
    (("a", "--size", "4096"), "--size 4096 with --show rgb makes larger frames than players of mp4 decode"),
    (("a", "--size", "2048", "--show", "rgb,normal,depth"), "lower one of them, or choose --format png"),
    (
        ("a", "--size", "4096", "--views", "9", "--format", "png"),
        "makes a png of more than 67,108,864 pixels",
    ),
    (("a", "--size", "1024", "--frames", "99", "--format", "webp"), "lower --size or --frames"),
)


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence_and_status_2(run, trained, tmp_path, arguments, sentence):
    folder = tmp_path / "out"
    failed = run("amortized", "generate", str(trained), *arguments, "--output", str(folder))
    assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
    assert failed.stderr.count("\n") == 1 and not folder.exists()


def test_mistakes_in_the_model_are_one_sentence(run, exported):
    for arguments, sentence in (
        ((str(exported), "a cube", "--checkpoint", "best"), "--checkpoint is for runs"),
        (("some/where", "a cube"), "'some/where' is neither a folder nor a Hub id in the local cache"),
    ):
        failed = run("amortized", "generate", *arguments)
        assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
        assert failed.stderr.count("\n") == 1
