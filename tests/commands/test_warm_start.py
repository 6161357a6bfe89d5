"""One object that starts from a run, an export or a file, and starts that are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from amortized.commands.compose import build_bank, build_untrained, load_corpus, load_run_config
from amortized.commands.warm_start import warm_start
from amortized.config import ConfigError
from amortized.generation import TextTo3D
from amortized.parallel import World
from amortized.priors import load_prior
from amortized.splats import ball, from_points, parameters_of, scene_of, write_splat_ply
from amortized.splats.files import write_splat_file
from amortized.starts import fitting
from amortized.types import SplatScene
from tests.commands.runs import small
from tests.tiny_sd import make_tiny_sd

SDF, DENSITY, SPLATS = (f"configs/tiny-{name}.yaml" for name in ("ingp", "ingp-density", "splats"))
EXACT = "generator.shared_width=32"  # as the quickstart's generator
PROMPT = "a blue sphere"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"STEPS": 20, "BATCH": 2**10, "SURFACE": 2**10, "IN_BALL": 2**12}.items():
        monkeypatch.setattr(fitting, name, value)


def command(prior: str, folder: Path, preset: str, *more: str) -> list[str]:
    script, _, *rest = small(prior, folder)
    quick = ["trainer.steps=2", "checkpointing.every=1", "monitoring.preview_scores=false"]
    return [script, preset, *rest, *quick, "trainer.prompts_per_process=1", f"prompt={PROMPT}", *more]


@pytest.fixture(scope="session")
def parts(prior):
    """The prior and the text embeddings that all runs of these tests have."""
    config = load_run_config(SDF, [f"prior={prior}"])
    loaded = load_prior(config.prior, CPU)
    return loaded, build_bank(config, loaded, CPU)


@pytest.fixture
def started(prior, parts):
    """Calls `warm_start` for a preset and settings; returns the generator, its config and the notes."""

    def call(preset: str, start: str | Path, *more: str, world: World | None = None, bank=None):
        config = load_run_config(preset, [f"prior={prior}", f"start={start}", f"prompt={PROMPT}", *more])
        text, width = parts[1]
        generator = build_untrained(config, width, CPU)
        notes = warm_start(
            config, load_corpus(config), text if bank is None else bank, generator, world or World()
        )
        return generator, config, notes

    return call


def scene_of_text(generator: torch.nn.Module, parts) -> object:
    with torch.no_grad():
        return generator.eval()(parts[1][0].generator_text(["anything"]))


POINTS = 0.5 * torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", ["trained", "exported"])
def test_an_object_is_copied_from_a_run_and_from_an_export(source, request, started, parts):
    folder = request.getfixturevalue(source)
    generator, _, notes = started(SDF, folder, EXACT)
    model = TextTo3D.from_run(request.getfixturevalue("trained"), device="cpu")
    expected = model.scenes(PROMPT).sdf_and_albedo(POINTS)
    for value, wanted in zip(scene_of_text(generator, parts).sdf_and_albedo(POINTS), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
    other = model.scenes("a red cube").sdf(POINTS)
    assert not torch.allclose(other, expected[0], rtol=0, atol=1e-6)
    assert notes[0].startswith(f"start: '{PROMPT}' of {folder} (") and notes[0].endswith(", copied")
    assert "trainer.sharpness=" not in notes[0] and len(notes) == 2
    assert "trainer.sharpness begins at 20, which blurs an object that was trained up to" in notes[1]
    assert started(SDF, folder, EXACT, "trainer.sharpness=200")[2] == notes[:1]


@pytest.mark.parametrize("preset", [SDF, DENSITY])
def test_an_object_of_other_sizes_is_fitted(preset, trained, started, monkeypatch):
    # A generator of 4 steps makes little more than the ball that the object starts as anyway.
    other = "generator.sphere_radius=0.3" if preset == SDF else "generator.blob_radius=0.3"
    generator, _, notes = started(preset, trained, other)
    again, _, _ = started(preset, trained, other)
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), again.parameters(), strict=True))
    assert f" {EXACT} " in notes[0] and ", fitted in " in notes[0]
    monkeypatch.setattr(fitting, "STEPS", 100)
    generator, _, notes = started(preset, trained, other)
    before, after = (float(notes[0].split(word)[0].split()[-1]) for word in (" before", " after"))
    assert before < 0.6 < 0.75 < after


def test_splats_start_on_the_surface(trained, started):
    generator, config, notes = started(SPLATS, trained)
    model = TextTo3D.from_run(trained, device="cpu")
    means = generator.means.detach()
    assert len(means) == config.generator.count == 1000 and notes[0].endswith("1,000 splats on the surface")
    assert model.scenes(PROMPT).sdf(means[None]).abs().max() < 0.01
    torch.testing.assert_close(generator.logits.sigmoid(), torch.full((1000,), 0.9))


@pytest.mark.parametrize("kind", ["splats.ply", "points.PLY", "splats.splat"])
def test_splats_start_from_a_file(kind, tmp_path, started):
    splats = ball(1000, 0.4, torch.Generator().manual_seed(0))
    splats["means"][0] = torch.tensor([0.1, 0.2, 0.3])
    path = tmp_path / kind
    if kind == "points.PLY":
        header = "ply\nformat binary_little_endian 1.0\nelement vertex 1000\n"
        header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
        path.write_bytes(header.encode() + splats["means"].numpy().astype("<f4").tobytes())
    else:
        {".ply": write_splat_ply, ".splat": write_splat_file}[path.suffix](path, scene_of(splats, 1.0))
    generator, _, notes = started(SPLATS, path)
    assert notes == [f"start: {path}, 1,000 splats in the file"]
    rows = generator.means.detach()
    assert (rows == torch.tensor([0.1, 0.2, 0.3])).all(-1).sum() == 1  # in our axes, whatever the file's
    for name, value in generator.splats.items():
        wanted = from_points(splats["means"])[name] if kind == "points.PLY" else splats[name]
        if name == "log_scales":
            wanted = wanted.clamp(max=math.log(0.1 * 0.9))  # the largest that training allows
        if kind != "splats.splat":  # which has bytes, in another order
            torch.testing.assert_close(value.detach(), wanted)


def test_the_few_splats_outside_the_ball_are_left_out(tmp_path, started):
    splats = ball(200, 0.4, torch.Generator().manual_seed(0))
    splats["means"][7] = torch.tensor([0.0, 0.0, 2.0])
    write_splat_ply(tmp_path / "one.ply", scene_of(splats, 1.0))
    generator, _, notes = started(SPLATS, tmp_path / "one.ply")
    assert notes[0].endswith("199 splats in the file; 1 outside the bounding ball are left out")
    assert generator.means.norm(dim=-1).max() <= 0.9


@pytest.mark.parametrize("here", ["null", "hash", "sh"])
def test_a_learned_background_is_copied_if_it_is_of_the_same_kind(here, prior, run, tmp_path, started):
    source = small(prior, tmp_path / "source", "environment.name=hash", "trainer.steps=1")
    assert run(*source).returncode == 0
    kind = "environment=null" if here == "null" else f"environment.name={here}"
    generator, _, notes = started(SDF, tmp_path / "source", EXACT, kind)
    last = {
        "null": "start: its learned background is left out, as environment=null",
        "hash": "start: its learned background is copied",
        "sh": "start: the background begins untrained, as the start has none of the same kind and sizes",
    }[here]
    assert notes[-1] == last and ", copied" in notes[0]
    if here == "hash":
        source = TextTo3D.from_run(tmp_path / "source", device="cpu").generator.surroundings
        new = generator.surroundings.state_dict()
        assert all(torch.equal(value, new[name]) for name, value in source.state_dict().items())


def test_a_run_starts_resumes_without_its_start_and_shows_it(run, prior, trained, exported, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    checkpoints = {}
    for name in ("whole", "resumed"):
        arguments = command(prior, tmp_path / name, SDF, f"start={source}", EXACT)
        if name == "resumed":
            assert "copied" in run(*arguments, "--dry-run").stdout
            assert not (tmp_path / name).exists()
        assert run(*arguments).returncode == 0
        if name == "resumed":
            shutil.rmtree(tmp_path / name / "checkpoints/step_000002")
            shutil.rmtree(source)
            done = run(*arguments)
            assert done.returncode == 0 and "start: " not in done.stderr.split("resum")[-1], done.stderr
        checkpoints[name] = read_part(list_checkpoints(tmp_path / name / "checkpoints")[-1], "generator")
    for key, value in checkpoints["whole"].items():
        assert torch.equal(value, checkpoints["resumed"][key]), key
    folder = tmp_path / "whole"
    assert f"start: {source}\n" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "run.json").read_text())["settings"]["start"] == str(source)
    events = [json.loads(line)["note"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(event.startswith("start: 'a blue sphere'") for event in events) == 1
    assert [path.name[:11] for path in sorted((folder / "previews").glob("*.png"))][0] == "step_000000"
    refused = run(*command(prior, folder, SDF, f"start={exported}", EXACT))
    assert refused.returncode == 2 and "start was " in refused.stderr
    # A run without checkpoints has nothing to resume from: it needs its start.
    shutil.rmtree(folder / "checkpoints")
    refused = run(*command(prior, folder, SDF, f"start={source}", EXACT))
    assert refused.returncode == 2 and f"start={source}: '{source}' is neither" in refused.stderr


def test_a_run_of_one_object_is_a_start_too(run, prior, trained, tmp_path, started, parts):
    for preset, name in ((SDF, "sdf"), (SPLATS, "splats")):
        arguments = command(prior, tmp_path / name, preset, f"start={trained}", "trainer.steps=1")
        assert run(*arguments).returncode == 0
        generator, _, notes = started(preset, tmp_path / name)
        assert "copied" in notes[0]
        expected = TextTo3D.from_run(tmp_path / name, device="cpu").scenes(PROMPT)
        scene = scene_of_text(generator, parts)
        if isinstance(scene, SplatScene):
            for key, value in parameters_of(expected).items():
                assert torch.equal(value, parameters_of(scene)[key]), key
        else:
            assert torch.equal(scene.sdf(POINTS), expected.sdf(POINTS))
    with pytest.raises(ValueError, match="its scene is splats, which start generator.name=splats: use that"):
        started(SDF, tmp_path / "splats")


class Follower(World):
    """Rank 1 of two, which gets everything from rank 0 and reads nothing."""

    def run_on_all(self, action):
        assert action() is None
        return [self.outcome, None]

    def copy_from_main(self, values):
        values.copy_(self.sent.pop(0))


def test_the_other_ranks_copy_the_start(trained, started):
    main, _, notes = started(SPLATS, trained, "generator.count=70", "generator.density_control=null")
    follower = Follower(rank=1, size=2)
    state = main.state_dict()
    object.__setattr__(follower, "outcome", (notes, {name: value.shape for name, value in state.items()}))
    object.__setattr__(follower, "sent", list(state.values()))
    other, _, copied = started(SPLATS, "/nowhere", "generator.count=3", world=follower)
    assert copied == notes and other.count == 70
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


# ---- refusals ---------------------------------------------------------------------------------


def refusal(started, *arguments: object, **options: object) -> str:
    with pytest.raises(ValueError) as error:
        started(*arguments, **options)
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 600
    return sentence


def test_folders_that_hold_no_generator(tmp_path, started):
    assert "is neither a folder nor a Hub id in the local cache" in refusal(started, SDF, tmp_path / "no")
    (tmp_path / "empty").mkdir()
    sentence = refusal(started, SDF, tmp_path / "empty")
    assert f"start={tmp_path / 'empty'}: it holds neither a run (config.yaml) nor an exported" in sentence
    (tmp_path / "empty/config.yaml").write_text("seed: 0\n")
    assert "has no checkpoint: train first" in refusal(started, SDF, tmp_path / "empty")
    (tmp_path / "file.ply").mkdir()
    assert "holds neither a run" in refusal(started, SPLATS, tmp_path / "file.ply")


def test_another_text_encoder_is_refused(trained, started, tmp_path, prior):
    other = make_tiny_sd(tmp_path / "other", prediction_type="v_prediction", seed=1)
    config = load_run_config(SDF, [f"prior={other}"])
    bank, _ = build_bank(config, load_prior(config.prior, CPU), CPU)
    sentence = refusal(started, SDF, trained, EXACT, bank=bank)
    assert f"takes the text of {prior} (float32 " in sentence
    assert sentence.endswith(f": set text.encoder={prior}")
    # Which is the remedy: the generator's text then is that of the source.
    config = load_run_config(SDF, [f"prior={other}", f"text.encoder={prior}"])
    bank, _ = build_bank(config, load_prior(config.prior, CPU), CPU)
    assert ", copied" in started(SDF, trained, EXACT, bank=bank)[2][0]


def test_weights_that_are_not_finite(trained, exported, started, tmp_path):
    from safetensors.torch import load_file, save_file

    from amortized.checkpointing import file_digests

    folder = tmp_path / "broken"
    shutil.copytree(exported, folder)
    weights = load_file(folder / "model.safetensors")
    weights["grid.table"][5] = torch.nan
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["files"] = file_digests([folder / "model.safetensors"])
    (folder / "config.json").write_text(json.dumps(config))
    assert "grid.table has values that are not finite" in refusal(started, SDF, folder, EXACT)


def ply(path: Path, rows: np.ndarray, names: str = "x y z") -> Path:
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n"
    header += "".join(f"property float {name}\n" for name in names.split()) + "end_header\n"
    path.write_bytes(header.encode() + rows.astype("<f4").tobytes())
    return path


FILES = {
    "empty": (np.zeros((0, 3)), "x y z", "has 0 vertices, and 1 to 1,000,000 are allowed"),
    "too many": (np.zeros((1_000_001, 3)), "x y z", "has 1,000,001 vertices, and 1 to 1,000,000 are"),
    "no z": (np.zeros((3, 2)), "x y", "lacks the vertex properties z"),
    "half a splat": (np.zeros((3, 4)), "x y z opacity", "lacks the vertex properties f_dc_0, f_dc_1"),
    "NaN": (np.full((3, 3), np.nan), "x y z", "vertex 0 has a number that is not finite in x, y, z"),
    "too large": (np.full((3, 3), 10.0), "x y z", "100% of its splats is outside the ball of generator"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read(name, tmp_path, started):
    rows, names, expected = FILES[name]
    path = ply(tmp_path / "points.ply", rows, names)
    sentence = refusal(started, SPLATS, path)
    assert sentence.startswith(f"start={path}: ") and expected in sentence


def test_kinds_that_do_not_fit(tmp_path, trained, started, run, prior):
    path = ply(tmp_path / "points.ply", np.zeros((3, 3)))
    assert "points and splats start generator.name=splats, and generator.name=ingp" in refusal(
        started, SDF, path
    )
    assert refusal(
        started, SDF, trained, "generator.bounding_radius=0.4", "generator.sphere_radius=0.3"
    ).count("is outside the ball of generator.bounding_radius=0.4, at up to 0.")
    assert "is outside the ball of generator" in refusal(
        started, SPLATS, trained, "generator.bounding_radius=0.4", "generator.ball_radius=0.3"
    )
    arguments = command(prior, tmp_path / "density", DENSITY, f"start={trained}", "trainer.steps=1")
    assert run(*arguments).returncode == 0
    assert ", copied" in started(DENSITY, tmp_path / "density")[2][0]
    assert "which have no surface to place splats on" in refusal(started, SPLATS, tmp_path / "density")
    sentence = refusal(started, SDF, tmp_path / "density")
    assert "copied but not fitted" in sentence and "generator.geometry=density" in sentence


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["start=outputs/a"], "start=outputs/a starts a single object, but generator.name=hyper-ingp makes"),
        (["start="], "start"),
        (["start=a\0b"], "NUL"),
    ],
)
def test_settings_that_are_refused(overrides, expected, prior):
    with pytest.raises(ConfigError, match=expected):
        load_run_config("configs/quickstart.yaml", [f"prior={prior}", *overrides])
