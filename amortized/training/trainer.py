"""The training loop: one step on one screen, and the care around it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from amortized.cameras import orbit
from amortized.conditioning import TextBank
from amortized.guidance import Guidance
from amortized.media import save_grid
from amortized.rendering import RendererConfig, render
from amortized.training.checkpoint import TrainingState, list_checkpoints, load_checkpoint, save_checkpoint
from amortized.training.distributed import World
from amortized.training.logs import RunLog
from amortized.training.losses import LossConfig, regularization
from amortized.training.optim import Ema, OptimizerConfig, build_optimizer, set_learning_rate
from amortized.training.sampler import Batch, Sampler, batch_digest, slots_of
from amortized.training.schedules import Schedule, check_schedule, geometric_at, value_at
from amortized.types import Prompt


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, how much at once, and what is kept."""

    steps: int = 1000
    prompts_per_process: int = 1  # prompts in one forward pass of one process
    views_per_prompt: int = 1
    accumulation: int = 1  # forward passes per optimizer step
    render_size: int = 64  # px, of training renders
    sharpness: Schedule = 30.0  # k of the density, 1 / length; schedules interpolate its logarithm
    ema_decay: float | None = None  # of averaged weights, which evaluation then prefers
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 1
    preview_every: int = 500
    preview_prompts: int = 16
    # The object has gone where mean opacity stays under `min_opacity` for `patience` steps.
    min_opacity: float = 0.005
    patience: int = 50

    def __post_init__(self) -> None:
        for name in (
            "steps", "prompts_per_process", "views_per_prompt", "accumulation", "render_size",
            "checkpoint_every", "keep_checkpoints", "log_every", "preview_every", "preview_prompts", "patience",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        check_schedule("trainer.sharpness", self.sharpness, positive=True)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay must lie in (0, 1) or be null, got {self.ema_decay}")
        if not 0 <= self.min_opacity < 1:
            raise ValueError(f"trainer.min_opacity must lie in [0, 1), got {self.min_opacity}")


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, and what the last good checkpoint is."""


class Trainer:
    """Trains a generator in `folder`. Settings are in configs, state in `TrainingState` and a step."""

    def __init__(
        self, *, config: TrainerConfig, optimizer: OptimizerConfig, losses: LossConfig, renderer: RendererConfig,
        world: World, generator: nn.Module, guidance: Guidance, bank: TextBank, sampler: Sampler,
        prompts: Callable[[int], Prompt], folder: Path,
    ) -> None:
        self.config, self.optimizer_config, self.losses = config, optimizer, losses
        self.renderer, self.world, self.guidance, self.bank = renderer, world, guidance, bank
        self.sampler, self.prompts, self.folder = sampler, prompts, folder
        ema = None if config.ema_decay is None else Ema(generator, config.ema_decay)
        self.ema = ema
        self.state = TrainingState(
            generator=generator, ema=None if ema is None else ema.module,
            optimizer=build_optimizer(optimizer, generator),
        )
        ids = [world.device.index] if world.device.type == "cuda" else None
        self.generator = generator if world.size == 1 else DistributedDataParallel(generator, device_ids=ids)
        self.slots = slots_of(world.rank, world.size, config.accumulation, config.prompts_per_process)
        self.slots_per_step = world.size * config.accumulation * config.prompts_per_process

    # ---- the loop -------------------------------------------------------------------------

    def train(self, *, quiet: bool = False) -> int:
        """Train to the last step or to a signal; returns the step reached. Goes on from the newest
        checkpoint in the folder, if there is one.

        Raises TrainingStopped on a non-finite loss or an emptied scene.
        """
        step, stop, pending = self._restore(), False, None
        log = RunLog(self.folder, start=step, steps=self.config.steps, quiet=quiet) if self.world.is_main else None
        watch = _Watch(self, log)
        try:
            with _signals() as interrupted:
                while step < self.config.steps and not stop:
                    record = self._step(step, interrupted())
                    step += 1
                    # A step's numbers are read one step later, so that the host never waits within it.
                    stop = pending is not None and watch(pending)
                    pending = record
                    if stop or step % self.config.checkpoint_every == 0 or step == self.config.steps:
                        stop = watch(pending) or stop  # what is saved is known to be good
                        pending = None
                        self._save(step)
                    if step % self.config.preview_every == 0 or step == self.config.steps:
                        self._preview(step)
        finally:
            watch.close()
        return step

    def _step(self, step: int, interrupted: bool) -> _Record:
        """One optimizer step on the global batch of `step`, counted from 0."""
        progress = step / self.config.steps
        set_learning_rate(self.state.optimizer, self.optimizer_config, step, self.config.steps)
        self.state.optimizer.zero_grad(set_to_none=True)
        parts, digests = [], []
        for part, slots in enumerate(self.slots):
            batch = self.sampler.batch(step, slots, self.slots_per_step)
            last = part == len(self.slots) - 1
            with nullcontext() if last or self.world.size == 1 else self.generator.no_sync():
                terms = self._loss(batch, progress)
                (terms["loss"] / len(self.slots)).backward()
            parts.append({name: value.detach() for name, value in terms.items()})
            digests.append(batch.digests)
        limit = self.optimizer_config.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.state.generator.parameters(), limit)
        # Fused optimizers skip the update on the device where this is 1: weights stay finite without a wait.
        self.state.optimizer.found_inf = (~norm.isfinite()).float()
        self.state.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.state.generator, step)
        mean = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        mean |= {"gradient_norm": norm, "interrupted": norm.new_tensor(float(interrupted))}
        values = torch.stack([value.float() for value in mean.values()])
        return _Record(step + 1, list(mean), self.world.mean(values), torch.cat(digests))

    def _loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The loss of one batch and its terms, scalars: text -> scene -> images -> latents -> guidance."""
        device = self.world.device
        texts = [self.prompts(index).text for index in batch.prompt_indices]
        cameras = _to(batch.cameras, device)
        scene = self.generator(self.bank.get(texts))
        size = self.config.render_size
        image = render(
            scene, cameras, size, size, config=self.renderer, background=batch.background.to(device),
            sharpness=geometric_at(self.config.sharpness, progress), training=True,
            u=batch.stratification.to(device), want_normal=value_at(self.losses.eikonal, progress) > 0,
        )
        latents = self.guidance.prior.encode(image.rgb.flatten(0, 1))
        taught = self.guidance(
            latents, self.bank.views(texts, batch.cameras), _to(batch.draws, device), progress, cameras
        )
        terms = {"guidance": taught.loss, **regularization(image, self.losses, progress)}
        return {
            "loss": sum(terms.values()), **terms, "opacity": image.opacity.detach().mean(),
            **{f"guidance/{name}": value for name, value in taught.metrics.items()},
            "denoiser_calls": taught.loss.new_tensor(float(taught.num_denoiser_calls)),
        }

    # ---- around the step ------------------------------------------------------------------

    def _restore(self) -> int:
        kept = list_checkpoints(self.folder / "checkpoints")
        return load_checkpoint(kept[-1], self.state, self.world.device) if kept else 0

    def _save(self, step: int) -> None:
        if self.world.is_main:
            save_checkpoint(self.folder / "checkpoints", step, self.state, keep=self.config.keep_checkpoints)
        self.world.barrier()

    @torch.no_grad()
    def _preview(self, step: int) -> None:
        """A grid of PNGs, a row per prompt, four sides of each."""
        if self.world.is_main:
            num = min(self.config.preview_prompts, self.sampler.num_prompts)
            cameras, rows = self.sampler.cameras, []
            sides = orbit(
                1, 4, elevation_deg=20.0, distance=sum(cameras.distance) / 2, fovy_deg=sum(cameras.fovy_deg) / 2,
                start_azimuth_deg=20.0,
            )
            sides = _to(sides, self.world.device)
            grey = sides.c2w.new_full((1, 4, 3), 0.5)
            for index in range(num):
                scene = (self.state.ema or self.state.generator)(self.bank.get([self.prompts(index).text]))
                rows.append(render(
                    scene, sides, 64, 64, config=self.renderer, background=grey, training=False,
                    sharpness=geometric_at(self.config.sharpness, step / self.config.steps),
                ).rgb[0].cpu())
            save_grid(self.folder / "previews" / f"step_{step:06d}.png", torch.cat(rows), columns=4 * (1 + (num > 4)))
        self.world.barrier()


@dataclass(frozen=True)
class _Record:
    """What a finished step leaves: numbers still on the device, averaged over processes."""

    step: int  # counted from 1
    names: list[str]
    values: Tensor  # one per name
    digests: Tensor  # int64, one per slot of this process


class _Watch:
    """Logs finished steps and judges them, alike on every process."""

    def __init__(self, trainer: Trainer, log: RunLog | None) -> None:
        self.trainer, self.log = trainer, log
        self.empty_for = 0  # steps in a row without an object

    def __call__(self, record: _Record) -> bool:
        """Whether a signal asks for an end. Raises TrainingStopped where going on is of no use."""
        config, world = self.trainer.config, self.trainer.world
        numbers = dict(zip(record.names, record.values.tolist(), strict=True))
        interrupted = numbers.pop("interrupted") > 0
        seen = record.step * self.trainer.slots_per_step
        if record.step % config.log_every == 0:
            digest = batch_digest(world.gather(record.digests.to(world.device)))
            if self.log is not None:
                self.log.write(record.step, {**numbers, "prompts_seen": seen, "batch_digest": digest})
        if self.log is not None:
            self.log.advance(loss=numbers["loss"], opacity=numbers["opacity"], prompts=seen)
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise TrainingStopped(
                f"step {record.step}: {', '.join(bad)} not finite; {self._last_good()}; lower "
                "optimizer.learning_rate or guidance.weight, and see log.jsonl for where it began"
            )
        self.empty_for = self.empty_for + 1 if numbers["opacity"] < config.min_opacity else 0
        if self.empty_for >= config.patience:
            raise TrainingStopped(
                f"step {record.step}: the scene has emptied (mean opacity {numbers['opacity']:.2g}, under "
                f"{config.min_opacity:g} for {self.empty_for} steps); {self._last_good()}; lower "
                "losses.sparsity or guidance.weight, or raise losses.opacity_floor or losses.inside"
            )
        return interrupted

    def _last_good(self) -> str:
        kept = list_checkpoints(self.trainer.folder / "checkpoints")
        return f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint had been written"

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _to(values, device: torch.device):
    """A dataclass of tensors on another device."""
    return replace(values, **{name: value.to(device) for name, value in vars(values).items()})


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only set a flag, so that a step is finished and saved first."""
    received: list[int] = []
    kept = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            kept[number] = signal.signal(number, lambda number, frame: received.append(number))
        except ValueError:  # not the main thread: signals are somebody else's business
            pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
