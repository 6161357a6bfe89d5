"""The teachers of a run: priors with their guidance and texts, which all see the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from amortized.conditioning import TextBank
from amortized.guidance import Guidance
from amortized.parallel import LearnedGroup
from amortized.priors import fingerprint_of
from amortized.training.config import BaseRunConfig


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A prior with its guidance, and the text conditions that it takes."""

    guidance: Guidance
    bank: TextBank


def check_teachers(config: BaseRunConfig, guidances: Sequence[Guidance], z_dim: int) -> None:
    """Raise ValueError if a run's cameras, batches or generator do not fit one of its teachers."""
    trainer = config.trainer
    for name, guidance in zip(config.teachers, guidances, strict=True):
        views = guidance.prior.views_per_group
        if views > 1 and (trainer.views_per_prompt != views or not config.cameras.ring):
            prior = f"the prior of {name.rstrip('.')}" if name else "this prior"
            raise ValueError(
                f"{prior} denoises {views} views around an object together: "
                f"set trainer.views_per_prompt={views} and cameras.ring=true"
            )
        if guidance.config.noise == "seed" and z_dim and trainer.seeds_per_prompt is None:
            raise ValueError(
                f"{name}guidance.noise=seed has one trajectory per asset, but every visit draws a new z: "
                "set trainer.seeds_per_prompt"
            )


def learned_parts(guidances: Sequence[Guidance]) -> tuple[nn.Module | None, list[LearnedGroup]]:
    """Return the reference models as one module, None without any, and their optimizer groups.

    With one teacher the module is its reference model itself; of several, each has its teacher's number.
    """
    numbers = [number for number, guidance in enumerate(guidances, 1) if guidance.learned is not None]
    groups = [
        LearnedGroup(
            module=learned,
            rate=guidance.learning_rate,
            decay=guidance.weight_decay,
            name=numbered("learned", number),
        )
        for number, guidance in enumerate(guidances, 1)
        if (learned := guidance.learned) is not None
    ]
    if len(guidances) == 1 or not groups:
        return (groups[0].module if groups else None), groups
    modules = {f"teacher_{n}": group.module for n, group in zip(numbers, groups, strict=True)}
    return nn.ModuleDict(modules), groups


def numbered(name: str, number: int) -> str:
    """Return the name of a teacher's quantity, without a number for the first: guidance, guidance_2, ..."""
    return name if number == 1 else f"{name}_{number}"


def fingerprint_of_all(guidances: Sequence[Guidance]) -> str:
    """Return the fingerprints of all priors, joined by "+"; that of one prior is unchanged."""
    return "+".join(fingerprint_of(guidance.prior) for guidance in guidances)
