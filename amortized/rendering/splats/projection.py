"""Projection of Gaussian splats to images (EWA, Zwicker et al. 2001; as 3D Gaussian Splatting uses it).

Camera space is OpenCV's here: x right, y down, z forward. Pixel (column i, row j) has its center at
(i + 0.5, j + 0.5). Pixels are square, with the optical axis in the image's center.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.splats import colors_of, rotation_matrices
from amortized.transfer import constant
from amortized.types import Cameras, SplatScene

NEAR = 0.01  # splats whose center is nearer to the camera plane are not drawn
LOW_PASS = 0.3  # px^2, added to the projected variances: every splat covers about a pixel
# Rays beyond this multiple of the field of view do not steepen the linearization further: splats at the
# border would explode.
MAX_TANGENT = 1.3


@dataclass(frozen=True, kw_only=True)
class Projection:
    """N splats of each of P prompts in V images each."""

    means: Tensor  # [P, V, N, 2] px, x right and y down
    conics: Tensor  # [P, V, N, 3] entries xx, xy, yy of the inverse covariances, 1 / px^2
    deviations: Tensor  # [P, V, N, 2] standard deviations along x and y, px
    depths: Tensor  # [P, V, N] along the optical axis
    opacities: Tensor  # [P, V, N]

    @property
    def radii(self) -> Tensor:
        """3 standard deviations [P, V, N] along the longest axis, px."""
        (xx, xy, _), (sx, sy) = self.conics.unbind(-1), self.deviations.unbind(-1)
        # The covariance is (sx^2, c; c, sy^2), and -xy / xx is c / sy^2.
        middle, covariance = (sx**2 + sy**2) / 2, -xy / xx * sy**2
        return 3 * (middle + (((sx**2 - sy**2) / 2) ** 2 + covariance**2).sqrt()).sqrt()


def project(scene: SplatScene, cameras: Cameras, height: int, width: int, *, antialias: bool) -> Projection:
    """Project the splats of P prompts to V images each. Differentiable in the scene.

    With `antialias`, opacities shrink as the low pass widens splats, so that their mass is the same at every
    resolution (Yu et al. 2024, "Mip-Splatting").
    """
    world_to_camera, translation = world_to_cv(cameras)  # [P, V, 3, 3], [P, V, 3]
    x, y, z = (torch.einsum("pvij,pnj->pvni", world_to_camera, scene.means) + translation[:, :, None]).unbind(
        -1
    )  # [P, V, N]
    focal = focal_px(cameras, height)[..., None]  # [P, V, 1]
    inverse = 1 / z.clamp(min=NEAR)
    # Rows of J R, where J is the derivative of the image position in camera space. J's last column has the
    # limited tangents; the positions themselves are not limited.
    limits = [MAX_TANGENT * 0.5 * size / focal for size in (width, height)]
    tangents = [
        torch.maximum(torch.minimum(side * inverse, limit), -limit)
        for side, limit in zip((x, y), limits, strict=True)
    ]
    right, down, forward = world_to_camera[:, :, None].unbind(-2)  # [P, V, 1, 3]
    axes = rotation_matrices(scene.quaternions) * scene.log_scales.exp()[..., None, :]  # [P, N, 3, 3]
    u, v = (
        torch.einsum(
            "pvni,pnij->pvnj", (focal * inverse)[..., None] * (side - tangent[..., None] * forward), axes
        )
        for side, tangent in zip((right, down), tangents, strict=True)
    )  # [P, V, N, 3]: the covariance is (u.u, u.v; u.v, v.v)
    covariance, area = (u * v).sum(-1), torch.linalg.cross(u, v)
    var_x, var_y = u.square().sum(-1) + LOW_PASS, v.square().sum(-1) + LOW_PASS
    # det(A A^T + e I) for A of rows u, v, without a difference of large numbers: |u x v|^2 + e (trace) + e^2.
    determinant = area.square().sum(-1) + LOW_PASS * (var_x + var_y - LOW_PASS)
    opacities = torch.sigmoid(scene.logits)[:, None].expand_as(z)
    if antialias:
        # sqrt(det before / det after). As a norm, it has a finite gradient where the splat is a line.
        opacities = opacities * torch.linalg.vector_norm(area, dim=-1) * determinant.rsqrt()
    return Projection(
        means=torch.stack([focal * x * inverse + 0.5 * width, focal * y * inverse + 0.5 * height], dim=-1),
        conics=torch.stack([var_y, -covariance, var_x], dim=-1) / determinant[..., None],
        deviations=torch.stack([var_x, var_y], dim=-1).sqrt(),
        depths=z,
        opacities=opacities,
    )


def values_of(scene: SplatScene, cameras: Cameras, *, want_normal: bool) -> Tensor:
    """Return the values to composite [P, V, N, 4 or 7]: rgb, depth and, if wanted, the normal.

    The depth is measured along the optical axis. A splat's normal is its shortest axis, turned to the camera.
    """
    rotation, translation = world_to_cv(cameras)
    depths = torch.einsum("pvj,pnj->pvn", rotation[..., 2, :], scene.means) + translation[..., 2:]
    values = [colors_of(scene.colors)[:, None].expand(*depths.shape, 3), depths[..., None]]
    if want_normal:
        shortest = scene.log_scales.argmin(-1)[..., None, None].expand(-1, -1, 3, 1)
        normals = (
            rotation_matrices(scene.quaternions).gather(-1, shortest).squeeze(-1)[:, None]
        )  # [P, 1, N, 3]
        to_camera = cameras.c2w[..., None, :3, 3] - scene.means[:, None]  # [P, V, N, 3]
        faces = (normals * to_camera).sum(-1, keepdim=True) >= 0
        values.append(torch.where(faces, normals, -normals))
    return torch.cat(values, dim=-1)


def world_to_cv(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Return rotations [P, V, 3, 3] and translations [P, V, 3] from the world to OpenCV camera space."""
    flip = constant((1.0, -1.0, -1.0), cameras.c2w)  # OpenGL's y is up and z backward
    rotation = (cameras.c2w[..., :3, :3] * flip).mT
    return rotation, -(rotation @ cameras.c2w[..., :3, 3:]).squeeze(-1)


def focal_px(cameras: Cameras, height: int) -> Tensor:
    """Return the focal length [P, V] in pixels."""
    return 0.5 * height / torch.tan(torch.deg2rad(cameras.fovy_deg) / 2)


def ray_lengths(cameras: Cameras, height: int, width: int) -> Tensor:
    """Return the distance [P, V, H, W] along each pixel's ray per unit of depth."""
    focal = focal_px(cameras, height)[..., None, None]
    like = {"dtype": focal.dtype, "device": focal.device}
    x = (torch.arange(width, **like) + 0.5 - 0.5 * width) / focal  # [P, V, 1, W]
    y = (torch.arange(height, **like)[:, None] + 0.5 - 0.5 * height) / focal  # [P, V, H, 1]
    return (1 + x.square() + y.square()).sqrt()
