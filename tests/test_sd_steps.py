"""Steps of a tiny Stable Diffusion: every implementation is measured, and a failing case is reported."""

import json

import pytest
import torch

from benchmarks import sd_steps
from benchmarks.public_baseline import PER_PIXEL
from benchmarks.sd_steps import Case

CPU = torch.device("cpu")
DIFFUSION, MULTI_VIEW = sd_steps.PRESETS
PARTS = ["generator", "render", "encode", "denoise", "backward", "update"]


def test_the_cases_cover_every_generator_and_both_priors():
    cases = list(sd_steps.cases((1, 4, 8)))
    # Each generator's public baseline and three sizes, MVDream's three sizes, and one case without graphs.
    assert len(cases) == len(set(cases)) == 3 * 4 + 3 + 1
    for generator in sd_steps.TINY:
        graphed = [
            case
            for case in cases
            if (case.prior, case.generator, case.graphs) == (DIFFUSION, generator, True)
        ]
        assert [(case.public, case.prompts) for case in graphed] == [
            (True, 1),
            (False, 1),
            (False, 4),
            (False, 8),
        ]
    assert {case.generator for case in cases if case.prior == MULTI_VIEW} == {"hyper-ingp"}


@pytest.mark.parametrize("case", [case for case in sd_steps.cases((1, 4, 8)) if case.prompts == 4])
def test_a_gpu_gets_the_published_sizes(case: Case):
    config = case.config(torch.device("cuda"))
    assert config.generator == type(config.generator)(bounding_radius=sd_steps.PUBLIC_RADIUS)
    assert config.prior.dtype == "float16" and config.trainer.render_size == 64
    views = 4 if case.prior == MULTI_VIEW else 1
    assert (config.trainer.prompts_per_process, config.trainer.views_per_prompt) == (4, views)


@pytest.mark.parametrize(
    "case",
    [
        Case(prior=DIFFUSION, generator="hyper-ingp", prompts=1, public=True),
        Case(prior=DIFFUSION, generator="3dconv-net", prompts=2),
        Case(prior=MULTI_VIEW, generator="hyper-ingp", prompts=2),
    ],
)
def test_a_case_is_measured_in_total_and_by_part(case: Case):
    row = sd_steps.row_of(case, sd_steps.prior_of(case.prior, CPU), CPU, repeats=1)
    assert "error" not in row, row
    images = case.prompts * (4 if case.prior == MULTI_VIEW else 1)
    assert row["images"] == images and row["finite"]
    assert all(row[f"{part}, ms"] > 0 for part in PARTS)
    assert row["step, ms"] > 0 and row["images/s"] > 0 and row["peak, GiB"] > 0
    if case.public:
        assert row["evaluations per image"] == PER_PIXEL * 16**2
    else:
        assert 0 < row["evaluations per image"] < PER_PIXEL * 16**2 / 10


def test_an_error_is_reported_in_the_case_s_row(monkeypatch: pytest.MonkeyPatch):
    case = Case(prior=DIFFUSION, generator="hyper-ingp", prompts=1)
    for error, message in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "out of memory: CUDA"),
        (RuntimeError("a kernel\nmore"), "RuntimeError: a kernel"),
        (RuntimeError(), "RuntimeError"),
    ):

        def fail(*_, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(sd_steps, "assemble", fail)
        assert sd_steps.row_of(case, None, CPU, 1)["error"].startswith(message)


def test_speed_is_compared_with_the_same_generator_s_public_baseline():
    public: dict = {}
    rows = [
        {
            "generator": "a",
            "implementation": "public",
            "prior": DIFFUSION,
            "images/s": 2.0,
            "step, ms": 500.0,
        },
        {
            "generator": "a",
            "implementation": "ours",
            "prior": DIFFUSION,
            "images/s": 9.0,
            "step, ms": 6.0,
        },
        {"generator": "b", "implementation": "ours", "prior": DIFFUSION, "images/s": 9.0, "step, ms": 6.0},
        {"generator": "a", "implementation": "ours", "prior": MULTI_VIEW, "images/s": 9.0, "step, ms": 6.0},
        {"generator": "a", "implementation": "ours", "prior": DIFFUSION, "error": "out of memory"},
    ]
    compared = [sd_steps.compare(row, public) for row in rows]
    assert [row["images/s / public"] for row in compared] == [1.0, 4.5, None, None, None]


def test_steps_are_compared_with_their_floor(tmp_path):
    counted = tmp_path / "roofline.json"
    products = {"flops": 8e12, "flops_float32": 0.0, "traffic": 1e9}
    moved = {"flops": 1e9, "flops_float32": 0.0, "traffic": 12e9}
    case = {"prior": "sd21", "generator": "a", "prompts": 4, "parts": {"denoiser": products, "render": moved}}
    counted.write_text(json.dumps([case]))
    speeds = {"float16, TFLOP/s": 800.0, "float32, TFLOP/s": 400.0, "copy, TB/s": 3.0}
    row = {"prior": DIFFUSION, "generator": "a", "prompts": 4, "implementation": "ours", "step, ms": 28.0}
    other, public = row | {"prompts": 8}, row | {"implementation": "public"}
    sd_steps.add_floors([row, other, public], counted, speeds)
    assert row["floor by part, ms"] == {"denoiser": 10.0, "render": 4.0}
    assert row["floor, ms"] == 14.0 and row["step / floor"] == 2.0
    assert "floor, ms" not in other | public
    sd_steps.add_floors([other], tmp_path / "missing.json", speeds)
    assert "floor, ms" not in other
