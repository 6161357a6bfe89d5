"""The comparison of methods: equal calls, nothing done twice, and a table that averages right."""

import json
from pathlib import Path

import pytest
import torch

from amortized import config as settings
from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.guidance import Guidance, calls_per_image, published
from amortized.priors import GaussianMixturePrior
from amortized.types import TextCondition
from benchmarks import directions, diversity, methods, mixture, rendering, steps, timing
from corpora import open_corpus
from corpora.shapes.grammar import sentence, singles
from generators.hyper_ingp import HyperINGPConfig
from train import RunConfig

ROOT = Path(__file__).resolve().parents[1]


def rows(*recalls: float) -> list[dict]:
    return [dict.fromkeys(methods.COLUMNS, 0.5) | {"recall_at_1": recall} for recall in recalls]


def test_the_table_averages_seeds_before_prompts():
    found = {"asd": [rows(1.0, 0.0), rows(0.5, 0.5)], "sds": [rows(1.0, 1.0)]}
    head, rule, asd, sds = methods.table(found).splitlines()
    assert head.count("|") == rule.count("|") == asd.count("|") == sds.count("|")
    # Prompts average 0.75 and 0.25 over the seeds; a mean of two such prompts can be no further out.
    assert asd.startswith("| asd | 0.500 [0.250, 0.750] | 0.500 [0.500, 0.500] |")
    assert asd.endswith("| 0.500, 0.500 |") and sds.endswith("| 1.000 |")


def test_every_method_gets_the_same_denoiser_calls_and_is_run_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []

    def pretend(command: list[str], check: bool) -> None:
        commands.append(command[1:])
        if "evaluate.py" in command:
            folder = Path(command[-1]) / "evaluation"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps({"prompts": rows(0.25)}))

    monkeypatch.setattr(methods.subprocess, "run", pretend)
    preset, changed = ROOT / "configs/quickstart.yaml", ["losses.eikonal=1"]
    for method, num_steps in [("asd", 400), ("sds", 600), ("csd", 600), ("asd-no-shift", 400), ("vsd", 300)]:
        for _ in range(2):
            found = methods.run(preset, method, 3, 1200.0, changed, 1, 16)
            assert found == rows(0.25)
        train, evaluation = commands
        assert f"trainer.steps={num_steps}" in train and "seed=3" in train and "losses.eikonal=1" in train
        assert "trainer.prompts_per_process=16" in train
        assert evaluation == ["evaluate.py", str(methods.folder_of(preset, method, 3, changed))]
        commands.clear()
    methods.run(preset, "asd", 4, 1200.0, [], 2, 8)
    for command, script in zip(commands, ("train.py", "evaluate.py"), strict=True):
        assert command[:4] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        assert command[4] == script
    assert len({methods.folder_of(preset, "asd", 4, o) for o in ([], ["a=1"], ["a=2"], ["a=1", "b=2"])}) == 4


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_is_one_of_the_preset(name: str):
    config = settings.load(RunConfig, ROOT / "configs/quickstart.yaml", methods.METHODS[name])
    assert 1 < calls_per_image(config.guidance) < 20


def test_processes_share_the_prompts_evenly(monkeypatch, capsys):
    asked = []

    def pretend(*arguments) -> list[dict]:
        asked.append(arguments)
        return rows(0.5)

    monkeypatch.setattr(methods, "run", pretend)
    monkeypatch.setattr(
        methods.sys, "argv", ["methods", "--methods", "csd", "--seeds", "7", "--processes", "2"]
    )
    methods.main()
    assert asked == [(Path("configs/quickstart.yaml"), "csd", 7, 1800, [], 2, 8)]
    monkeypatch.setattr(methods.sys, "argv", ["methods", "--processes", "3"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "3 processes cannot share 16 prompts evenly" in capsys.readouterr().err


def test_tables_are_markdown():
    assert timing.markdown([{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]).splitlines() == [
        "| a | b |", "| --- | --- |", "| 1 | x |", "| 2.5 | y |",
    ]  # fmt: skip


def test_memory_of_a_graph_is_counted_once_and_without_weights():
    layer, x = torch.nn.Linear(8, 8), torch.randn(100, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        hidden = layer(x).sigmoid()  # keeps x for the weight's gradient, and itself
        return hidden * hidden  # keeps hidden twice: counted once

    assert steps.graph_bytes(forward, layer.parameters()) == 2 * 100 * 8 * 4


def test_true_scenes_are_what_the_corpus_knows():
    corpus = open_corpus("shapes16")
    truths = [corpus.truth(corpus[i]) for i in (0, 5)]
    points = torch.rand(2, 20, 3) - 0.5
    sdf, rgb = rendering.TrueScene(truths).sdf_and_radiance(points)
    for p in range(2):
        assert torch.equal(sdf[p], truths[p].sdf(points[p])) and torch.equal(
            rgb[p], truths[p].colour(points[p])
        )
    assert rendering.untrained(HyperINGPConfig(hidden=(4,))).sdf(points[:1]).shape == (1, 20)
    assert rendering.PUBLIC_PER_RAY * 64**2 == 3_686_400


def test_the_mixture_tells_methods_apart(monkeypatch):
    """SDS without guidance ends at the component; the sampler scatters around it as it should."""
    monkeypatch.setattr(mixture, "CALLS", 400)
    monkeypatch.setattr(mixture, "SCHEDULES", {"plain": {"guidance_scale": 1.0, "t_min": 0.05, "t_max": 0.5}})
    monkeypatch.setattr(mixture, "METHODS", ("sds", "dsd"))
    sds, dsd, sampler = mixture.measure()
    assert sds["method"] == "sds" and sds["steps"] == 400 and dsd["method"] == "dsd"
    assert sds["one: distance / s"] < 3 and sds["two: at neither"] == 0
    # 36 dimensions of unit variance: about 6 from the mean.
    assert 4.5 < sampler["one: distance / s"] < 7 and sampler["one: bias / s"] < 1.5
    assert 0.3 < sampler["two: at the first"] < 0.7


def test_directions_are_cosines_with_the_true_residual():
    means = torch.stack([torch.full((1, 2, 2), -2.0), torch.full((1, 2, 2), 2.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.05, 0.05]))
    pooled = torch.tensor([[1e-4, 1.0]])
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))
    guidance = Guidance(prior, published("sds", guidance_scale=1.0, t_min=0.9, t_max=0.9))
    latents, told = torch.zeros(3, 1, 2, 2), plain_text(expand_row(text, 3), text)
    found = directions.cosines(guidance, latents, means[1:].expand(3, -1, -1, -1), told, None)
    assert found.shape == (3,) and found.min() > 0.99
    found = directions.cosines(guidance, latents, means[:1].expand(3, -1, -1, -1), told, None)
    assert found.max() < -0.99


class Names:
    """A judge that reads the name of what is shown from the first pixel."""

    names = [sentence(description) for description in singles()]

    def encode_texts(self, texts):
        return torch.eye(64)[[self.names.index(text) for text in texts]]

    def encode_images(self, images):
        return torch.eye(64)[images[:, 0, 0, 0].long()]


def test_outcomes_are_counted_and_those_that_the_prompt_allows():
    shown = [Names.names.index(name) for name in ("a red cube", "a blue cube", "a red cube", "a red cone")]
    images = torch.tensor(shown).float()[:, None, None, None, None].expand(4, 2, 1, 1, 3)
    found = diversity.score({"a cube": images}, Names())
    assert found == {"outcomes": "3.00 [3.00, 3.00]", "right": "0.75 [0.75, 0.75]"}
    found = diversity.score(
        {"a cube": images, "something red": images[:1].expand(4, -1, -1, -1, -1)}, Names()
    )
    assert found["outcomes"].startswith("2.00 ") and found["right"].startswith("0.88 ")
    assert diversity.allows("something red", "a red cone") and not diversity.allows("a cube", "a red cone")
