"""Data types and protocols shared by all packages; no logic.

Axis letters, used in every shape comment of the project:

    P  prompts in the batch          V  views per prompt
    B  = P * V images, prompt-major: image b shows prompt b // V, view b % V
    H  image height, W  image width, R = V * H * W  rays per prompt
    S  samples along a ray           N  points per prompt
    L  text tokens                   D  width of a text embedding
    C  latent channels               h, w  latent height and width

World: right-handed, z up, the object inside the unit ball, azimuth 0 deg = front = +x, azimuth
increases counter-clockwise as viewed from above (90 deg = +y). `c2w` is camera-to-world with OpenGL axes:
the camera's x points right, y up, and it looks along its own -z. Images are channels-last floats
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a corpus. `id` is stable under reordering and safe in file names; `text` is neither."""

    id: str
    text: str
    split: str = "train"  # or "heldout": never trained on


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """Text embeddings of P prompts, the input of a generator or a denoiser."""

    pooled: Tensor  # [P, D] one vector per prompt, at the end-of-text token
    tokens: Tensor  # [P, L, D] last hidden states
    # [P, L] bool, True from begin-of-text to end-of-text, both included. Between two texts of different
    # lengths: float weights in [0, 1], which multiply the tokens' shares of the attention.
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """V cameras for each of P prompts, all of which look at the origin, up to the jitter of training.

    Angles and distance are those without jitter.
    """

    c2w: Tensor  # [P, V, 4, 4] camera to world
    fovy_deg: Tensor  # [P, V] vertical field of view
    azimuth_deg: Tensor  # [P, V] in (-180, 180]
    elevation_deg: Tensor  # [P, V] above the horizon, in [-90, 90]
    distance: Tensor  # [P, V] from the origin


@dataclass(frozen=True, kw_only=True)
class Rays:
    """One ray through each pixel center; the rays of a prompt are ordered by view, row, column."""

    origins: Tensor  # [P, R, 3]
    directions: Tensor  # [P, R, 3], unit length
    shape: tuple[int, int, int]  # (V, H, W), R = V * H * W


@runtime_checkable
class Scene(Protocol):
    """P implicit objects, one per prompt: the output of a generator and the input of the renderer.

    The SDF is negative inside. Points are [P, N, 3]: row p belongs to prompt p. The object lies inside the
    ball of `bounding_radius`, and the scene is not queried outside it.
    """

    @property
    def num_prompts(self) -> int:
        """P."""
        ...

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that contains the object."""
        ...

    def sdf(self, points: Tensor) -> Tensor:
        """Return signed distances [P, N] at points [P, N, 3]."""
        ...

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return signed distances [P, N] and albedo [P, N, 3] in [0, 1], from one field evaluation."""
        ...

    def select(self, index: int) -> Scene:
        """Return the scene of prompt `index` alone, with P = 1; it shares this scene's memory and graph.

        Raises IndexError unless 0 <= index < P.
        """
        ...


@runtime_checkable
class DensityScene(Protocol):
    """P objects, as a `Scene`, that are given by a volume density instead of a distance."""

    @property
    def num_prompts(self) -> int:
        """P."""
        ...

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that contains the object."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """Return densities [P, N] >= 0, in 1/length, at points [P, N, 3]."""
        ...

    def density_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return densities [P, N] and albedo [P, N, 3] in [0, 1], from one field evaluation."""
        ...

    def select(self, index: int) -> DensityScene:
        """Return the scene of prompt `index` alone, as `Scene.select` does."""
        ...


FieldScene = Scene | DensityScene  # one that can be queried at points


@runtime_checkable
class HasBackground(Protocol):
    """Of any scene: a learned background, which depends on the viewing direction only."""

    @property
    def background(self) -> Callable[[Tensor], Tensor]:
        """Function from unit directions [P, R, 3] to background colors [P, R, 3] in [0, 1]."""
        ...


@runtime_checkable
class SceneWithBackground(Scene, HasBackground, Protocol):
    """A scene with a learned background."""


@dataclass(frozen=True, kw_only=True)
class ScreenStatistics:
    """Measures of each splat over the images it was drawn in; renders in training add to them in place."""

    gradient: Tensor  # [P, N] sum over images of |d loss / d image position|, in half image sizes
    visits: Tensor  # [P, N] number of images
    radius: Tensor  # [P, N] largest of 3 standard deviations, as a share of the image's height


@dataclass(frozen=True, kw_only=True, eq=False)
class SplatScene:
    """P objects of N 3D Gaussians each, one object per prompt: the other input of the renderer.

    The parameters are the usual raw ones, so that files are exchangeable. Prompts with fewer splats than the
    busiest one are padded with opacity logits of -inf: such a splat is invisible and gets no gradient, so no
    code has to consult a mask.
    """

    means: Tensor  # [P, N, 3]
    quaternions: Tensor  # [P, N, 4] w, x, y, z, of any length but 0: local to world axes
    log_scales: Tensor  # [P, N, 3] logarithms of the standard deviations along the local axes
    logits: Tensor  # [P, N] of the opacities
    colors: Tensor  # [P, N, 3] spherical harmonics of degree 0: rgb = max(0, 0.2820948 * color + 0.5)
    bounding_radius: float  # of the ball around the origin that contains the object
    # Whether splats get fainter as pixels widen them, so that the object looks the same at every resolution.
    antialias: bool = True
    # Function from unit directions [P, R, 3] to background colors [P, R, 3] in [0, 1], if it is learned.
    background: Callable[[Tensor], Tensor] | None = None
    statistics: ScreenStatistics | None = None  # to be measured by renders in training

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.means)

    def select(self, index: int) -> SplatScene:
        """Return the scene of prompt `index` alone, with P = 1; it shares this scene's memory and graph.

        Raises IndexError unless 0 <= index < P.
        """
        if not 0 <= index < self.num_prompts:
            raise IndexError(f"select: the scene has {self.num_prompts} prompts, got index {index}")
        row, background, statistics = slice(index, index + 1), self.background, self.statistics
        tensors = ("means", "quaternions", "log_scales", "logits", "colors")
        return replace(
            self,
            **{name: getattr(self, name)[row] for name in tensors},
            # A background knows P prompts: give it a row for each.
            background=background and (lambda d: background(d.expand(self.num_prompts, -1, -1))[row]),
            statistics=statistics
            and ScreenStatistics(**{name: value[row] for name, value in vars(statistics).items()}),
        )


AnyScene = FieldScene | SplatScene


@dataclass(frozen=True, kw_only=True)
class RaySamples:
    """Samples along the K rendered rays of each prompt, the input of the regularizers.

    Prompts with fewer rays to render than the busiest one are padded: for padding rays, `valid` is False,
    weights are 0 and sdf is the bounding radius (far outside). All tensors keep their graph.
    """

    valid: Tensor  # [P, K] bool
    directions: Tensor  # [P, K, 3] unit length
    t_positions: Tensor  # [P, K, S] distances from the camera
    sdf: Tensor | None  # [P, K, S]; None for a `DensityScene`
    weights: Tensor  # [P, K, S] compositing weights, front to back
    # [P, K, 3] at the rays' expected depth, pointing outward, not normalized: the gradient of the SDF, or of
    # the negative density; None unless computed
    gradient: Tensor | None = None
    gradients: Tensor | None = None  # [P, K, S, 3] the same at every sample; None unless computed


@dataclass(frozen=True, kw_only=True)
class Render:
    """V images of each of P scenes."""

    # [P, V, H, W, 3] composited over the background; in [0, 1] if the scene's colors are, which splats of
    # foreign files may exceed
    rgb: Tensor
    opacity: Tensor  # [P, V, H, W] in [0, 1]
    depth: Tensor  # [P, V, H, W] expected distance along the ray, times opacity
    normal: Tensor | None = None  # [P, V, H, W, 3] unit length, world axes; None unless requested
    samples: RaySamples | None = None
    num_evaluations: int = 0  # field evaluations over all prompts


class GroundTruth(Protocol):
    """The exact shape of a prompt of a procedural corpus. Other corpora have none."""

    def sdf(self, points: Tensor) -> Tensor:
        """Return exact signed distances [N] at points [N, 3]."""
        ...

    def color(self, points: Tensor) -> Tensor:
        """Return the exact albedo [N, 3] of the nearest surface at points [N, 3]."""
        ...

    @property
    def kind(self) -> str:
        """Group for which scores are also averaged, e.g. the shape's name."""
        ...

    @property
    def front_mark(self) -> tuple[float, float, float] | None:
        """Center [x, y, z] of a mark that is visible from the front only, or None."""
        ...


class Corpus(Protocol):
    """A fixed, ordered set of prompts: an index means the same prompt on every machine."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Prompt: ...

    @property
    def trained(self) -> Sequence[int]:
        """Indices of the training prompts, ascending; held-out prompts are excluded."""
        ...

    @property
    def repeats(self) -> Iterable[int] | None:
        """Multiplicity of each prompt in the corpus's training list; None: all 1."""
        ...

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """Return the ground truth of a prompt, or None if it has none or an ambiguous one."""
        ...

    def distractors(self) -> Sequence[str]:
        """Additional texts among which recall@1 must find the right prompt."""
        ...


__all__ = [
    "AnyScene",
    "Cameras",
    "Corpus",
    "DensityScene",
    "FieldScene",
    "GroundTruth",
    "HasBackground",
    "Prompt",
    "RaySamples",
    "Rays",
    "Render",
    "Scene",
    "SceneWithBackground",
    "ScreenStatistics",
    "SplatScene",
    "TextCondition",
]
