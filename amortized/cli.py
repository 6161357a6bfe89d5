"""Shared by the commands: parsers, presets, errors in one sentence, progress bars. Imports no PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from amortized.files import PROJECT

PRESETS = PROJECT / "configs"


def parser_for(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the description as it is."""
    return argparse.ArgumentParser(
        prog=f"python {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def preset_paths() -> list[Path]:
    """The presets in configs/, sorted by folder; configs/launch has files for launchers instead."""
    paths = [path for path in PRESETS.rglob("*.yaml") if PRESETS / "launch" not in path.parents]
    return sorted(paths, key=lambda path: (path.parent, path.name))


def list_presets() -> str:
    """A list of the presets in configs/, each with the first line of its head comment."""
    lines = ["presets:"]
    for path in preset_paths():
        head = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
        lines.append(f"  configs/{path.relative_to(PRESETS)!s:<36} {head}")
    return "\n".join(lines)


def check_readable(preset: str | Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError for a preset that cannot be read or an override that is malformed.

    Takes milliseconds: call it before importing the configs, and with them PyTorch, which takes seconds.
    """
    from amortized.config.presets import parse_overrides, read_presets

    read_presets(Path(preset))
    parse_overrides(overrides)


@contextmanager
def one_sentence_errors(name: str) -> Iterator[None]:
    """Context: print a mistake of the user as one sentence on stderr and exit.

    Exits with status 2; 1 if training stopped, a process was lost, or memory ran out. With many processes
    only one prints. Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        from amortized.config.presets import ConfigError

        if isinstance(error, ConfigError):  # raised before PyTorch is imported: do not import it now
            _exit(name, str(error), 2)
        from amortized.memory_errors import out_of_memory_message
        from amortized.monitoring import TrainingStopped
        from amortized.parallel import PeerLost, ReportedByAnotherRank

        if isinstance(error, ReportedByAnotherRank):
            sys.exit(error.status)
        if sentence := out_of_memory_message(error):
            _exit(name, sentence, 1)
        if not isinstance(error, (ValueError, TrainingStopped, PeerLost)):
            raise
        _exit(name, str(error), 2 if isinstance(error, ValueError) else 1)


def _exit(name: str, message: str, status: int) -> NoReturn:
    sentence = " ".join(message.split())
    print(f"{name}: error: {sentence}", file=sys.stderr)
    sys.exit(status)


def progress_bar(label: str, *, quiet: bool) -> Callable[[int, int], None]:
    """A function `show(done, total)` that draws a progress bar on stderr."""
    from tqdm import tqdm

    bar = tqdm(desc=label, unit="prompt", disable=quiet)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
