"""The values that travel between rooms. No logic lives here.

Axis letters, used in every shape comment of the project:

    P  prompts in the batch          V  views per prompt
    B  = P * V images, prompt-major: image b shows prompt b // V, view b % V
    H  image height, W  image width, R = V * H * W  rays per prompt
    S  samples along a ray           N  points per prompt
    L  text tokens                   D  width of a text embedding
    C  latent channels               h, w  latent height and width

World: right-handed, z up, the object inside the unit ball, azimuth 0 deg = front = +x, azimuth
grows counter-clockwise seen from above (90 deg = +y). `c2w` is camera-to-world with OpenGL axes:
the camera's x points right, y up, and it looks along its own -z. Images are channels-last floats
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One sentence of a corpus. `id` outlives reordering and names files; `text` never does."""

    id: str
    text: str
    split: str = "train"  # "train", or "heldout": never trained on


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """Text as a generator or a denoiser reads it, for P sentences."""

    pooled: Tensor  # [P, D] one vector a sentence, taken at the end-of-text token
    tokens: Tensor  # [P, L, D] last hidden states
    mask: Tensor  # [P, L] bool, True from begin-of-text to end-of-text inclusive


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """V cameras for each of P prompts, all looking at the origin."""

    c2w: Tensor  # [P, V, 4, 4]
    fovy_deg: Tensor  # [P, V] vertical field of view
    azimuth_deg: Tensor  # [P, V] in (-180, 180]
    elevation_deg: Tensor  # [P, V] above the horizon, in [-90, 90]
    distance: Tensor  # [P, V] from the origin


@dataclass(frozen=True, kw_only=True)
class Rays:
    """One ray through the centre of every pixel; rays of prompt p are ordered view, row, column."""

    origins: Tensor  # [P, R, 3]
    directions: Tensor  # [P, R, 3], unit length
    shape: tuple[int, int, int]  # (V, H, W), R = V * H * W


@runtime_checkable
class Scene(Protocol):
    """P implicit objects, one a prompt: what a generator returns and a renderer reads.

    `sdf` is negative inside. Points are [P, N, 3]: row p is asked of prompt p only. The object
    lies inside the ball of `bounding_radius`; outside it the scene is never queried.
    """

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that holds the object."""
        ...

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [P, N] at points [P, N, 3]."""
        ...

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [P, N] and albedo in [0, 1] [P, N, 3], from one field evaluation."""
        ...


@runtime_checkable
class SceneWithBackground(Scene, Protocol):
    """A scene with a background of its own, which may depend on the direction of sight."""

    @property
    def background(self) -> Callable[[Tensor], Tensor]:
        """Colours [P, R, 3] in [0, 1] seen along unit directions [P, R, 3] where the object is not."""
        ...


@dataclass(frozen=True, kw_only=True)
class RaySamples:
    """What regularizers read of a training render.

    K rays of each prompt were rendered. Prompts with fewer rays to render than the busiest one are
    filled up: `valid` is False there, weights are 0, sdf is the bounding radius (far outside). All
    tensors keep their graph. `gradient` is the SDF's, where it was computed, not normalized.
    """

    valid: Tensor  # [P, K] bool
    directions: Tensor  # [P, K, 3] of the rays, unit length
    t_positions: Tensor  # [P, K, S] distances of the samples from the camera
    sdf: Tensor  # [P, K, S]
    weights: Tensor  # [P, K, S] compositing weights, front to back
    gradient: Tensor | None = None  # [P, K, 3] at the expected surface point of each ray


@dataclass(frozen=True, kw_only=True)
class Render:
    """V images of each of P scenes."""

    rgb: Tensor  # [P, V, H, W, 3] composited over the background, in [0, 1]
    opacity: Tensor  # [P, V, H, W] in [0, 1]
    depth: Tensor  # [P, V, H, W] expected distance along the ray times opacity
    normal: Tensor | None = None  # [P, V, H, W, 3] unit, world axes, where it was asked for
    samples: RaySamples | None = None
    num_evaluations: int = 0  # field evaluations spent, all prompts together


class GroundTruth(Protocol):
    """What a procedural corpus knows of a prompt; real corpora know nothing."""

    def sdf(self, points: Tensor) -> Tensor:
        """Exact signed distance [N] at points [N, 3]."""
        ...

    def color(self, points: Tensor) -> Tensor:
        """Exact albedo [N, 3] of the surface nearest to points [N, 3]."""
        ...

    @property
    def kind(self) -> str:
        """Group under which scores are also averaged, e.g. the shape's name."""
        ...

    @property
    def front_mark(self) -> tuple[float, float, float] | None:
        """Centre of a mark that only the front shows, or None."""
        ...


class Corpus(Protocol):
    """A fixed, ordered set of prompts: the same index is the same prompt on every machine."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Prompt: ...

    @property
    def trained(self) -> Sequence[int]:
        """Indices of the prompts to train on, ascending: never the held-out ones."""
        ...

    @property
    def repeats(self) -> Iterable[int] | None:
        """How often the corpus' training list names each prompt; None: each once."""
        ...

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """Ground truth of the prompt, or None where there is none (or none is determined)."""
        ...

    def distractors(self) -> Sequence[str]:
        """Sentences besides the corpus' own that recall@1 must tell apart."""
        ...


__all__ = [
    "Cameras",
    "Corpus",
    "GroundTruth",
    "Prompt",
    "RaySamples",
    "Rays",
    "Render",
    "Scene",
    "SceneWithBackground",
    "TextCondition",
]
