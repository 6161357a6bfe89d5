"""Old setting keys and values: they work for one release, under their new names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The settings of a run; KEY=VALUE renames a value.
RENAMED_RUN_SETTINGS = {
    "surroundings": "environment",
    "order": "prompt_order",
    "background.colour": "background.color",
    "background.own_share": "background.environment_share",
    "evaluation.own_background": "evaluation.show_environment",
    "text.kept": "text.cache_size",
    "optimizer.final_share": "optimizer.min_lr_ratio",
    "optimizer.surroundings_learning_rate": "optimizer.environment_learning_rate",
    "trainer.accumulation": "trainer.gradient_accumulation_steps",
    "trainer.checkpoint_every": "checkpointing.every",
    "trainer.keep_checkpoints": "checkpointing.keep",
    "trainer.keep_every": "checkpointing.keep_every",
    "trainer.best_by": "checkpointing.best_by",
    "trainer.upload": "checkpointing.upload",
    "trainer.log_every": "monitoring.log_every",
    "trainer.tracker": "monitoring.tracker",
    "trainer.profile": "monitoring.profile",
    "trainer.preview_every": "monitoring.preview_every",
    "trainer.preview_prompts": "monitoring.preview_prompts",
    "trainer.min_opacity": "monitoring.min_opacity",
    "trainer.max_opacity": "monitoring.max_opacity",
    "trainer.patience": "monitoring.patience",
    "background.kind=random-grey": "background.kind=random-gray",
    "evaluation.gallery=asked": "evaluation.gallery=prompts",
}


def rename_keys(
    data: Mapping[str, Any], renamed: Mapping[str, str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nested mappings with old dotted keys moved to their new place, and the (old, new) pairs that were used.

    A value under the new key wins over one under the old key. KEY=VALUE applies where the value is VALUE.
    """
    current = _copied(data)
    used = []
    for old, new in renamed.items():
        (old_key, _, old_value), (new_key, _, new_value) = old.partition("="), new.partition("=")
        *sections, name = old_key.split(".")
        section: Any = current
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            continue
        if old_value and section[name] != old_value:
            continue
        value = section.pop(name)
        value = new_value if old_value else value
        used.append((old, new))
        *sections, name = new_key.split(".")
        section = current
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                break
        if not isinstance(section, dict):  # `checkpointing: 5`: the reader reports that it is a section
            continue
        if isinstance(value, dict) and isinstance(section.get(name), dict):
            section[name] = value | section[name]
        else:
            section.setdefault(name, value)
    return current, used


def _copied(data: Any) -> Any:
    return {key: _copied(value) for key, value in data.items()} if isinstance(data, Mapping) else data
