"""The implementations of the splat renderer: PyTorch on any device, gsplat on a GPU.

Both use the same parameters, conventions and cut-offs.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from amortized.rendering.splats.projection import LOW_PASS, NEAR, focal_px, world_to_cv
from amortized.types import Cameras, SplatScene

SplatEngine = Literal["auto", "torch", "gsplat"]
INSTALL = "pip install 'gsplat>=1.5.3', which compiles its CUDA code at the first use with nvcc"


@cache
def why_no_gsplat() -> str:
    """Return why gsplat cannot be used; empty if it can. Its first import may compile for minutes."""
    if find_spec("gsplat") is None:
        return "gsplat is not installed"
    try:
        from gsplat.cuda._backend import _C  # type: ignore[import-not-found]
    except Exception as error:  # noqa: BLE001  a build can fail in any way
        return f"gsplat cannot be imported ({' '.join(str(error).split())[:200]})"
    return "" if _C is not None else "gsplat has no CUDA code here: it needs nvcc to compile it"


def splat_engine_on(
    device: torch.device, name: SplatEngine = "auto", dtype: torch.dtype = torch.float32
) -> str:
    """Resolve "auto" to the engine that renders splats on a device: torch or gsplat.

    gsplat computes in float32 only. Raises ValueError if gsplat is named and cannot run there.
    """
    if name == "torch":
        return name
    if device.type != "cuda" or dtype != torch.float32:
        reason = f"it needs float32 on a CUDA device, and the splats are {dtype} on {device}"
    else:
        reason = why_no_gsplat()
    if reason and name == "gsplat":
        hint = INSTALL if "gsplat" in reason else "set engine=auto"
        raise ValueError(f"splat engine gsplat cannot run: {reason} ({hint})")
    return "torch" if reason else "gsplat"


def render_with_gsplat(
    scene: SplatScene, cameras: Cameras, values: Tensor, height: int, width: int, *, antialias: bool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return sums [P, V, H, W, C], opacity [P, V, H, W] and gsplat's info, whose means2d are [P, V, N, 2].

    values: what to composite [P, V, N, C].
    """
    import gsplat  # type: ignore[import-not-found]

    rotation, translation = world_to_cv(cameras)
    view = torch.cat([rotation, translation[..., None]], dim=-1)  # [P, V, 3, 4]
    last = view.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*view.shape[:2], 1, 4)
    focal = focal_px(cameras, height)
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    intrinsics = [focal, zero, one * width / 2, zero, focal, one * height / 2, zero, zero, one]
    sums, opacity, info = gsplat.rasterization(
        scene.means,
        torch.nn.functional.normalize(scene.quaternions, dim=-1),
        scene.log_scales.exp(),
        torch.sigmoid(scene.logits),
        values,
        torch.cat([view, last], dim=-2),
        torch.stack(intrinsics, dim=-1).unflatten(-1, (3, 3)),
        width,
        height,
        near_plane=NEAR,
        eps2d=LOW_PASS,
        packed=False,  # fewer splats than packing pays for
        rasterize_mode="antialiased" if antialias else "classic",
    )
    return sums, opacity.squeeze(-1), info
