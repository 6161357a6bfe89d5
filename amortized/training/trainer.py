"""The training loop: one step on one screen, and the care around it."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from amortized.conditioning import TextBank
from amortized.conditioning.views import NUM_VIEWS
from amortized.config import geometric_at
from amortized.encodings import HashGrid
from amortized.files import atomic_write_text
from amortized.guidance import Guidance
from amortized.priors import fingerprint_of
from amortized.training.ahead import Ahead, Prepared
from amortized.training.checkpoint import About
from amortized.training.distributed import World
from amortized.training.objective import Objective
from amortized.training.optim import Ema, set_learning_rate
from amortized.training.order import order_of
from amortized.training.previews import preview, save_preview
from amortized.training.profiler import profiled
from amortized.training.sampler import Sampler, slots_of, z_of, z_width
from amortized.training.saving import Checkpoints
from amortized.training.settings import TrainingSettings
from amortized.training.stopwatch import Stopwatch
from amortized.training.strategies import shard_denoiser, spread
from amortized.training.watch import STOPPED, Record, TrainingStopped, Watch
from amortized.training.watchdog import Watchdog
from amortized.transfer import Readback, pin, side_stream
from amortized.types import Corpus, Prompt

ONE_WISH_S = 2.0  # Ctrl-C again after that is impatience; launchers send other signals more than once
LOOKED_UP = 256  # prompts, to tell at the start what shards lack


class Trainer:
    """Trains a generator over the corpus' training prompts; held-out ones are never drawn.

    Settings are in frozen sections; what changes is in `state`, and the step.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        world: World,
        corpus: Corpus,
        guidance: Guidance,
        bank: TextBank,
        generator: nn.Module,
    ) -> None:
        config, group = settings.trainer, guidance.prior.views_per_group
        if group > 1 and (config.views_per_prompt != group or not settings.cameras.ring):
            raise ValueError(
                f"this prior denoises {group} views around an object together: "
                f"set trainer.views_per_prompt={group} and cameras.ring=true"
            )
        self._check_seeds(config.seeds_per_prompt, guidance, z_width(generator))
        self.settings, self.config, self.world = settings, config, world
        self.guidance, self.bank, self.folder = guidance, bank, Path(settings.output)
        self.corpus = corpus
        self.trained = corpus.trained
        if not len(self.trained):
            raise ValueError(f"corpus {corpus.name} has {len(corpus)} prompts, but none to train on")
        self.sampler = Sampler(
            seed=settings.seed,
            order=order_of(settings.order, corpus, settings.seed),
            views=config.views_per_prompt,
            render_size=config.render_size,
            num_samples=settings.renderer.num_samples,
            latent_shape=guidance.prior.latent_shape,
            z_dim=z_width(generator),
            seeds_per_prompt=config.seeds_per_prompt,
            cameras=settings.cameras,
            background=settings.background,
        )
        self.prior = fingerprint_of(guidance.prior)  # before it is taken apart
        if settings.distributed.shard_prior:
            shard_denoiser(guidance, world)
        ema = None if config.ema_decay is None else Ema(generator, config.ema_decay)
        objective = Objective(settings, guidance, generator, world.device)
        self.strategy = spread(settings.distributed, objective, ema, settings.optimizer, world)
        self.state = self.strategy.state
        self.slots = slots_of(world.rank, world.size, config.accumulation, config.prompts_per_process)
        self.slots_per_step = world.size * config.accumulation * config.prompts_per_process
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            world,
            keep=config.keep_checkpoints,
            keep_every=config.keep_every,
            upload=config.upload,
        )
        self.text_dim = bank.generator_text([self.prompt(0).text]).pooled.shape[-1]
        self.resumed_at = (0, 0)  # the step at which this process began, and the prompts seen until then
        self.ahead = Ahead(self._prepare, config.accumulation)

    @staticmethod
    def _check_seeds(seeds: int | None, guidance: Guidance, z_dim: int) -> None:
        """Raise ValueError where what is asked of an asset of a prompt cannot be told from its others."""
        if (seeds or 1) > 1 and not z_dim:
            raise ValueError(
                f"trainer.seeds_per_prompt={seeds} makes {seeds} assets of a prompt, which this generator "
                "cannot tell apart as it takes no z: set generator.z_dim, or trainer.seeds_per_prompt=null"
            )
        if guidance.config.noise == "seed" and z_dim and seeds is None:
            raise ValueError(
                "guidance.noise=seed has a trajectory for each asset, but every visit draws another z: "
                "set trainer.seeds_per_prompt"
            )

    @property
    def cache_bytes(self) -> int:
        """What kept trajectories come to at the end; 0 where none are kept."""
        num_assets = len(self.trained) * (self.config.seeds_per_prompt or 1)
        return self.guidance.cache_bytes(num_assets, NUM_VIEWS)

    def prompts_seen(self, step: int) -> int:
        """Prompts seen before a step, repeats counted: where in their order it begins."""
        begun, seen = self.resumed_at
        return seen + (step - begun) * self.slots_per_step

    def prompt(self, index: int) -> Prompt:
        """The prompt of a sampler's prompt index."""
        return self.corpus[int(self.trained[index])]

    # ---- the loop -------------------------------------------------------------------------

    def train(self, *, notes: Sequence[str] = (), quiet: bool = False) -> int:
        """Train to the last step or to a signal; returns the step reached. Goes on from the newest
        checkpoint in the folder, if there is one. `notes` are to be logged with what else there is to say.

        Raises TrainingStopped on a non-finite loss or an emptied scene.
        """
        with ExitStack() as closing:
            watchdog = Watchdog(self.folder / "stacks", self.world, self.settings.distributed.timeout_s)
            closing.callback(watchdog.close)
            closing.callback(self.checkpoints.close)
            closing.callback(self.ahead.close)
            found = [*notes, *self._restore()]
            step, stop, pending = self.resumed_at[0], False, None
            watch = Watch(
                self.config,
                self.world,
                self.folder,
                prompts_seen=self.prompts_seen,
                num_prompts=len(self.trained),
                last_good=self.checkpoints.last_good,
                start=step,
                quiet=quiet,
            )
            closing.callback(watch.close)
            for note in [*found, *self._told_at_start()]:
                watch.note(note)
            closing.enter_context(self._marked())
            interrupted = closing.enter_context(_signals())
            profiler = closing.enter_context(profiled(self.config.profile, self.folder, self.world, step))
            while step < self.config.steps and not stop:
                watchdog.beat(f"step {step + 1}")
                record = self._step(step, interrupted())
                profiler.step()
                step += 1
                # A step's numbers are read one step later, so that the host never waits within it.
                stop = pending is not None and watch(pending)
                pending = record
                if stop or step % self.config.checkpoint_every == 0 or step == self.config.steps:
                    stop = watch(pending) or stop  # what is saved is known to be good
                    pending = None
                    watchdog.beat(f"the checkpoint of step {step}")
                    self._save(step, watch.score())
                    for note in self.checkpoints.told():
                        watch.note(note)
                if step % self.config.preview_every == 0 or step == self.config.steps:
                    watchdog.beat(f"the preview of step {step}")
                    self._preview(step)
            watchdog.beat("the last checkpoint")
            self.checkpoints.wait()
            for note in self.checkpoints.told(last=True):
                watch.note(note)
        return step

    def _step(self, step: int, interrupted: bool) -> Record:
        """One optimizer step on the global batch of `step`, counted from 0."""
        stopwatch = Stopwatch(self.world.device)
        self.state.generator.train()
        progress = step / self.config.steps
        set_learning_rate(self.state.groups, self.settings.optimizer, step, self.config.steps)
        parts, digests = [], []
        for part in range(len(self.slots)):
            prepared = self.ahead.get(step, part)
            stopwatch("batch")  # next to nothing, as a thread makes it ahead
            with self.strategy.part(last=part == len(self.slots) - 1):
                terms = self.strategy(prepared, progress, step % self.guidance.learns_every == 0)
                loss = terms["loss"] + terms["learned"] if "learned" in terms else terms["loss"]
                stopwatch("forward")
                (loss / len(self.slots)).backward()
                stopwatch("backward")
            parts.append({name: value.detach() for name, value in terms.items()})
            digests.append(prepared.batch.digests)
        norms = self.strategy.update(step)
        mean = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        for calls in ("denoiser_calls", "gradient_calls"):  # the whole step's, of all parts and processes
            mean[calls] = mean[calls] * len(self.slots) * self.world.size
        mean |= {**norms, "interrupted": mean["loss"].new_full((), float(interrupted))}
        values = torch.stack([value.float() for value in mean.values()])
        stopwatch("update")
        # Read one step later, through an event after all of this step's marks: the host never waits here.
        numbers = Readback(self.world.mean(values))
        return Record(step + 1, list(mean), numbers, torch.cat(digests), stopwatch)

    def _prepare(self, step: int, part: int) -> Prepared:
        """A part of a step's batch and its text, on the CPU: a pure function, called from a thread."""
        batch = self.sampler.batch(step, self.slots[part], self.prompts_seen(step))
        texts = [self.prompt(index).text for index in batch.prompt_indices]
        with side_stream(self.world.device):  # a text that must be encoded does not wait for the step
            read, told = self.bank.for_step(texts, batch.cameras, "cpu")
        prepared = Prepared(batch=batch, read=read, told=told)
        return pin(prepared) if self.world.device.type == "cuda" else prepared

    # ---- around the step ------------------------------------------------------------------

    def _restore(self) -> list[str]:
        """Go on from the newest checkpoint, if there is one; returns what there is to say of it."""
        notes: list[str] = []
        about = self.checkpoints.restore(self.state, self.prior, notes.append)
        if about is not None:
            self.resumed_at = (about.step, about.prompts_seen)
        return notes

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Within, a stop for a reason leaves a mark: the same steps again would only stop there again."""
        try:
            yield
        except TrainingStopped as error:
            if self.world.is_main:
                atomic_write_text(self.folder / STOPPED, f"{error}\n")
            raise

    def _told_at_start(self) -> Iterator[str]:
        """What there is to say of a run that begins, or goes on."""
        ways = f"{self.world.size} processes, {self.settings.distributed.strategy}"
        yield f"{ways}, {self.slots_per_step} prompts a step; main process on {socket.gethostname()}"
        for name, engine in engines(self.state.generator).items():
            yield f"{name} is looked up by {engine} on {self.world.device}"
        every = range(0, len(self.trained), -(-len(self.trained) // LOOKED_UP))
        if shortage := self.bank.missing_from_shards([self.prompt(index).text for index in every]):
            yield shortage
        if size := self.cache_bytes:
            yield f"trajectories are kept as they are met: {size / 2**20:,.0f} MiB at the end"

    def _save(self, step: int, score: float | None) -> None:
        about = About(
            step=step,
            prompts_seen=self.prompts_seen(step),
            prior=self.prior,
            text_dim=self.text_dim,
            score=score,
        )
        self.checkpoints.save(self.state, about)

    def _preview(self, step: int) -> None:
        if self.world.is_main or self.strategy.every_process_computes:
            num = min(self.config.preview_prompts, len(self.trained))
            prompts = [self.prompt(index) for index in range(num)]
            with self.strategy.whole():
                images = preview(
                    self.state.ema or self.state.generator,
                    self.bank,
                    prompts,
                    z=z_of(prompts, self.state.generator, self.settings.seed, self.config.seeds_per_prompt),
                    cameras=self.sampler.cameras,
                    renderer=self.settings.renderer,
                    sharpness=geometric_at(self.config.sharpness, step / self.config.steps),
                    device=self.world.device,
                )
            if self.world.is_main:
                save_preview(self.folder / "previews" / f"step_{step:06d}.png", images)
        self.world.barrier()


def engines(generator: nn.Module) -> dict[str, str]:
    """Engine of each hash grid in a generator, by its dotted name."""
    return {name: part.engine for name, part in generator.named_modules() if isinstance(part, HashGrid)}


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT, SIGTERM and SIGUSR1 only set a flag, so that the step is finished and saved; a SIGINT
    that comes ONE_WISH_S after the first signal, or later, interrupts at once."""
    received: list[float] = []
    kept = {}

    def receive(number: int, frame: object) -> None:
        received.append(time.monotonic())
        if number == signal.SIGINT and received[-1] - received[0] >= ONE_WISH_S:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        try:
            kept[number] = signal.signal(number, receive)
        except ValueError:  # not the main thread: signals are somebody else's business
            pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
