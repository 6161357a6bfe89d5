"""Whatever scheduler a prior's folder names, its betas give the alphas_cumprod of diffusers' own class."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from amortized.model_folders import read_prior_folder
from amortized.model_folders.prior_folder import SCHEDULERS
from amortized.priors.loading import _alphas_cumprod
from amortized.priors.schedule import SMALLEST
from tests.model_folders.families import copy_of, write

BETAS: list[dict[str, Any]] = [
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02},
    {"trained_betas": torch.linspace(0.001, 0.011, 500).tolist(), "num_train_timesteps": 500},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return copy_of("prior", tmp_path_factory.mktemp("prior"))


def supported(name: str) -> Iterator[Any]:
    """Schedulers of a class with all betas that it supports."""
    import diffusers

    kind = getattr(diffusers, name)
    for betas in BETAS:
        if betas.keys() <= inspect.signature(kind.__init__).parameters.keys():
            with warnings.catch_warnings(), suppress(NotImplementedError):
                warnings.simplefilter("ignore")
                yield kind(**betas)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"DPMSolverSDEScheduler"}))  # which needs torchsde
def test_alphas_cumprod_equal_those_of_diffusers(folder, name) -> None:
    count = 0
    for theirs in supported(name):
        write(folder / "scheduler/scheduler_config.json", theirs.to_json_string())
        files = read_prior_folder(folder)
        expected = theirs.alphas_cumprod
        torch.testing.assert_close(_alphas_cumprod(files), expected[expected > SMALLEST], rtol=0, atol=1e-7)
        assert files.schedule["prediction_type"] == theirs.config.prediction_type
        count += 1
    assert count >= 3
