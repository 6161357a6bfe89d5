"""Which settings define a run, and how two configs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from amortized.config.presets import flatten
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.untrusted import parse_yaml_object

TEACHERS = "more_teachers"
# Settings that may change on resume: where and how a run computes, and what it reports. A different batch
# size continues in the same prompt order. The prior's weights are compared by fingerprint instead.
RESUMABLE_SETTINGS = {
    "output",
    "device",
    "distributed",
    "evaluation",
    "checkpointing",
    "monitoring",
    "guidance.method",  # a name only: the settings that it stands for are compared one by one
    "text.shards",
    "text.cache_size",
    "generator.checkpointing",
    "generator.compile",
    "generator.grid.engine",
    "renderer.chunk",
    "renderer.splat_engine",
    "trainer.prompts_per_process",
    "trainer.gradient_accumulation_steps",
    "prior.path",
    "prior.revision",
    "prior.variant",
    "prior.architecture",
    "prior.loras",  # their weights are in the fingerprint too, as are the words of the tokens
    "prior.lora_scales",
    "prior.tokens",
    "prior.allow_network",
    "prior.denoiser_device",
    "prior.offload",
    "prior.text_on_cpu",
    "prior.compile",
    "prior.graphs",
}


def flat_settings(config_yaml: str, where: str = "config.yaml") -> dict[str, Any]:
    """The settings in a config.yaml by dotted key, under the keys of this release. Raises ValueError.

    Those of `more_teachers` are numbered: more_teachers[0].prior.path.
    """
    data = parse_yaml_object(config_yaml, where) if config_yaml.strip() else {}
    flat = flatten(rename_keys(data, RENAMED_RUN_SETTINGS)[0])
    teachers = flat.get(TEACHERS)
    if isinstance(teachers, list) and all(isinstance(teacher, Mapping) for teacher in teachers):
        del flat[TEACHERS]
        for number, teacher in enumerate(teachers):
            flat |= flatten(teacher, f"{TEACHERS}[{number}]")
    return flat


def defining_settings(config_yaml: str) -> dict[str, Any]:
    """The settings that define a run: with the same ones, the same weights. Raises ValueError."""
    return {key: value for key, value in flat_settings(config_yaml).items() if not is_resumable(key)}


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The settings that differ, by dotted key: "KEY was A, now B".

    A key that a run of an earlier version lacks is null there: new features are off by default.
    """
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{key} was {_shown(old, key)}, now {_shown(new, key)}" for key in keys}


def is_resumable(key: str) -> bool:
    """Whether a run may resume with another value of a setting; a teacher's are as the first prior's."""
    parts = re.sub(rf"^{TEACHERS}\[\d+\]\.", "", key).split(".")
    return any(".".join(parts[:length]) in RESUMABLE_SETTINGS for length in range(1, len(parts) + 1))


def listed(texts: list[str]) -> str:
    """The first six texts, and the number of the others."""
    shown = "; ".join(texts[:6])
    return shown if len(texts) <= 6 else f"{shown}; and {len(texts) - 6} more"


def _shown(settings: Mapping[str, Any], key: str) -> str:
    text = " ".join(str(settings.get(key, "unset")).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
