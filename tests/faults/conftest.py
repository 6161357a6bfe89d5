"""The fixtures of the commands: faults are met by whole commands."""

from tests.commands.conftest import exported, prior, run, trained

__all__ = ["exported", "prior", "run", "trained"]
