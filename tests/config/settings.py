"""Settings that the tests of this folder read: sections, choices, lists, a shorthand and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Trainer:
    steps: int = 100
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw"] = "adamw"
    ema: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"trainer.lr must be positive, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Grid:
    name: Literal["grid"] = "grid"
    levels: int = 16
    growth: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Planes:
    name: Literal["planes"] = "planes"
    resolution: int = 64


@dataclass(frozen=True, kw_only=True)
class Cameras:
    distance: tuple[float, float] = (1.0, 1.5)
    views: tuple[str, ...] = ("front",)
    lens: float | tuple[float, float] = 50.0


@dataclass(frozen=True, kw_only=True)
class Prior:
    shorthand: ClassVar[str] = "path"
    path: str = "a/b"
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Run:
    corpus: str
    output: Path = Path("outputs/run")
    seed: int = 0
    prompt: str | None = None
    prior: Prior = Prior()
    trainer: Trainer = Trainer()
    generator: Grid | Planes = Planes(resolution=8)
    cameras: Cameras = field(default_factory=lambda: Cameras(distance=(2.0, 3.0)))


def write(folder: Path, text: str, name: str = "preset.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
