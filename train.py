"""Train a text-to-3D generator over a corpus of prompts, or one object from one prompt.

  python train.py configs/quickstart.yaml                        a whole corpus, one process
  torchrun --nproc-per-node 8 train.py configs/quickstart.yaml   the same on eight
  python train.py configs/quickstart.yaml prompt="a red cube"    one object

Every setting can be overridden as KEY=VALUE, with dots: trainer.steps=2000 guidance.method=csd
output=outputs/mine. --dry-run shows all of them. A run writes into the folder `output`:
config.yaml, log.jsonl, tensorboard/, previews/ and checkpoints/; evaluate.py adds evaluation/.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from amortized import config as settings
from amortized.cameras import CameraConfig
from amortized.cli import one_sentence_errors, parser_for
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.evaluation import EvaluationConfig
from amortized.guidance import Guidance, GuidanceConfig
from amortized.priors import PriorConfig, load_prior
from amortized.rendering import BackgroundConfig, RendererConfig
from amortized.training import (
    LossConfig, OptimizerConfig, Sampler, Trainer, TrainerConfig, describe, join_world, open_run,
)
from corpora import open_corpus, prompt_list
from generators import HyperINGPConfig, build_generator


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    output: str
    corpus: str  # a name in corpora.CORPORA, or a .txt file
    prior: PriorConfig
    prompt: str | None = None  # train this one alone, through the same path
    seed: int = 0
    device: str = "auto"
    generator: HyperINGPConfig = field(default_factory=HyperINGPConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    views: ViewTextConfig = field(default_factory=ViewTextConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def corpus_of(config: RunConfig):
    """The corpus, or the one prompt with what the corpus knows about it."""
    corpus = open_corpus(config.corpus)
    return corpus if config.prompt is None else prompt_list([config.prompt], "prompt", background=corpus)


def compose(config: RunConfig, device: torch.device) -> tuple[Guidance, TextBank, torch.nn.Module]:
    """The teacher, its texts, and an untrained generator, on the device."""
    prior = load_prior(config.prior, device)
    bank = TextBank(prior.text_encoder, config.views, device=device)
    torch.manual_seed(config.seed)
    generator = build_generator(config.generator, text_dim=bank.get([""]).pooled.shape[-1])
    return Guidance(prior, config.guidance), bank, generator.to(device)


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("train.py", __doc__)
    parser.add_argument("config", type=Path, help="a preset, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the preset's")
    parser.add_argument("--resume", action="store_true", help="go on with the run that `output` holds")
    parser.add_argument("--dry-run", action="store_true", help="show settings, parts and costs, and stop")
    arguments = parser.parse_args(argv)
    with one_sentence_errors("train.py"):
        config = settings.load(RunConfig, arguments.config, arguments.overrides)
        corpus = corpus_of(config)
        if config.prompt is not None and not any(o.startswith("output=") for o in arguments.overrides):
            config = replace(config, output=f"{config.output}-{corpus[0].id}")
        with join_world(config.device) as world:
            if not arguments.dry_run:
                open_run(Path(config.output), settings.to_yaml(config), world, resume=arguments.resume)
            guidance, bank, generator = compose(config, world.device)
            trained = [i for i in range(len(corpus)) if corpus[i].split == "train"]
            if arguments.dry_run:
                print(settings.to_yaml(config) + describe(
                    generator=generator, guidance=guidance, trainer=config.trainer, renderer=config.renderer,
                    num_prompts=len(trained), world=world, num_negatives=2 * config.views.perp_neg,
                ))
                return 0
            sampler = Sampler(
                seed=config.seed, num_prompts=len(trained), views=config.trainer.views_per_prompt,
                render_size=config.trainer.render_size, num_samples=config.renderer.num_samples,
                latent_shape=guidance.prior.latent_shape, cameras=config.cameras, background=config.background,
            )
            trainer = Trainer(
                config=config.trainer, optimizer=config.optimizer, losses=config.losses, renderer=config.renderer,
                world=world, generator=generator, guidance=guidance, bank=bank, sampler=sampler,
                prompts=lambda index: corpus[trained[index]], folder=Path(config.output),
            )
            step = trainer.train()
        if world.is_main:
            done = step == config.trainer.steps
            print(f"{config.output}: {'trained' if done else 'stopped'} at step {step}; "
                  + (f"now: python evaluate.py {config.output}" if done else "continue with the same command and --resume"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
