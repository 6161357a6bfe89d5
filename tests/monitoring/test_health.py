"""Warnings, logs and traces of a run."""

from __future__ import annotations

import json
import random
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from amortized.monitoring import Stopwatch
from amortized.monitoring.health import LossSpikes, Stragglers
from tests.training.toy import make_trainer


def test_a_spike_is_reported_once_and_noise_is_not():
    rng, spikes, warnings = random.Random(0), LossSpikes(), {}
    for step in range(1, 1001):
        loss = rng.lognormvariate(0.0, 0.3) if step not in (500, 510, 700) else 20.0
        warnings[step] = spikes(step, loss)
    reported = {step: text for step, text in warnings.items() if text}
    assert reported.keys() == {500, 700}
    assert reported[500].startswith("step 500: loss spike: 20, the median of the last 100 was ")


def test_constant_losses_have_no_spikes():
    spikes = LossSpikes()
    assert not any(spikes(step, 1.0 + 1e-4 * (step % 2)) for step in range(300))
    assert spikes(301, 1.1)


def test_a_straggling_rank_is_named():
    stragglers, rng = Stragglers(), random.Random(0)
    warnings = [stragglers(step, [rng.uniform(0.9, 1.1), rng.uniform(1.8, 2.2), 1.0]) for step in range(60)]
    assert [step for step, text in enumerate(warnings) if text] == [19]
    assert "rank 1 is a straggler" in warnings[19]
    even = Stragglers()
    assert not any(even(step, [rng.uniform(0.9, 1.2) for _ in range(4)]) for step in range(300))
    alone = Stragglers()
    assert not any(alone(step, [rng.uniform(0, 9)]) for step in range(100))


def test_a_stopwatch_sums_sections_of_the_same_name():
    watch = Stopwatch(torch.device("cpu"))
    for name, duration in (("a", 0.02), ("b", 0.05), ("a", 0.03)):
        time.sleep(duration)
        watch(name)
    seconds = watch.seconds()
    assert list(seconds) == ["a", "b"] and 0.05 <= seconds["a"] < 0.2 and 0.05 <= seconds["b"] < 0.2


def test_a_run_logs_to_files_tracker_and_trace(tmp_path, monkeypatch):
    """Numbers, times and events in files; the numbers in a tracker too; a trace of the chosen steps."""
    logged = []
    tracker = SimpleNamespace(
        init=lambda **given: logged.append(given),
        log=lambda values, step: logged.append((step, values["loss"])),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    changes = {
        "steps": 4,
        "monitoring": {"tracker": "trackio", "profile": (1, 3)},
        "generator": "with-environment",
    }
    make_trainer(tmp_path, **changes).train(notes=["a note"], quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    timed = {"time/batch", "time/forward", "time/backward", "time/update"}
    speed = {"speed/prompts_per_second", "speed/device_seconds_per_prompt", "memory_gib"}
    norms = {"gradient_norm", "gradient_norm/generator", "gradient_norm/surroundings"}
    assert timed | speed | norms <= set(lines[0])
    last = lines[-1]
    assert last["views_per_prompt"] == pytest.approx(16 / 3) and last["memory_gib"] > 0.1
    parts = last["gradient_norm/generator"] ** 2 + last["gradient_norm/surroundings"] ** 2
    assert last["gradient_norm"] ** 2 == pytest.approx(parts, rel=1e-5)
    step_seconds = 4 / last["speed/prompts_per_second"]
    assert step_seconds == pytest.approx(4 * last["speed/device_seconds_per_prompt"], rel=1e-6)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["note"] for event in events[:1]] == ["a note"] and events[0]["time"].endswith("+00:00")
    assert "1 processes, ddp, 4 prompts per step" in events[1]["note"]
    assert logged[0]["name"] == tmp_path.name
    assert logged[1:] == [*((line["step"], line["loss"]) for line in lines), "finished"]
    trace = json.loads((tmp_path / "profile/steps_1_3.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2


def test_a_missing_tracker_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="monitoring.tracker=wandb is not installed: pip install wandb"):
        make_trainer(tmp_path, steps=1, monitoring={"tracker": "wandb"}).train(quiet=True)
