"""The facts about a run that its page shows."""

from __future__ import annotations

from pathlib import Path

from amortized.config import config_to_yaml
from amortized.monitoring import PageFacts
from amortized.parallel import World
from amortized.training.config import BaseRunConfig
from amortized.wording import command


def page_facts(config: BaseRunConfig, world: World) -> PageFacts:
    """What the page of a run says from its start: settings, and the commands that continue with it."""
    output = config.output
    # `output` again: with a `prompt`, the name of the prompt would be added to that of the config.
    resume = ("train", f"{output}/config.yaml", f"output={output}")
    return PageFacts(
        name=Path(output).name,
        steps=config.trainer.steps,
        config_yaml=config_to_yaml(config),
        resume=command(*resume),
        change=command(*resume, "KEY=VALUE", "--resume", "changed"),
        evaluate=command("evaluate", output),
        started_in=str(Path.cwd()),
        processes=world.size,
    )
