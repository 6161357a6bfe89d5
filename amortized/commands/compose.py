"""Build the parts of a run from its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from amortized.commands.warm_start import warm_start
from amortized.conditioning import ShardStore, TextBank, load_text_encoder
from amortized.config import config_to_dict, load_config, map_paths
from amortized.config.presets import flatten
from amortized.evaluation import ClipScorer, load_clip
from amortized.files import in_project, started_in
from amortized.guidance import Guidance, build_guidance, check_guidance
from amortized.memory_errors import available_cpu_bytes
from amortized.names import slug
from amortized.parallel import World
from amortized.priors import FolderPrior, Prior, load_prior
from amortized.random import derive_seed
from amortized.training import BaseRunConfig, Teacher, TeacherConfig, Trainer
from amortized.types import Corpus, Prompt
from amortized.untrusted import short
from corpora import open_corpus, prompt_list
from generators import DEFAULT_GENERATOR, GeneratorConfig, build_generator
from generators.environment import EnvironmentConfig

NO_NETWORK = ("prior.allow_network=false", "evaluation.allow_network=false")


@dataclass(frozen=True, kw_only=True)
class RunConfig(BaseRunConfig):
    """Everything that determines a run."""

    generator: GeneratorConfig = field(default_factory=DEFAULT_GENERATOR)
    environment: EnvironmentConfig | None = None  # a learned background; null: none

    def __post_init__(self) -> None:
        super().__post_init__()
        name, slots = self.generator.name, self.trainer.prompts_per_process
        if self.one_object and slots > 1:
            raise ValueError(
                f"trainer.prompts_per_process={slots} trains as many scenes in a step, but "
                f"generator.name={name} is one object: set trainer.prompts_per_process=1, and "
                "trainer.views_per_prompt for more images in a step"
            )
        if self.start is not None and not self.one_object:
            raise ValueError(
                f"start={short(self.start)} starts a single object, but generator.name={name} makes one of "
                "every prompt: set generator.name=ingp or generator.name=splats, or start=null"
            )
        terms = self.losses.of_distances
        if terms and getattr(self.generator, "geometry", "sdf") == "density":
            raise ValueError(
                f"{_losses(terms)} need signed distances, which generator.geometry=density lacks: set to 0, "
                "or use generator.geometry=sdf"
            )
        terms = self.losses.along_rays
        if terms and name == "splats":
            raise ValueError(
                f"{_losses(terms)} need samples along rays, which generator.name=splats has not: set to 0"
            )

    @property
    def one_object(self) -> bool:
        """Whether the generator holds a single object, whatever the text."""
        return getattr(self.generator, "one_object", False)


def _losses(terms: list[str]) -> str:
    return " and ".join(f"losses.{term}" for term in terms)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a preset, or a run's config.yaml. Raises ConfigError."""
    return load_config(RunConfig, path, overrides)


def load_stored_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run's folder, which may come from elsewhere. Raises ConfigError.

    Only `overrides` allow it to use the network. Relative paths that do not exist in the working directory
    are taken from the folder in which the run was started, or from the project.
    """
    config = load_run_config(run / "config.yaml", [*NO_NETWORK, *overrides])
    start = started_in(run, config.output)
    return map_paths(config, lambda path: path if path == config.output else in_project(path, *start))


def load_corpus(config: RunConfig) -> Corpus:
    """The corpus of a run; with `prompt`, that prompt alone, and the corpus's ground truth for it.

    Raises ValueError for several training prompts and a generator of one object.
    """
    corpus = open_corpus(config.corpus, held_out=config.held_out)
    if config.prompt is not None:
        return prompt_list([config.prompt], "prompt", truth_from=corpus)
    if config.one_object and len(corpus.trained) > 1:
        raise ValueError(
            f"generator.name={config.generator.name} is one object, but corpus {corpus.name} has "
            f'{len(corpus.trained):,} training prompts: set prompt="...", or use another generator'
        )
    return corpus


def output_of_prompt(config: RunConfig, prompt: Prompt) -> str:
    """The folder of a run of one prompt: `output`, with the prompt's name added.

    A run of an earlier version has the id in its name and is found by it.
    """
    earlier = f"{config.output}-{prompt.id}"
    return earlier if Path(earlier).exists() else f"{config.output}-{slug(prompt.text)}"


def build_bank(config: RunConfig, prior: FolderPrior, device: torch.device) -> tuple[TextBank, int]:
    """The text embeddings of a run, and the width of those that its generator takes."""
    text, encoder = config.text, None
    if text.encoder is not None:
        allow_network = config.prior.allow_network
        encoder = load_text_encoder(
            text.encoder, revision=text.revision, device=device, allow_network=allow_network
        )
    bank = TextBank(
        prior.text_encoder,
        config.views,
        device=device,
        generator_encoder=encoder,
        stores=[ShardStore(url) for url in text.shards],
        cache_size=text.cache_size,
    )
    bank.check_suffixes()
    if bank.pooled_only and getattr(config.generator, "text", "pooled") == "tokens":
        raise ValueError(
            "text.shards have pooled vectors only, but this generator needs tokens: encode the corpus "
            "without --pooled, or set generator.text=pooled"
        )
    return bank, (encoder or prior.text_encoder).width


def build_teachers(config: RunConfig, num_prompts: int, device: torch.device) -> list[Teacher]:
    """The teachers of a run besides its first: `more_teachers`, on `device`. Raises ValueError.

    `text.shards` serve the first prior and the generator: texts of further ones are encoded on demand.
    """
    teachers = []
    for number, teacher in enumerate([*config.teachers.values()][1:], 2):
        prior, views = load_prior(teacher.prior, device), teacher.views or config.views
        bank = TextBank(prior.text_encoder, views, device=device, cache_size=config.text.cache_size)
        bank.check_suffixes()
        guidance = _guidance_of(
            teacher, prior, bank, num_prompts, derive_seed(config.seed, "teacher", number)
        )
        teachers.append(Teacher(guidance=guidance, bank=bank))
    return teachers


def build_untrained(config: RunConfig, text_dim: int, device: torch.device) -> nn.Module:
    """The generator before training, on `device`.

    Its weights are a function of the seed alone; the global RNG is left as it was.
    """
    check_size(config, text_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "generator"))
        generator = build_generator(config.generator, config.environment, text_dim)
    return generator.to(device)


class _WithoutDraws(TorchFunctionMode):
    """Context: random initial values are not drawn, which on the meta device would import much of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):  # of a tensor, or of nn.init
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_size(config: RunConfig, text_dim: int) -> None:
    """Raise ValueError if the generator's weights alone would not fit into memory, before they take any."""
    with torch.device("meta"), _WithoutDraws():
        generator = build_generator(config.generator, config.environment, text_dim)
    size = sum(weights.nbytes for weights in generator.parameters())
    available = available_cpu_bytes()
    if available is not None and size > available:
        remedy = f"lower {' or '.join(_largest_sizes(config.generator)) or 'the sizes of the generator'}"
        raise ValueError(
            f"the generator's weights would take {size / 2**30:,.1f} GiB, and {available / 2**30:.1f} GiB of "
            f"memory are available: {remedy}"
        )


def _largest_sizes(config: GeneratorConfig) -> list[str]:
    """The keys of the three sizes that exceed their defaults by the largest factors."""

    def sizes(of: GeneratorConfig) -> dict[str, float]:
        values = flatten(config_to_dict(of)).items()
        tops = {key: max(value) if isinstance(value, list) and value else value for key, value in values}
        return {key: top for key, top in tops.items() if type(top) is int or type(top) is float}

    chosen, default = sizes(config), sizes(type(config)())
    ratios = {key: chosen[key] / default[key] for key in chosen if default.get(key)}
    largest = sorted(ratios, key=ratios.__getitem__, reverse=True)[:3]
    return [f"generator.{key}" for key in largest if ratios[key] > 1]


def build_parts(config: RunConfig, device: torch.device) -> tuple[Prior, TextBank, nn.Module]:
    """The prior, the text embeddings and an untrained generator, on `device`."""
    prior = load_prior(config.prior, device)
    bank, text_dim = build_bank(config, prior, device)
    return prior, bank, build_untrained(config, text_dim, device)


def guidance_of(config: RunConfig, prior: Prior, bank: TextBank, num_prompts: int) -> Guidance:
    """Build the guidance of a run, with its reference model if the method has one (VSD, LODS).

    Raises ValueError for settings that exclude each other.
    """
    return _guidance_of(config.teachers[""], prior, bank, num_prompts, config.seed)


def _guidance_of(
    teacher: TeacherConfig, prior: Prior, bank: TextBank, num_prompts: int, seed: int
) -> Guidance:
    check_guidance(teacher.guidance, teacher.prior, bank.config)
    return build_guidance(
        teacher.guidance,
        prior,
        encode=bank.encode_for_prior,
        num_prompts=num_prompts,
        seed=seed,
        negative_prompt=bank.config.negative_prompt,
    )


def load_scorer(config: RunConfig, world: World) -> ClipScorer | None:
    """The CLIP that scores previews, on rank 0's device; None on other ranks, or without preview_scores.

    The global RNG is left as it was: the same training with and without. Collective. Raises ValueError.
    """
    loaded: list[ClipScorer] = []

    def load() -> None:
        settings = config.evaluation
        try:
            with torch.random.fork_rng(devices=[]):
                clip = load_clip(settings.clip, device=world.device, allow_network=settings.allow_network)
        except ValueError as error:
            raise ValueError(f"{error}, or set monitoring.preview_scores=false") from error
        loaded.append(clip)

    if config.monitoring.preview_scores:
        world.run_on_all(lambda: load() if world.is_main else None)
    return loaded[0] if loaded else None


def build_trainer(config: RunConfig, corpus: Corpus, world: World) -> Trainer:
    """Everything that a rank trains with. Raises ValueError for settings that do not fit together."""
    for name, teacher in config.teachers.items():
        if teacher.prior.denoiser_device and world.size > 1:
            raise ValueError(
                f"{name}prior.denoiser_device={teacher.prior.denoiser_device} is a single device, but there "
                f"are {world.size} processes: train in one process, or set it to null"
            )
    scorer = load_scorer(config, world)  # first: it takes the least time, and names a missing folder
    prior, bank, generator = build_parts(config, world.device)
    start = warm_start(config, corpus, bank, generator, world)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    return Trainer(
        config,
        world=world,
        corpus=corpus,
        guidance=guidance,
        bank=bank,
        generator=generator,
        more_teachers=build_teachers(config, len(corpus.trained), world.device),
        scorer=scorer,
        start=start,
    )
