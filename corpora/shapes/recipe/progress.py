"""Resumable training stages: state is saved atomically, and batches are a function of the step."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from amortized.files import atomic_path
from amortized.random import generator_for


class Ema:
    """Exponential moving average of a module's parameters, with a short warmup.

    Not `amortized.training`'s: corpora may not import training, and this one saves plain tensors by name.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Average in the parameters after step `step` (counted from 0)."""
        # The warmup of TensorFlow's ExponentialMovingAverage, which many trainers share.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.shadow[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of a module with their averages."""
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])


def run_stage(
    *,
    name: str,
    folder: Path,
    modules: nn.Module,
    steps: int,
    learning_rate: float,
    step_fn: Callable[[int], dict[str, float]],
    ema_decay: float = 0.999,
    save_every: int = 250,
    score_every: int = 0,
    score: Callable[[], dict[str, float]] | None = None,
    weight_decay: float = 0.01,
) -> dict[str, Any]:
    """Train `modules` for `steps`, end with their averaged weights in place, and return the last scores.

    Loads the state of an interrupted run from `folder`/`name`.pt if there is one, and ends with the same
    weights as an uninterrupted run. Logs to `folder`/`name`.jsonl.

    Args:
        step_fn: called with the step; accumulates gradients in the modules and returns numbers to log,
            "loss" among them.
        score: evaluates the averaged weights every `score_every` steps and at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, log_file = folder / f"{name}.pt", folder / f"{name}.jsonl"
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05, final_div_factor=100
    )
    ema, start, scores = Ema(modules, ema_decay), 0, {}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        ema.shadow, start, scores = state["ema"], state["step"], state["scores"]
    progress = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=10)
    for step in progress:
        optimizer.zero_grad(set_to_none=True)
        metrics = step_fn(step)
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(modules, step)
        done = step + 1
        if score is not None and score_every and (done % score_every == 0 or done == steps):
            live = {key: value.clone() for key, value in modules.state_dict().items()}
            ema.copy_to(modules)
            scores = score()
            modules.load_state_dict(live)
        if done % save_every == 0 or done == steps:
            _save(
                state_file,
                {
                    "modules": modules.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.shadow,
                    "schedule": schedule.state_dict(),
                    "step": done,
                    "scores": scores,
                },
            )
            line = {"step": done, **metrics, **scores}
            with log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            progress.write(json.dumps(line))
    ema.copy_to(modules)
    modules.requires_grad_(False).eval()
    return scores


def backward_in_halves(
    batch: int, half_fn: Callable[[slice], tuple[Tensor, dict[str, float]]]
) -> dict[str, float]:
    """Backpropagate the mean loss of a batch, each half in its own thread; return the averaged numbers.

    half_fn(rows) returns the mean loss of these rows and numbers to log. On two cores this is faster than
    one batch with two threads inside each of many small operators (0.87 s against 1.12 s, docs/log.md). The
    order of the halves does not matter: each gradient is a sum of two terms.
    """
    assert batch % 2 == 0, f"a batch of {batch} cannot be split into equal halves"

    def run(rows: slice) -> dict[str, float]:
        loss, numbers = half_fn(rows)
        (loss / 2).backward()
        return {"loss": loss.item(), **numbers}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (slice(0, batch // 2), slice(batch // 2, batch)))
    return {name: (first[name] + second[name]) / 2 for name in first}


def batch_indices(size: int, batch: int, *key: int | str) -> Tensor:
    """Draw indices [batch] below `size` with replacement; a function of the key."""
    return torch.randint(size, (batch,), generator=generator_for(*key))


def _save(path: Path, state: dict[str, Any]) -> None:
    """Save the state atomically."""
    with atomic_path(path) as partial:
        torch.save(state, partial)
