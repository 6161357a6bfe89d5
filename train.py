"""Train a text-to-3D generator over a corpus of prompts, or one object from one prompt.

  python train.py configs/quickstart.yaml                        a whole corpus, one process
  torchrun --nproc-per-node 8 train.py configs/quickstart.yaml   the same on eight
  python train.py configs/quickstart.yaml prompt="a red cube"    one object

Every setting can be overridden as KEY=VALUE, with dots: trainer.steps=2000 guidance.method=csd
output=outputs/mine. --dry-run shows all of them. A run writes into the folder `output`:
config.yaml, log.jsonl, events.jsonl, tensorboard/, previews/ and checkpoints/; evaluate.py adds
evaluation/. The same command again goes on with it, in any number of processes.

Ends with status 0 when trained; 75 when a signal (SIGTERM, SIGUSR1, Ctrl-C) stopped it, saved and to be
started again; 1 when going on is of no use; 2 for a mistake in what was asked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

import torch
from torch.nn import Module

from amortized.cli import one_sentence_errors, parser_for
from amortized.conditioning import ShardStore, TextBank, load_text_encoder
from amortized.config import config_to_yaml, load_config
from amortized.guidance import Guidance, build_learned
from amortized.priors import Prior, StableDiffusionPrior, load_prior
from amortized.settings import RunSettings
from amortized.training import Resume, Trainer, World, describe, join_world, open_run
from amortized.types import Corpus
from corpora import open_corpus, prompt_list
from generators import DEFAULT, GeneratorConfig
from generators.surroundings import Surrounded, SurroundingsConfig

STOPPED_EARLY = 75  # EX_TEMPFAIL: what schedulers are told to start again


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """Everything that determines a run."""

    generator: GeneratorConfig = field(default_factory=DEFAULT)
    surroundings: SurroundingsConfig | None = None


def corpus_of(config: RunConfig) -> Corpus:
    """The corpus, or the one prompt with what the corpus knows about it."""
    corpus = open_corpus(config.corpus, held_out=config.held_out)
    return corpus if config.prompt is None else prompt_list([config.prompt], "prompt", background=corpus)


def compose(config: RunConfig, device: torch.device) -> tuple[Prior, TextBank, Module]:
    """The prior, its texts, and an untrained generator, on the device."""
    prior = load_prior(config.prior, device)
    bank, width = bank_of(config, prior, device)
    if bank.pooled_only and getattr(config.generator, "text", "pooled") == "tokens":
        raise ValueError(
            "text.shards hold pooled vectors only, but this generator reads tokens: encode the corpus "
            "without --pooled, or set generator.text=pooled"
        )
    torch.manual_seed(config.seed)
    generator = config.generator.build(text_dim=width)
    if config.surroundings is not None:
        generator = Surrounded(generator, config.surroundings.build(width))
    return prior, bank, generator.to(device)


def bank_of(config: RunConfig, prior: StableDiffusionPrior, device: torch.device) -> tuple[TextBank, int]:
    """The texts of a run, and the width of what its generator reads."""
    chosen, reader = config.text, None
    if chosen.encoder is not None:
        allow = config.prior.allow_network
        reader = load_text_encoder(
            chosen.encoder, revision=chosen.revision, device=device, allow_network=allow
        )
    bank = TextBank(
        prior.text_encoder,
        config.views,
        device=device,
        generator_encoder=reader,
        stores=[ShardStore(url) for url in config.text.shards],
        cache_size=config.text.kept,
    )
    return bank, (reader or prior.text_encoder).width


def guidance_of(config: RunConfig, prior: Prior, bank: TextBank, num_prompts: int) -> Guidance:
    """The teacher of a generator, and what it learns of the renders of `num_prompts` prompts."""
    if config.guidance.trajectory.cache and (config.views.direction_step_deg or config.views.perp_neg):
        raise ValueError(
            "guidance.trajectory.cache keeps a trajectory for each of a prompt's views, which are too many "
            "here: it needs views.direction_step_deg=0 and views.perp_neg=false"
        )
    learned = config.guidance.learned
    if learned is None:
        return Guidance(prior, config.guidance)
    if config.prior.offload:
        raise ValueError(
            "guidance.learned needs the denoiser for its gradient, when prior.offload has taken it away: "
            "set prior.offload=false"
        )
    text = None if learned.text is None else bank.encode_for_prior([learned.text])
    null = bank.encode_for_prior([config.views.negative_prompt])
    model = build_learned(learned, prior, null=null, text=text, num_prompts=num_prompts, seed=config.seed)
    return Guidance(prior, config.guidance, model)


def run(config: RunConfig, corpus: Corpus, world: World, *, resume: Resume, dry: bool) -> int | None:
    """Train as one of `world`'s processes; returns the step reached, None where it was a dry run."""
    if config.prior.denoiser_device and world.size > 1:
        raise ValueError(
            f"prior.denoiser_device={config.prior.denoiser_device} is one device, for {world.size} "
            "processes: train in one process, or set it to null"
        )
    prior, bank, generator = compose(config, world.device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    trainer = Trainer(config, world=world, corpus=corpus, guidance=guidance, bank=bank, generator=generator)
    if dry:
        if world.is_main:
            print(config_to_yaml(config) + describe(trainer, num_negatives=config.views.num_negatives))
        return None
    # Only now: what cannot be trained leaves no folder behind.
    with open_run(Path(config.output), config_to_yaml(config), world, resume=resume) as notes:
        return trainer.train(notes=notes)


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("train.py", __doc__)
    parser.add_argument("config", type=Path, help="a preset, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings over the preset's")
    parser.add_argument(
        "--resume",
        choices=get_args(Resume),
        default="auto",
        metavar="MODE",
        help="auto: go on with the run that `output` holds, if it does; never: refuse to; changed: go on "
        "with other settings than its own (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show settings, parts and costs, and stop")
    given = parser.parse_intermixed_args(argv)
    with one_sentence_errors("train.py"):
        config = load_config(RunConfig, given.config, given.overrides)
        corpus = corpus_of(config)
        if config.prompt is not None and not any(text.startswith("output=") for text in given.overrides):
            config = replace(config, output=f"{config.output}-{corpus[0].id}")
        shared = config.distributed
        # A process that is stuck says so itself, before others give it up.
        patience = timedelta(seconds=1.5 * shared.timeout_s)
        alone = shared.strategy != "ddp" or shared.shard_prior
        with join_world(config.device, patience=patience, alone=alone) as world:
            step = run(config, corpus, world, resume=given.resume, dry=given.dry_run)
        if step is None:
            return 0
        ended = step == config.trainer.steps
        if world.is_main:
            then = f"now: python evaluate.py {config.output}" if ended else "the same command goes on"
            print(f"{config.output}: {'trained' if ended else 'stopped'} at step {step}; {then}")
        return 0 if ended else STOPPED_EARLY
    return 0


if __name__ == "__main__":
    sys.exit(main())
