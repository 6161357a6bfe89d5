"""The fingerprint covers every number of the prior, its schedule and its scaling, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from amortized.priors import fingerprint_of, load_stable_diffusion
from tests.tiny_sd import make_tiny_sd


def test_it_is_reproducible_and_without_the_adapter(folder, tmp_path) -> None:
    prior = load_stable_diffusion(folder)
    fingerprint = fingerprint_of(prior)
    assert fingerprint == fingerprint_of(load_stable_diffusion(folder)) and len(fingerprint) == 18
    prior.add_adapter(rank=2, scale=1.0)
    assert fingerprint_of(prior) == fingerprint
    assert fingerprint_of(load_stable_diffusion(make_tiny_sd(tmp_path, seed=1))) != fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_number_counts(folder, dtype) -> None:
    """The last bit of any one number, and the order of two; layouts in memory do not count."""
    prior = load_stable_diffusion(folder, dtype=dtype)
    before, generator = fingerprint_of(prior), torch.Generator().manual_seed(0)
    for network in prior.modules():
        for value in list(network.parameters())[::7]:
            flat = value.data.view(-1)
            index = int(torch.randint(len(flat), (), generator=generator))
            entry = flat[index].clone()
            flat[index] = (
                torch.nextafter(entry, entry.new_tensor(9.0)) if dtype.itemsize > 2 else entry * 1.01 + 0.01
            )
            assert fingerprint_of(prior) != before
            flat[index] = entry
    weight = prior.unet.conv_in.weight.data
    weight[0], weight[1] = weight[1].clone(), weight[0].clone()
    assert fingerprint_of(prior) != before
    weight[0], weight[1] = weight[1].clone(), weight[0].clone()
    prior.unet.to(memory_format=torch.channels_last)
    assert fingerprint_of(prior) == before


@pytest.mark.parametrize(
    ("file", "changes", "same"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 0.0121}, False),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, False),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, False),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing", "clip_sample": True}, True),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, True),
        ("vae/config.json", {"scaling_factor": 0.2}, False),
        ("vae/config.json", {"shift_factor": 0.1}, False),
        ("vae/config.json", {"force_upcast": False}, True),
        ("unet/config.json", {"sample_size": 16}, False),
        ("unet/config.json", {"_name_or_path": "elsewhere"}, True),
    ],
)
def test_schedule_and_scaling_count(folder, tmp_path, file, changes, same) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changes))
    first, second = (fingerprint_of(load_stable_diffusion(each)) for each in (folder, copy))
    assert (first == second) == same


@pytest.mark.gpu
def test_it_is_the_same_on_a_gpu(folder) -> None:
    for dtype in (torch.float16, torch.float32):
        first, second = (
            fingerprint_of(load_stable_diffusion(folder, dtype=dtype, device=device))
            for device in ("cpu", "cuda")
        )
        assert first == second
