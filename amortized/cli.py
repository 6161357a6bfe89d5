"""What the commands share: arguments, presets, and errors of one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

PRESETS = Path(__file__).resolve().parents[1] / "configs"


def parser_for(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that prints the description as it is written, and the presets below it."""
    return argparse.ArgumentParser(
        prog=f"python {name}",
        description=description,
        epilog=list_presets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def preset_paths() -> list[Path]:
    """The presets in configs/, those of a folder together; what is in configs/launch is for launchers."""
    found = [path for path in PRESETS.rglob("*.yaml") if PRESETS / "launch" not in path.parents]
    return sorted(found, key=lambda path: (path.parent, path.name))


def list_presets() -> str:
    """The presets in configs/, each with the first line of its head comment."""
    lines = ["presets:"]
    for path in preset_paths():
        head = path.read_text().partition("\n")[0].lstrip("# ").strip()
        lines.append(f"  configs/{path.relative_to(PRESETS)!s:<36} {head}")
    return "\n".join(lines)


@contextmanager
def one_sentence_errors(name: str) -> Iterator[None]:
    """What the user can mend is said in one sentence on stderr, with exit status 2 (1 for a run that
    had to stop, or had too little memory), by one process of all; anything else is a defect of ours and
    keeps its traceback."""
    try:
        yield
    except Exception as error:
        from amortized.memory_errors import out_of_memory_message  # torch: a second
        from amortized.training import PeerLost, SaidElsewhere, TrainingStopped  # seconds

        if isinstance(error, SaidElsewhere):
            sys.exit(error.status)
        if sentence := out_of_memory_message(error):
            _fail(name, sentence, 1)
        if not isinstance(error, (ValueError, TrainingStopped, PeerLost)):
            raise
        _fail(name, str(error), 2 if isinstance(error, ValueError) else 1)


def _fail(name: str, message: str, status: int) -> NoReturn:
    sentence = " ".join(message.split())
    print(f"{name}: error: {sentence}", file=sys.stderr)
    sys.exit(status)


def progress_bar(label: str, *, quiet: bool) -> Callable[[int, int], None]:
    """`show(done, total)`: a bar on stderr."""
    from tqdm import tqdm

    bar = tqdm(desc=label, unit="prompt", disable=quiet)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
