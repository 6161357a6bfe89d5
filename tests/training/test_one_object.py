"""Training one object: it learns, and resumes bit for bit while its hash levels open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from amortized.encodings import HashGridConfig
from amortized.training import LossConfig, Trainer
from generators.environment import SharedHashEnvironmentConfig, WithEnvironment
from generators.ingp import INGPConfig
from tests.training.toy import interrupted_at, log_lines, make_trainer, weights_of

GRID = HashGridConfig(num_levels=3, log2_table_size=8, base_resolution=4, open_levels=(0.3, 1.0, 3.0, 0.9))


def trainer_of(folder: Path, geometry: str) -> Trainer:
    torch.manual_seed(3)
    generator = INGPConfig(geometry=geometry, grid=GRID, hidden=(8,)).build(3)
    environment = SharedHashEnvironmentConfig(grid=HashGridConfig(num_levels=2, log2_table_size=6))
    return make_trainer(
        folder,
        generator=WithEnvironment(generator, environment.build(3)),
        losses=LossConfig(eikonal=0.01 if geometry == "sdf" else 0.0, orient=0.01),
        prompts_per_process=1,
        views_per_prompt=2,
        steps=20,
    )


@pytest.mark.parametrize("geometry", ["sdf", "density"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, geometry):
    uninterrupted = trainer_of(tmp_path / "uninterrupted", geometry)
    start = {name: value.clone() for name, value in weights_of(uninterrupted).items()}
    uninterrupted.train(quiet=True)
    expected = weights_of(uninterrupted)
    assert any((expected[name] != value).any() for name, value in start.items())
    assert interrupted_at(trainer_of(tmp_path / "resumed", geometry), 13).train(quiet=True) == 13
    (stored,) = [path for path in list_checkpoints(tmp_path / "resumed/checkpoints") if "13" in path.name]
    # Step 13 trained with progress 12 / 20, halfway from 1 to 3 levels; the EMA is used with as many.
    assert read_part(stored, "ema")["generator.grid.num_open"].item() == 2
    resumed = trainer_of(tmp_path / "resumed", geometry)
    assert resumed.train(quiet=True) == 20
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert expected["ema.generator.grid.num_open"].item() == 3
    assert log_lines(tmp_path / "resumed") == log_lines(tmp_path / "uninterrupted")
