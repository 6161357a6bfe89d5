"""What a run writes about itself: JSON lines, TensorBoard, and a progress bar, on rank 0 only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """One line a step in `log.jsonl`; the same numbers in TensorBoard and beside the progress bar."""

    def __init__(self, folder: Path, *, start: int, steps: int, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        _drop_lines_from(self.path, start)
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.bar = tqdm(
            total=steps,
            initial=start,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=quiet,
        )

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """`values` of a finished step (counted from 1)."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self.board.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """A line above the progress bar, kept in TensorBoard."""
        self.board.add_text("notes", text)
        if not self.bar.disable:
            self.bar.write(text)

    def advance(self, **shown: float | int) -> None:
        self.bar.set_postfix(
            {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in shown.items()},
            refresh=False,
        )
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()


def _drop_lines_from(path: Path, start: int) -> None:
    """Forget lines of steps after `start`, and a half-written last line: those steps come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.replace(path)
