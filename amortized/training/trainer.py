"""The training loop: the rare events, then one step on one screen."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from amortized.checkpointing import CheckpointMeta, Checkpoints
from amortized.conditioning import TextBank
from amortized.conditioning.views import NUM_VIEWS
from amortized.density_control import density_controlled
from amortized.evaluation import ClipScorer
from amortized.generation import SceneConfig, TextTo3D, sharpness_at, z_width
from amortized.guidance import Guidance
from amortized.monitoring import (
    WEIGHTS,
    RunFacts,
    StepMonitor,
    StepRecord,
    Stopwatch,
    Watchdog,
    profile_steps,
)
from amortized.parallel import (
    Ema,
    Strategy,
    Trained,
    World,
    build_strategy,
    set_learning_rate,
    shard_denoiser,
    weight_sums,
)
from amortized.training.batches import TrainingBatch, assign_slots, build_sampler
from amortized.training.config import BaseRunConfig
from amortized.training.density import check_density_control, control_density
from amortized.training.endings import Leave, explain_failure, interruption, mark_stop, unless_interrupted
from amortized.training.engines import engines
from amortized.training.objective import Objective, StepLosses, mean_numbers
from amortized.training.page import page_facts
from amortized.training.prefetch import Prefetcher
from amortized.training.previews import bullets, render_previews, report_previews
from amortized.training.prompt_order import build_prompt_order
from amortized.training.signals import catch_signals
from amortized.training.teachers import Teacher, check_teachers, fingerprint_of_all, learned_parts
from amortized.transfer import Readback, pin, side_stream
from amortized.types import Corpus, Prompt
from amortized.wording import count

PROMPT_SAMPLE = 4096  # prompts checked at the start: cut, with unknown words, or missing in text.shards


class Trainer:
    """Trains a generator on the corpus's training prompts; held-out prompts are never drawn.

    The config is frozen; what changes is `state`, and the step.
    """

    def __init__(
        self,
        config: BaseRunConfig,
        *,
        world: World,
        corpus: Corpus,
        guidance: Guidance,
        bank: TextBank,
        generator: nn.Module,
        more_teachers: Sequence[Teacher] = (),
        scorer: ClipScorer | None = None,
        start: Sequence[str] = (),
    ) -> None:
        """`scorer` scores previews; only that of rank 0 is used. `start` says how a warm start was made.

        `guidance` and `bank` are of the first teacher. Raises ValueError for a combination of config, priors
        and generator that cannot be trained.
        """
        self.config, self.world = config, world
        self.guidance, self.bank, self.folder = guidance, bank, Path(config.output)
        self.corpus, self.trained, self.scorer, self.start = corpus, corpus.trained, scorer, start
        self.teachers = (Teacher(guidance=guidance, bank=bank), *more_teachers)
        guidances = [teacher.guidance for teacher in self.teachers]
        self._check(generator, guidances)
        trainer = config.trainer
        order = build_prompt_order(config.prompt_order, corpus, config.seed)
        self.sampler = build_sampler(config, order, generator, [g.prior.latent_shape for g in guidances])
        # The fingerprint needs whole weights: take it before they are sharded.
        self.prior_fingerprint = fingerprint_of_all(guidances)
        for each in guidances if config.distributed.shard_prior else ():
            shard_denoiser(each, world)
        ema = None if trainer.ema_decay is None else Ema(generator, trainer.ema_decay)
        learned, learned_groups = learned_parts(guidances)
        self.objective = Objective(config, guidances, learned, generator, world.device)
        trained = Trained(
            loss=self.objective,
            generator=generator,
            learned=learned,
            learned_groups=learned_groups,
            ema=ema,
            dtype=getattr(torch, trainer.precision),
            batch_size=trainer.prompts_per_process,
        )
        self.strategy: Strategy[TrainingBatch, StepLosses] = build_strategy(
            config.distributed, trained, config.optimizer, world
        )
        self.state = self.strategy.state
        # Once: to look through all modules takes milliseconds.
        self.controlled = density_controlled(self.state.generator)
        self.num_parts = trainer.gradient_accumulation_steps
        self.slots = assign_slots(world.rank, world.size, self.num_parts, trainer.prompts_per_process)
        self.slots_per_step = world.size * self.num_parts * trainer.prompts_per_process
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpointing, world)
        self.text_dim = bank.generator_text([self.prompt(0).text]).pooled.shape[-1]
        self.resumed_at = (0, 0)  # the step at which this process started, and the prompts seen before it
        self.prefetcher = Prefetcher(self.prepare, self.num_parts)

    def _check(self, generator: nn.Module, guidances: Sequence[Guidance]) -> None:
        seeds, z_dim = self.config.trainer.seeds_per_prompt, z_width(generator)
        check_density_control(generator, self.config)
        engines(generator, self.config.renderer, self.world.device)
        check_teachers(self.config, guidances, z_dim)
        if (seeds or 1) > 1 and not z_dim:
            raise ValueError(
                f"trainer.seeds_per_prompt={seeds} trains {seeds} assets per prompt, but this generator "
                "takes no z to distinguish them: set generator.z_dim, or trainer.seeds_per_prompt=null"
            )
        if not len(self.trained):
            raise ValueError(
                f"corpus {self.corpus.name} has {count(len(self.corpus), 'prompt')}, none to train on"
            )

    def prompt(self, index: int) -> Prompt:
        """The training prompt with this index in the prompt order."""
        return self.corpus[int(self.trained[index])]

    def prompts_seen(self, step: int) -> int:
        """Prompts seen before a step, repeats counted: its position in the prompt order."""
        start, seen = self.resumed_at
        return seen + (step - start) * self.slots_per_step

    @property
    def cache_bytes(self) -> int:
        """Final size of the trajectory caches; 0 without one."""
        num_assets = len(self.trained) * (self.config.trainer.seeds_per_prompt or 1)
        return sum(teacher.guidance.cache_bytes(num_assets, NUM_VIEWS) for teacher in self.teachers)

    # ---- the loop -------------------------------------------------------------------------

    def train(self, *, notes: Sequence[str] = (), quiet: bool = False, leave: Leave | None = None) -> int:
        """Train to the last step or until a signal; returns the step reached.

        Resumes from the newest checkpoint in the folder, if there is one. `notes` are logged at the start.
        On a second Ctrl-C, `leave` ends the process, with a sentence that names the last checkpoint; without
        it, KeyboardInterrupt is raised. Raises TrainingStopped on a non-finite loss or a collapsed scene.
        """
        config, steps = self.config, self.config.trainer.steps
        with ExitStack() as stack:
            # 1. Resume, then start the threads that observe the run.
            watchdog = Watchdog(self.folder / "stacks", self.world, config.distributed.timeout_s)
            stack.callback(watchdog.close)
            stack.push(unless_interrupted(self.checkpoints.close))
            stack.push(unless_interrupted(self.prefetcher.close))
            notes = [*notes, *self._restore()]
            step = self.resumed_at[0]
            monitor = self._build_monitor(quiet)
            stack.push(lambda kind, error, trace: monitor.close(error))
            for note in [*notes, *self._start_notes()]:
                monitor.note(note)
            monitor.text("prompts", bullets(self._preview_prompts()))
            monitor.write_page()
            stack.enter_context(mark_stop(self.folder, self.world))
            leave_now = leave and (lambda: leave(interruption(self.checkpoints.folder)))
            interrupted = stack.enter_context(catch_signals(monitor.show, self.world.size > 1, leave_now))
            profiler = stack.enter_context(
                profile_steps(config.monitoring.profile, self.folder, self.world, step, monitor.best_effort)
            )
            if self.start:  # only a run that does not resume has one
                self._preview(step, monitor)
            # 2. Steps. On a GPU a step's numbers are read after the next step was launched, so that the host
            #    never waits for the device; before a checkpoint or a preview they are read at once, so that
            #    what is saved is known to be finite, and what is shown follows its step in the logs.
            stop, unread, lag = False, [], int(self.world.device.type == "cuda")
            while step < steps and not stop:
                watchdog.beat(f"step {step + 1}")
                with explain_failure(monitor, self.state, self.world, step + 1, unread):
                    unread.append(self.step(step, interrupted=interrupted()))
                profiler.step()
                step += 1
                saves = step % config.checkpointing.every == 0 or step == steps
                shows = step % config.monitoring.preview_every == 0 or step == steps
                # A single process obeys a signal now; several agree by the numbers of the next step.
                stop = self.world.size == 1 and interrupted()
                while len(unread) > (0 if stop or saves or shows else lag):
                    stop = monitor(unread.pop(0)) or stop
                # 3. Once in a while: a checkpoint, a preview; the run's page shows both.
                if stop or saves:
                    watchdog.beat(f"the checkpoint of step {step}")
                    self.save(step, monitor.pop_score())
                    for note in self.checkpoints.pop_messages():
                        monitor.note(note)
                    monitor.write_page()
                if shows:
                    watchdog.beat(f"the preview of step {step}")
                    self._preview(step, monitor)
            # 4. Finish the last checkpoint and its upload.
            watchdog.beat("the last checkpoint")
            self.checkpoints.wait()
            for note in self.checkpoints.pop_messages(last=True):
                monitor.note(note)
        return step

    def step(self, step: int, *, interrupted: bool = False) -> StepRecord:
        """Take one optimizer step on the global batch of `step`, counted from 0.

        `interrupted` is averaged over ranks with the other numbers: all ranks stop at the same step.
        """
        stopwatch = Stopwatch(self.world.device)
        self.state.generator.train()
        progress = step / self.config.trainer.steps
        set_learning_rate(self.state.groups, self.config.optimizer, step, self.config.trainer.steps)
        # 1. Gradients, accumulated over the parts of the step and averaged over ranks with the last one.
        losses, digests = [], []
        learn = tuple(step % teacher.guidance.learns_every == 0 for teacher in self.teachers)
        for part in range(self.num_parts):
            batch = self.prefetcher.get(step, part)
            stopwatch("batch")  # near zero: a thread has prepared it
            with self.strategy.accumulate(sync=part == self.num_parts - 1):
                loss = self.strategy(batch, progress, learn)
                total = loss.total if loss.learned is None else loss.total + loss.learned
                stopwatch("forward")
                (total / self.num_parts).backward()
                stopwatch("backward")
            losses.append(loss)
            digests.append(batch.draws.digests)
        # 2. The update, and the change of splats in place and number.
        norms = self.strategy.update(step)
        control_density(self.controlled, self.state, self.config, step, self.world)
        # 3. Numbers to log: queue one all-reduce and one copy to the host, wait for neither.
        means = mean_numbers(losses)
        for calls in ("denoiser_calls", "gradient_calls"):  # totals of the step, over parts and ranks
            means[calls] = means[calls] * self.num_parts * self.world.size
        means |= {**norms, "interrupted": means["loss"].new_full((), float(interrupted))}
        # Whether the next forward pass gets finite weights: an infinity or NaN on any rank reaches the mean.
        sums = weight_sums(self.state, means["loss"].device)
        means |= {f"{WEIGHTS}{part}": total for part, total in sums.items()}
        values = torch.stack([value.float() for value in means.values()])
        stopwatch("update")
        # The copy comes after the stopwatch's last mark: once it is there, all marks can be read.
        readback = Readback(self.world.mean(values))
        rates = {group.get("name", "generator"): group["lr"] for group in self.state.groups}
        return StepRecord(step + 1, list(means), readback, torch.cat(digests), stopwatch, rates)

    def prepare(self, step: int, part: int) -> TrainingBatch:
        """One part of a step's batch with its text, on the CPU: a pure function, called from a thread."""
        draws = self.sampler.draw(step, self.slots[part], self.prompts_seen(step))
        texts = [self.prompt(index).text for index in draws.prompt_indices]
        with side_stream(self.world.device):  # a text that must be encoded does not queue behind the step
            generator_text, prior_text = self.bank.for_step(texts, draws.cameras, "cpu")
            banks = [teacher.bank for teacher in self.teachers[1:]]
            more = tuple(bank.prior_text(texts, draws.cameras, "cpu") for bank in banks)
        batch = TrainingBatch(
            draws=draws, generator_text=generator_text, prior_text=prior_text, more_prior_texts=more
        )
        return pin(batch) if self.world.device.type == "cuda" else batch

    # ---- around the step ------------------------------------------------------------------

    def save(self, step: int, score: float | None = None) -> None:
        """Start to save a checkpoint. Collective."""
        meta = CheckpointMeta(
            step=step,
            prompts_seen=self.prompts_seen(step),
            prior=self.prior_fingerprint,
            text_dim=self.text_dim,
            score=score,
        )
        self.checkpoints.save(self.state, meta)

    def _restore(self) -> list[str]:
        """Resume from the newest checkpoint, if there is one; returns notes to log."""
        notes: list[str] = []
        meta = self.checkpoints.restore(self.state, self.prior_fingerprint, notes.append)
        if meta is not None:
            self.resumed_at = (meta.step, meta.prompts_seen)
        return notes

    def _build_monitor(self, quiet: bool) -> StepMonitor:
        run = RunFacts(
            start=self.resumed_at[0],
            steps=self.config.trainer.steps,
            num_prompts=len(self.trained),
            views_per_prompt=self.config.trainer.views_per_prompt,
            prompts_seen=self.prompts_seen,
            last_good=self.checkpoints.last_good,
            best_by=self.config.checkpointing.best_by,
            page=page_facts(self.config, self.world),
        )
        return StepMonitor(self.config.monitoring, run, self.folder, self.world, quiet=quiet)

    def _start_notes(self) -> Iterator[str]:
        """Facts to log when a run starts or resumes."""
        yield from self.start
        setup = f"{self.world.size} processes, {self.config.distributed.strategy}"
        yield f"{setup}, {self.slots_per_step} prompts per step; rank 0 on {socket.gethostname()}"
        for name, engine in engines(self.state.generator, self.config.renderer, self.world.device).items():
            yield f"{name} runs on {engine}, device {self.world.device}"
        sample = range(0, len(self.trained), -(-len(self.trained) // PROMPT_SAMPLE))
        texts = [self.prompt(index).text for index in sample]
        for number, teacher in enumerate(self.teachers, 1):
            for note in teacher.bank.notes_on(texts, sampled=len(texts) < len(self.trained)):
                yield note if number == 1 else f"teacher {number}: {note}"
        if shortage := self.bank.missing_from_shards(texts):
            yield shortage
        every, previews = self.config.monitoring.preview_every, self.folder / "previews"
        yield f"progress, curves and previews: {self.folder / 'index.html'}"
        yield f"previews every {every:,} steps in {previews}; curves: tensorboard --logdir {self.folder}"
        for start, _, size in self.config.trainer.phases[1:]:
            yield f"from step {start + 1:,}, images have {size} px: a step then takes another time and memory"
        if size := self.cache_bytes:
            yield f"the trajectory cache will grow to {size / 2**20:,.0f} MiB"

    def _preview(self, step: int, monitor: StepMonitor) -> None:
        if self.world.is_main or self.strategy.collective_forward:
            config = self.config
            scenes = SceneConfig(
                renderer=config.renderer,
                sharpness=sharpness_at(config.trainer.sharpness, step, config.trainer.steps),
                cameras=config.cameras,
                seed=config.seed,
                seeds_per_prompt=config.trainer.seeds_per_prompt,
            )
            model = TextTo3D(self.state.ema or self.state.generator, self.bank, scenes)
            prompts = self._preview_prompts()
            with self.strategy.gathered_parameters():
                views = render_previews(model, prompts)
            if self.world.is_main:
                report_previews(monitor, self.folder / "previews", step, prompts, views, self.scorer)
        self.world.barrier()

    def _preview_prompts(self) -> list[Prompt]:
        count = min(self.config.monitoring.preview_prompts, len(self.trained))
        return [self.prompt(index) for index in range(count)]
