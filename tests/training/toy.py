"""A miniature training run: an exact Gaussian-mixture prior, a small generator, seconds per run.

As a script it is the worker of the distributed tests: `python -m tests.training.toy FOLDER JSON [DEVICE]`.
JSON holds the keyword arguments of `make_trainer`, and optionally `stop` (the step to interrupt at),
`trouble` ([RANK, STEP, KIND], see `inject_failure`) and `clock` (seconds to add to the clock of rank 1).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from amortized.cameras import CameraConfig
from amortized.checkpointing import CheckpointConfig
from amortized.cli import one_sentence_errors
from amortized.conditioning import TextBank
from amortized.encodings import HashGridConfig
from amortized.guidance import build_guidance, published
from amortized.monitoring import MonitorConfig, StepRecord
from amortized.parallel import DistributedConfig, OptimizerConfig, World, join_world
from amortized.priors import GaussianMixturePrior, PriorConfig, load_stable_diffusion
from amortized.rendering import BackgroundConfig, RendererConfig
from amortized.splats import SplittingConfig
from amortized.training import BaseRunConfig, LossConfig, Teacher, TeacherConfig, Trainer, TrainerConfig
from amortized.types import TextCondition
from corpora import prompt_list
from generators.conv3d import Conv3DConfig
from generators.environment import HashEnvironmentConfig, WithEnvironment
from generators.hyper_ingp import HyperINGPConfig
from generators.splats import SplatsConfig
from generators.triplane_transformer import TriplaneTransformerConfig
from tests.flow_mixture import flow_mixture

COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9)}
TEXTS = tuple(COLORS)
SIZE = 8


# Splats that are cloned, split, pruned and reset within a dozen steps; one prompt per process.
SPLATS = SplatsConfig(
    count=30,
    ball_radius=0.4,
    density_control=SplittingConfig(
        gradient=4e-7, extent=2, start=0, stop=18, every=4, cap=60, reset_every=7, reset_opacity=0.08
    ),
)
TINY = {
    "3dconv-net": Conv3DConfig(
        resolution=8, base_channels=6, num_features=4, z_dim=3, style_dim=8, hidden=(8,)
    ),
    "triplane-transformer": TriplaneTransformerConfig(
        plane_tokens=3, width=12, num_layers=2, num_heads=3, plane_channels=4, hidden=(8,)
    ),
}


# Reference models, at rates at which they visibly learn. With `every: 3` the checkpoint of step 10 falls
# between two of their updates.
LEARNING = {
    "lods-embedding": {"learning_rate": 1e-2, "every": 3},
    "lods-lora": {"learning_rate": 1e-2},
    "vsd": {"learning_rate": 1e-2},
    "prompt-nulls": {"learning_rate": 1e-2, "kind": "prompt-nulls"},
    "adapter": {"learning_rate": 1e-2, "kind": "adapter", "width": 4, "every": 2},
}


def learning(name: str) -> dict:
    """Guidance settings with a reference model of LEARNING."""
    method = name if name in ("lods-lora", "vsd") else "lods-embedding"
    return {"method": method, "guidance_scale": 2.0, "learned": LEARNING[name]}


class ColorEncoder:
    """Encodes a sentence as mixture weights: the components of its color words, or all if it has none."""

    batch_size = max_length = 1

    def is_overlong(self, text: str) -> bool:
        return False

    def num_pieces(self, word: str) -> int:
        return 1

    def encode(self, texts: Sequence[str]) -> TextCondition:
        rows = [[float(word in text) for word in TEXTS] for text in texts]
        pooled = torch.tensor([row if any(row) else [1.0] * len(TEXTS) for row in rows])
        return TextCondition(
            pooled=pooled, tokens=pooled[:, None], mask=torch.ones(len(texts), 1, dtype=torch.bool)
        )


def target_images() -> torch.Tensor:
    """The mixture's means, [K, 3, SIZE, SIZE] in [0, 1]: a disc of each color on gray."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < 0.45).float()
    colors = torch.tensor([COLORS[text] for text in TEXTS])[:, :, None, None]
    return disc * colors + (1 - disc) * 0.5


def make_trainer(folder: Path, world: World | None = None, **changes) -> Trainer:
    """Build a trainer over the three colors. `changes` are fields of TrainerConfig, or:

    generator: a module, a key of TINY, "splats" or "with-environment"; by default a Hyper-iNGP with `z_dim`
    guidance: a dict of settings that override those of ASD, e.g. another method
    views_per_group: of the prior
    prior: a folder in diffusers format, instead of the mixture; "flow": the mixture as a rectified flow
    more_teachers: dicts of `guidance`, `prior` and `views_per_group`
    checkpointing, monitoring: dicts of fields of their configs
    strategy, shard_prior, timeout_s: fields of DistributedConfig
    losses, optimizer, cameras: configs; losses=None: none
    renderer: a dict of fields of its config
    scorer: of the previews
    """
    generator, z_dim = changes.pop("generator", None), changes.pop("z_dim", 0)
    scorer, renderer = changes.pop("scorer", None), changes.pop("renderer", {})
    losses = changes.pop("losses", LossConfig(sparsity=0.0, eikonal=0.01))
    losses = losses or LossConfig(sparsity=0.0)
    optimizer = changes.pop("optimizer", OptimizerConfig(learning_rate=1e-2, betas=(0.9, 0.99)))
    distributed = DistributedConfig(
        strategy=changes.pop("strategy", "ddp"),
        shard_prior=changes.pop("shard_prior", False),
        timeout_s=changes.pop("timeout_s", 600.0),
    )
    first = {name: changes.pop(name) for name in ("views_per_group", "prior") if name in changes}
    more = changes.pop("more_teachers", [])
    cameras = changes.pop("cameras", CameraConfig(distance=(2.5, 2.7), fovy_deg=(40, 40)))
    first["guidance"] = changes.pop("guidance", {})
    checkpointing = CheckpointConfig(**{"every": 10, **changes.pop("checkpointing", {})})
    monitoring = MonitorConfig(**{"preview_every": 10_000, **changes.pop("monitoring", {})})
    defaults = {"steps": 30, "prompts_per_process": 4, "render_size": SIZE, "ema_decay": 0.9}
    trainer = TrainerConfig(**{**defaults, **changes})
    device = world.device if world else "cpu"
    teachers = [toy_teacher(each, device, seed) for seed, each in enumerate([first, *more], 7)]
    guidance, bank = teachers[0].guidance, teachers[0].bank
    width = bank.generator_text(["red"]).pooled.shape[1]
    renderer = RendererConfig(num_coarse=8, num_fine=6, lattice=8, **renderer)
    world = world or World()
    torch.manual_seed(0)
    grid = HashGridConfig(
        num_levels=2, features_per_level=2, log2_table_size=8, base_resolution=4, growth=2.0
    )
    plain = HyperINGPConfig(grid=grid, hidden=(8,), hyper_hidden=8, z_dim=z_dim).build(width)
    if generator == "with-environment":
        generator = WithEnvironment(plain, HashEnvironmentConfig(grid=grid, hidden=4).build(width))
    elif generator == "splats":
        generator = SPLATS.build(width)
    elif isinstance(generator, str):
        generator = TINY[generator].build(width)
    generator = generator or plain
    folder.mkdir(parents=True, exist_ok=True)
    config = BaseRunConfig(
        output=str(folder),
        corpus="toy",
        prior=PriorConfig(path="toy"),
        guidance=guidance.config,
        more_teachers=tuple(
            TeacherConfig(prior=PriorConfig(path="toy"), guidance=teacher.guidance.config)
            for teacher in teachers[1:]
        )
        or None,
        seed=7,
        cameras=cameras,
        background=BackgroundConfig(color=(0.5, 0.5, 0.5)),
        renderer=renderer,
        losses=losses,
        optimizer=optimizer,
        trainer=trainer,
        checkpointing=checkpointing,
        monitoring=monitoring,
        distributed=distributed,
    )
    return Trainer(
        config,
        world=world,
        corpus=prompt_list(TEXTS, "toy"),
        guidance=guidance,
        bank=bank,
        more_teachers=teachers[1:],
        generator=generator.to(world.device),
        scorer=scorer,
    )


def toy_teacher(changes: dict, device, seed: int) -> Teacher:
    """A teacher over the three colors; `changes` as in `make_trainer`."""
    path, views_per_group = changes.get("prior"), changes.get("views_per_group", 1)
    means, stds = target_images().to(device), torch.full((len(TEXTS),), 0.2, device=device)
    encoder, prior = ColorEncoder(), GaussianMixturePrior(means, stds, views_per_group=views_per_group)
    if path == "flow":  # whose latents are from -1 to 1
        prior, _ = flow_mixture(2 * means - 1, 2 * stds)
    elif path is not None:
        prior = load_stable_diffusion(path, device=device)
        encoder = prior.text_encoder
    bank = TextBank(encoder, device=device)
    method = {"method": "asd", "guidance_scale": 2.0, "weight": 0.1}
    config = published(**{**method, **changes.get("guidance", {})})
    guidance = build_guidance(config, prior, encode=bank.encode_for_prior, num_prompts=len(TEXTS), seed=seed)
    return Teacher(guidance=guidance, bank=bank)


def log_lines(folder: Path) -> list[dict]:
    """The lines of log.jsonl without times, speeds and memory, which differ from run to run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("time/", "speed/", "memory")
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights of the generator, its EMA (`ema.*`) and the reference model (`learned.*`), not copied."""
    state = dict(trainer.state.generator.state_dict())
    learned = trainer.state.learned.state_dict() if trainer.state.learned else {}
    ema = trainer.state.ema.state_dict() if trainer.state.ema else {}
    parts = {"ema": ema, "learned": learned}
    return state | {f"{part}.{name}": value for part in parts for name, value in parts[part].items()}


def interrupted_at(trainer: Trainer, stop: int | None) -> Trainer:
    """Make a signal appear to arrive during step `stop`, counted from 1; None: no signal."""
    if stop is not None:
        step = trainer.step
        trainer.step = lambda number, interrupted: step(number, interrupted=interrupted or number + 1 >= stop)
    return trainer


def inject_failure(trainer: Trainer, rank: int, step: int, kind: str) -> Trainer:
    """Make one rank fail at `step`, counted from 0.

    `kind` is hang, die (SIGKILL), defect (an unexpected exception), nan (in the noise prediction) or weights
    (NaN after the update).
    """

    def fail_here() -> None:
        match kind:
            case "hang":
                time.sleep(600)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "defect":
                raise ZeroDivisionError("a defect")

    original_step, original_predict = trainer.step, trainer.guidance.prior.predict_noise
    in_failing_step = False

    def failing_step(number: int, interrupted: bool) -> StepRecord:
        nonlocal in_failing_step
        in_failing_step = trainer.world.rank == rank and number == step
        if in_failing_step:
            fail_here()
        return original_step(number, interrupted=interrupted)

    def poisoning_update(number: int) -> dict[str, torch.Tensor]:
        norms = update(number)
        if in_failing_step:
            next(trainer.state.generator.parameters()).data.fill_(float("nan"))
        return norms

    trainer.step, update = failing_step, trainer.strategy.update
    if kind == "weights":
        trainer.strategy.update = poisoning_update
    if kind == "nan":
        trainer.guidance.prior.predict_noise = lambda *args, **kwargs: (
            original_predict(*args, **kwargs) * (float("nan") if in_failing_step else 1.0)
        )
    return trainer


if __name__ == "__main__":
    changes = json.loads(sys.argv[2])
    stop, trouble, clock = changes.pop("stop", None), changes.pop("trouble", None), changes.pop("clock", 0.0)
    sharded = changes.get("strategy", "ddp") != "ddp" or "shard_prior" in changes
    if clock and os.environ.get("RANK") == "1":
        now = time.time
        time.time = lambda: now() + clock
    if changes.get("strategy") == "zero3":
        from amortized.parallel import zero

        zero.PERSISTENCE_THRESHOLD = 0  # shard the weights of small generators too
    # A signal that comes after training has left its handlers is too late to matter: status 0 as well.
    with one_sentence_errors("toy", interrupted=0):
        with join_world(sys.argv[3] if len(sys.argv) > 3 else "cpu", always_group=sharded) as joined:
            trainer = interrupted_at(make_trainer(Path(sys.argv[1]), joined, **changes), stop)
            ranks = {name: int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")}
            # One write: torchrun runs workers unbuffered, so that `print` writes the newline separately
            # and lines of two processes can mix.
            sys.stdout.write(json.dumps({**ranks, "slots": trainer.slots}) + "\n")
            sys.stdout.flush()
            (inject_failure(trainer, *trouble) if trouble else trainer).train(quiet=True)
            del trainer
    # A Gloo thread that outlives its process group aborts the process at exit, about once in a thousand runs.
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert sharded or not [name for name in threads if "gloo" in name], threads
