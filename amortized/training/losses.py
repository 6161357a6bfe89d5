"""The regularization of a render: scheduled weights times the terms of `regularizers`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from amortized.config import Schedule, check_schedule, value_at
from amortized.training import regularizers
from amortized.types import Cameras, RaySamples, Render


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the regularizers; a term with weight 0 is not computed."""

    sparsity: Schedule = (0.0, 0.0, 20.0, 0.05)  # warmed up: at full weight it empties young scenes
    opaque: Schedule = 0.0
    eikonal: Schedule = 0.0
    # Take `eikonal` at all samples of a ray, as ScaleDreamer's code does: four more field evaluations each.
    # null: at one point of each ray, its expected depth.
    eikonal_samples: bool | None = None
    orient: Schedule = 0.0
    z_variance: Schedule = 0.0
    opacity_floor: Schedule = 0.0
    opacity_cap: Schedule = 0.0
    inside: Schedule = 0.0
    convex: Schedule | None = None
    tv: Schedule | None = None  # total variation of the colors
    floor: float = 0.08  # of `opacity_floor`: the minimal mean opacity of an image
    cap: float = 0.4  # of `opacity_cap`: the maximal one

    def __post_init__(self) -> None:
        for term in fields(self):
            if term.name != "eikonal_samples":
                check_schedule(term.name, getattr(self, term.name) or 0.0)
        if not 0 <= self.floor < self.cap <= 1:
            raise ValueError(
                f"floor and cap must satisfy 0 <= floor < cap <= 1, got {self.floor} and {self.cap}"
            )

    @property
    def of_distances(self) -> list[str]:
        """The terms in use that only scenes with signed distances have."""
        return [name for name in ("eikonal", "inside") if getattr(self, name) != 0]

    @property
    def along_rays(self) -> list[str]:
        """The terms in use that only scenes with samples along rays have."""
        names = ("eikonal", "orient", "z_variance", "inside")
        return [name for name in names if getattr(self, name) != 0]

    def need_normals(self, progress: float) -> bool:
        """Whether a term needs the field's gradient, which the renderer computes only on request."""
        eikonal = 0.0 if self.eikonal_samples else self.eikonal
        schedules = (eikonal, self.orient, self.convex or 0.0)
        return any(value_at(schedule, progress) > 0 for schedule in schedules)

    def need_gradients(self, progress: float) -> bool:
        """Whether a term needs the field's gradient at every sample, also on request only."""
        return bool(self.eikonal_samples) and value_at(self.eikonal, progress) > 0


def regularization(
    render: Render, cameras: Cameras, config: LossConfig, progress: float
) -> dict[str, Tensor]:
    """The weighted terms, scalars: means over prompts, so that they do not depend on the number of ranks.

    Raises ValueError if a term needs samples along rays and the render, of splats, has none.
    """

    def samples(term: str) -> RaySamples:
        if render.samples is None:
            raise ValueError(
                f"losses.{term} reads the signed distances along rays, which splats do not have: set it to 0"
            )
        return render.samples

    terms = {
        "sparsity": lambda: regularizers.sparsity(render.opacity),
        "opaque": lambda: regularizers.opaque(render.opacity),
        "eikonal": lambda: regularizers.eikonal(samples("eikonal")),
        "orient": lambda: regularizers.orient(samples("orient")),
        "z_variance": lambda: regularizers.z_variance(samples("z_variance")),
        "opacity_floor": lambda: regularizers.opacity_floor(render.opacity, config.floor),
        "opacity_cap": lambda: regularizers.opacity_cap(render.opacity, config.cap),
        "inside": lambda: regularizers.inside_hinge(samples("inside")),
        "convex": lambda: regularizers.convex(render, cameras),
        "tv": lambda: regularizers.tv(render.rgb),
    }
    weights = {name: value_at(getattr(config, name) or 0.0, progress) for name in terms}
    return {name: weights[name] * term().mean() for name, term in terms.items() if weights[name] > 0}
