"""Methods are compared at equal denoiser calls, runs are reused, and tables average correctly."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from amortized.cameras import orbit
from amortized.commands.compose import RunConfig
from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.config import config_to_yaml, load_config
from amortized.guidance import METHODS, Guidance, calls_per_image, published
from amortized.guidance.timesteps import reference_timesteps
from amortized.priors import GaussianMixturePrior
from amortized.rendering import render_splats
from amortized.types import TextCondition
from benchmarks import (
    directions,
    diversity,
    guidance,
    mixture,
    one_object,
    plots,
    rendering,
    scaling,
    splats,
    steps,
    studies,
    timing,
    warm_start,
)
from corpora import open_corpus
from corpora.shapes.grammar import sentence, singles
from generators.hyper_ingp import HyperINGPConfig

ROOT = Path(__file__).resolve().parents[1]


def rows(*recalls: float) -> list[dict]:
    return [{"recall_at_1": recall, "iou": 0.5} for recall in recalls]


STUDY = studies.Study(
    title="two",
    variants={
        "asd": studies.Variant(preset="quickstart"),
        "sds": studies.Variant(preset="methods/sds", changes=("losses.eikonal=1",)),
    },
    columns=("recall_at_1", "iou"),
)


def test_the_table_averages_seeds_before_prompts_and_pairs_prompts():
    results = {"asd": [rows(1.0, 0.0), rows(0.5, 0.5)], "sds": [rows(1.0, 0.5)]}
    asd, sds = studies.table(STUDY, results)
    # Prompts average 0.75 and 0.25 over the seeds; a resampled mean lies between them.
    recall = asd["recall_at_1"]
    assert (recall.mean, recall.low, recall.high) == (0.5, 0.25, 0.75)
    assert asd["each seed"] == [0.5, 0.5] and sds["each seed"] == [0.75]
    # Both prompts gain the same: the paired interval has zero width.
    gain = sds["recall_at_1 - asd"]
    assert (gain.mean, gain.low, gain.high) == (0.25, 0.25, 0.25)
    head, _, first, second = timing.markdown([asd, sds]).splitlines()
    assert head == "| variant | recall_at_1 | iou | each seed | recall_at_1 - asd | iou - asd |"
    assert first == "| asd | 0.500 [0.250, 0.750] | 0.500 [0.500, 0.500] | 0.500, 0.500 |  |  |"
    assert second.startswith("| sds | 0.750 [0.500, 1.000] |") and second.count("|") == head.count("|")


def test_each_run_of_a_single_prompt_is_a_sample():
    results = {"asd": [rows(1.0, 0.0), rows(0.5, 0.5)], "sds": [rows(1.0, 0.0), rows(0.0, 0.0)]}
    asd, sds = studies.table(replace(STUDY, separate_prompts=("a cube", "a ball")), results)
    recall, gain = asd["recall_at_1"], sds["recall_at_1 - asd"]
    assert (recall.mean, recall.low, recall.high) == (0.5, 0.125, 0.875)  # of four values, 1, 0, 0.5 and 0.5
    assert (gain.mean, gain.low, gain.high) == (-0.25, -0.5, 0.0)  # of 0, 0, -0.5 and -0.5


@pytest.mark.parametrize("method", one_object.METHODS)
def test_single_objects_use_the_methods_as_tuned(method: str):
    """Whatever the representation: the guidance of the method's preset, and half its steps."""
    preset = "quickstart" if method == "asd" else f"methods/{method}"
    tuned = load_config(RunConfig, ROOT / f"configs/{preset}.yaml")
    for study in one_object.STUDIES.values():
        variant = study.variants[method]
        config = load_config(RunConfig, variant.path, [*variant.changes, "prompt=a cube"])
        assert config.guidance == tuned.guidance and config.trainer.steps == tuned.trainer.steps // 2


@pytest.mark.parametrize(
    ("warm", "saved"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9], 275),  # at the first evaluation, after 25 steps of 300
        ([0.1, 0.7, 0.9, 0.9, 0.9], 225),  # after 75 steps, halfway between 0.7 and 0.9
        ([0.1, 0.2, 0.3, 0.4, 0.8], 0),
        ([0.1, 0.2, 0.3, 0.4, 0.6], 0),
    ],
)
def test_steps_saved_by_a_warm_start(warm: list[float], saved: float):
    cold = [{"iou": value} for value in (0.1, 0.2, 0.3, 0.4, 0.8)]
    pair = warm_start.Pair(warm=[{"iou": value} for value in warm], cold=cold)
    assert warm_start.steps_saved(pair, "iou") == pytest.approx(saved)


def test_a_run_of_a_preset_that_has_changed_since_is_refused(tmp_path):
    preset, folder = str(ROOT / "configs/quickstart.yaml"), tmp_path / "run"
    job = studies.Job(folder=folder, arguments=(preset, "seed=3", f"output={folder}"))
    studies.check_settings(job)  # the folder does not exist yet
    folder.mkdir()
    saved = load_config(RunConfig, Path(preset), job.arguments[1:])
    (folder / "config.yaml").write_text(config_to_yaml(saved))
    studies.check_settings(job)
    (folder / "config.yaml").write_text(config_to_yaml(replace(saved, seed=4)))
    with pytest.raises(ValueError, match="differ from quickstart.yaml's current ones: remove it, or"):
        studies.run(job, lambda script, arguments: (0, ""))


def test_every_seed_of_every_variant_runs_once(tmp_path, monkeypatch):
    commands = []

    def launch(script: str, arguments: Sequence[str]) -> tuple[int, str]:
        commands.append((script, *arguments))
        if script == "evaluate":
            folder = Path(arguments[0]) / "evaluation"
            folder.mkdir(parents=True)
            results = rows(float(folder.parent.name.startswith("sds") and arguments[0].endswith("seed4")))
            (folder / "results.json").write_text(json.dumps({"prompts": results}))
        return 0, ""

    monkeypatch.setattr(studies, "launcher", lambda workers: nullcontext(launch))
    arguments = {"variants": STUDY.variants, "seeds": [3, 4], "folder": tmp_path, "workers": 2}
    for _ in range(2):
        results = studies.run_study(STUDY, **arguments)
        assert results == {"asd": [rows(0.0), rows(0.0)], "sds": [rows(0.0), rows(1.0)]}
        assert len(commands) == 8
    trained = [command for command in commands if command[0] == "train"]
    assert (str(ROOT / "configs/methods/sds.yaml"), "losses.eikonal=1", "seed=4") in [c[1:4] for c in trained]
    separate = replace(STUDY, separate_prompts=("a cube", "a ball"))
    jobs = studies.jobs_of(separate, "asd", [7], tmp_path)
    assert [job.arguments[-2] for job in jobs[0]] == ["prompt=a cube", "prompt=a ball"]
    assert len({job.folder for job in jobs[0]}) == 2


def test_a_collapsed_run_is_evaluated_at_its_last_good_checkpoint(tmp_path):
    def launch(script: str, arguments: Sequence[str]) -> tuple[int, str]:
        if script == "evaluate":
            (tmp_path / "evaluation").mkdir()
            (tmp_path / "evaluation/results.json").write_text(json.dumps({"prompts": rows(0.1)}))
        return int(script == "train"), "emptied"

    job = studies.Job(folder=tmp_path, arguments=("preset.yaml",))
    with pytest.raises(RuntimeError, match="emptied"):  # there is no checkpoint
        studies.run(job, launch)
    (tmp_path / "checkpoints/step_000100").mkdir(parents=True)
    assert studies.run(job, launch) == rows(0.1)


def test_a_failing_run_raises_with_its_error_output(tmp_path):
    job = studies.Job(folder=tmp_path, arguments=("preset.yaml",))
    with pytest.raises(RuntimeError, match="train.py .* failed:\nerror: no such key"):
        studies.run(job, lambda script, arguments: (2, "error: no such key"))


def test_scripts_run_in_processes_that_share_the_cores():
    with studies.launcher(1) as launch:
        status, error = launch("train", ("configs/no-such-preset.yaml",))
        assert status == 2 and "no-such-preset" in error
        assert launch("evaluate", ("--help",)) == (0, "")


@pytest.mark.parametrize("method", METHODS)
def test_presets_of_methods_cost_what_the_quickstart_costs(method: str):
    def cost(config: RunConfig) -> float:
        return config.trainer.steps * calls_per_image(config.guidance, config.views.num_negatives)

    quickstart = load_config(RunConfig, ROOT / "configs/quickstart.yaml")
    config = load_config(RunConfig, guidance.PRESETS[method].path)
    assert cost(config) == pytest.approx(cost(quickstart), rel=0.02)
    assert config.trainer.prompts_per_process == quickstart.trainer.prompts_per_process
    for part in ("noise", "reference", "null", "divide_by_scale"):
        assert getattr(config.guidance, part) == getattr(published(method), part), part


def test_every_variant_of_every_study_is_a_valid_run():
    for study in (*guidance.STUDIES.values(), replace(STUDY, variants=guidance.DSD_ABLATIONS)):
        for variant in study.variants.values():
            load_config(RunConfig, variant.path, [*variant.changes, "output=o"])
    assert set(guidance.STUDIES["corpus"].variants) == set(guidance.STUDIES["single"].variants) == {*METHODS}


def test_generated_sentences_differ():
    texts = list(scaling.sentences(230_000))
    assert len(set(texts)) == 230_000 and max(len(text.split()) for text in texts) < 24


def test_plots_are_drawn(tmp_path):
    results = {"asd": [rows(1.0, 0.0)], "sds": [rows(1.0, 0.5)]}
    plots.intervals(studies.table(STUDY, results), tmp_path / "a.png", "two")
    row = {"state": "ball", "method": "asd", "scale": 1.5, "0.1": 0.2, "0.9": 0.6}
    plots.lines([row], (0.1, 0.9), tmp_path / "b.png", "directions")
    assert all(Image.open(tmp_path / name).size[0] > 300 for name in ("a.png", "b.png"))


def test_tables_are_markdown():
    assert timing.markdown([{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | x |",
        "| 2.5 | y |",
    ]


def test_saved_activations_are_counted_once_and_without_weights():
    layer, x = torch.nn.Linear(8, 8), torch.randn(100, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        hidden = layer(x).sigmoid()  # saves x for the weight's gradient, and its output
        return hidden * hidden  # saves hidden twice: counted once

    assert steps.graph_bytes(forward, layer.parameters()) == 2 * 100 * 8 * 4


def test_true_scenes_equal_the_corpus_s_ground_truth():
    corpus = open_corpus("shapes16")
    truths = [corpus.truth(corpus[i]) for i in (0, 5)]
    points = torch.rand(2, 20, 3) - 0.5
    sdf, rgb = rendering.TrueScene(truths).sdf_and_albedo(points)
    for p in range(2):
        assert torch.equal(sdf[p], truths[p].sdf(points[p])) and torch.equal(
            rgb[p], truths[p].color(points[p])
        )
    assert rendering.untrained(HyperINGPConfig(hidden=(4,))).sdf(points[:1]).shape == (1, 20)
    assert rendering.PUBLIC_PER_RAY * 64**2 == 3_686_400


def test_splats_are_compared_with_the_same_images_by_autograd():
    scene = splats.shell(2, 100, torch.device("cpu"))
    cameras = orbit(2, 2, elevation_deg=20, distance=2.6, fovy_deg=40)
    image = render_splats(scene, cameras, 16, 16, background=torch.zeros(2, 2, 3), training=True)
    twin = splats.by_autograd(scene, cameras, 16).view(2, 2, 16, 16, 5)
    torch.testing.assert_close(twin[..., :3], image.rgb)
    torch.testing.assert_close(twin[..., 4], image.opacity)
    row = next(splats.rows(torch.device("cpu"), (16,), repeats=1))
    assert row["pairs"] > 0 and row["graph, MB"] < row["autograd's graph, MB"]


def test_the_mixture_distinguishes_methods(monkeypatch):
    """SDS without guidance ends at the component; the sampler scatters around it with the right spread."""
    monkeypatch.setattr(mixture, "CALLS", 400)
    monkeypatch.setattr(mixture, "SCHEDULES", {"plain": {"guidance_scale": 1.0, "t_min": 0.05, "t_max": 0.5}})
    monkeypatch.setattr(mixture, "METHODS", {name: METHODS[name] for name in ("sds", "dsd")})
    sds, dsd, sampler = mixture.measure()
    assert sds["method"] == "sds" and sds["steps"] == 400 and dsd["method"] == "dsd"
    distances = [float(distance) for distance in sds["one: distance / s"].split(", ")]
    assert len(distances) == 3 and max(distances) < 3 and sds["two: at neither"] == 0
    # 36 dimensions of unit variance: about 6 from the mean.
    assert 4.5 < float(sampler["one: distance / s"]) < 7 and sampler["one: bias / s"] < 1.5
    assert 0.3 < sampler["two: at the first"] < 0.7


def test_a_mixture_s_reference_model_is_new_and_learns_faster_when_tamed():
    first, second = (mixture.guidance_for("vsd", schedule) for schedule in ({}, mixture.TAMED))
    assert (first.learning_rate, second.learning_rate) == (1e-4, 0.02) and first.prior is not second.prior


def test_directions_are_cosines_with_the_true_residual():
    means = torch.stack([torch.full((1, 2, 2), -2.0), torch.full((1, 2, 2), 2.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.05, 0.05]))
    pooled = torch.tensor([[1e-4, 1.0]])
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))
    sds = Guidance(prior, published("sds", guidance_scale=1.0, t_min=0.9, t_max=0.9))
    latents, prior_text = torch.zeros(3, 1, 2, 2), plain_text(expand_row(text, 3), text)
    cosines = directions.cosines(sds, latents, means[1:].expand(3, -1, -1, -1), prior_text, None)
    assert cosines.shape == (3,) and cosines.min() > 0.99
    cosines = directions.cosines(sds, latents, means[:1].expand(3, -1, -1, -1), prior_text, None)
    assert cosines.max() < -0.99


def test_directions_include_the_shift_of_a_method():
    """At a single timestep the shift starts at the method's lowest timestep: ASD does not become CSD."""
    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml")
    for t in (0.4, 0.9):
        at = directions.at_time(config.guidance, 1.5, t)
        times = torch.tensor([int(1000 * t)])
        shifted = reference_timesteps(
            at, times, torch.tensor([0.9]), low=int(times), num_timesteps=1000, progress=0.5
        )
        assert at.t_min == at.t_max == t and at.guidance_scale == 1.5 and int(shifted) > int(times)


class Names:
    """A CLIP scorer that reads the index of the object's name from the first pixel."""

    names = [sentence(description) for description in singles()]

    def encode_texts(self, texts):
        return torch.eye(64)[[self.names.index(text) for text in texts]]

    def encode_images(self, images):
        return torch.eye(64)[images[:, 0, 0, 0].long()]


def test_right_assets_and_their_different_outcomes_are_counted():
    classes = [Names.names.index(name) for name in ("a red cube", "a blue cube", "a red cube", "a red cone")]
    images = torch.tensor(classes).float()[:, None, None, None].expand(4, 1, 1, 3)
    assert diversity.score([{"a cube": images}], Names()) == {"outcomes": [2], "right": [0.75]}
    one = images[:1].expand(4, -1, -1, -1)
    scores = diversity.score([{"a cube": images, "something red": one}, {"a cube": one}], Names())
    assert scores == {"outcomes": [2, 1, 1], "right": [0.75, 1.0, 1.0]}
    assert diversity.allows("something red", "a red cone") and not diversity.allows("a cube", "a red cone")
