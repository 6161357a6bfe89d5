"""Pictures of generated objects: strips of views, videos along a camera path, and ways between two prompts.

Every picture has a row for each quantity that it shows:

    rgb      the object before its background
    normal   (n + 1) / 2, n in world axes: a side keeps its color while the camera turns
    depth    distance from the camera: white at `Pictures.depth_range[0]`, black at `[1]`
    opacity  gray

Behind the object, the last three are black. Frames are rendered when they are read, a few at a time, so that
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amortized.cameras import CameraPath, camera_path, slice_views
from amortized.generation.interpolation import Method
from amortized.generation.model import TextTo3D
from amortized.media import caption, save_png, save_video, save_webp
from amortized.rendering import radius_of
from amortized.types import AnyScene, Cameras, Render

PIXELS_PER_RENDER = 2**20  # some 100 MB


@dataclass(frozen=True, kw_only=True)
class Look:
    """From where and how an object is shown."""

    camera: CameraPath = "turntable"
    azimuth_deg: float = 20.0  # of the first view
    elevation_deg: float = 20.0
    distance: float
    fovy_deg: float
    size: int = 128  # pixels per side of a view
    background: float | tuple[float, float, float] | None = 0.5  # gray or color; None: the environment
    show: tuple[str, ...] = ("rgb",)  # the rows, from top to bottom

    def cameras(self, num_views: int) -> Cameras:
        """V cameras [1, V] along the path."""
        return camera_path(
            self.camera,
            num_views,
            azimuth_deg=self.azimuth_deg,
            elevation_deg=self.elevation_deg,
            distance=self.distance,
            fovy_deg=self.fovy_deg,
        )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is shown of one object, or of the way between two prompts: each call renders."""

    strip: Callable[[], Tensor]  # an image [H, W, 3]
    video: Callable[[], Iterable[Tensor]]  # frames [H, W, 3]
    depth_range: tuple[float, float]  # distances from the camera that are white and black


def object_pictures(
    model: TextTo3D, prompt: str, seed: int, look: Look, *, num_views: int, num_frames: int
) -> Pictures:
    """A strip of `num_views` views, side by side, and a video of `num_frames` frames along the path."""
    scene = model.scenes([prompt], seed)
    depth_range = _depth_range(model, scene, look)

    def frames(number: int) -> Iterator[Tensor]:
        return _frames(model, scene, look.cameras(number), look, depth_range)

    return Pictures(
        strip=lambda: torch.cat(list(frames(num_views)), dim=1),
        video=lambda: frames(num_frames),
        depth_range=depth_range,
    )


def pictures_between(
    model: TextTo3D,
    prompts: tuple[str, str],
    seed: int,
    look: Look,
    *,
    method: Method,
    loop: bool,
    num_views: int,
    num_frames: int,
) -> Pictures:
    """A grid of `num_views` steps with captions, from the first camera, and a video of the way.

    The video has T = `num_frames` frames from the first prompt to the second, both included, and with `loop`
    the same steps back without the ends: 2 T - 2 frames in all.
    """
    there = [k / (num_frames - 1) for k in range(num_frames)]
    positions = there + (there[-2:0:-1] if loop else [])
    steps = [k / (num_views - 1) for k in range(num_views)]
    ends = model.interpolate(*prompts, 2, seed, method=method)
    depth_range = _depth_range(model, ends, look)

    def frames(positions: list[float], cameras: Cameras) -> Iterator[Tensor]:
        # One scene at a time: that of a 3DConv-net takes 268 MB.
        for number, position in enumerate(positions):
            scene = model.interpolate(*prompts, [position], seed, method=method)
            yield from _frames(
                model, scene, slice_views(cameras, slice(number, number + 1)), look, depth_range
            )

    def grid() -> Tensor:
        still = slice_views(look.cameras(1), slice(0, 1))
        columns = []
        for position in steps:
            (picture,) = frames([position], still)
            columns.append(torch.cat([caption(_label(position, prompts), look.size), picture]))
        return torch.cat(columns, dim=1)

    return Pictures(
        strip=grid,
        video=lambda: frames(positions, look.cameras(len(positions))),
        depth_range=depth_range,
    )


def save_pictures(pictures: Pictures, path: Path, format: str, fps: float) -> None:
    """Write the strip (png) or the video (mp4, webp), atomically. Raises OSError."""
    if format == "png":
        save_png(path, pictures.strip())
    else:
        save = {"mp4": save_video, "webp": save_webp}[format]
        save(path, pictures.video(), fps)


def _label(position: float, prompts: tuple[str, str]) -> str:
    if position in (0.0, 1.0):
        return prompts[int(position)]
    return f"{100 * position:.0f}%"


def _frames(
    model: TextTo3D, scene: AnyScene, cameras: Cameras, look: Look, depth_range: tuple[float, float]
) -> Iterator[Tensor]:
    """Frames [rows * H, W, 3] on the CPU, of one scene from cameras [1, V]."""
    together = max(1, PIXELS_PER_RENDER // look.size**2)
    for start in range(0, cameras.fovy_deg.shape[1], together):
        rendered = model.images(
            scene,
            slice_views(cameras, slice(start, start + together)),
            look.size,
            background=0.5 if look.background is None else look.background,
            show_environment=look.background is None,
            want_normal="normal" in look.show,
        )
        rows = [_row(name, rendered, depth_range)[0] for name in look.show]
        yield from torch.cat(rows, dim=1).cpu()


def _row(name: str, rendered: Render, depth_range: tuple[float, float]) -> Tensor:
    """Images [P, V, H, W, 3] of one quantity."""
    if name == "rgb":
        return rendered.rgb
    opacity = rendered.opacity[..., None]
    if name == "opacity":
        return opacity.expand_as(rendered.rgb)
    if name == "normal":
        assert rendered.normal is not None, "rendered with want_normal"
        return opacity * (rendered.normal + 1) / 2
    near, far = depth_range
    # `depth` is premultiplied by opacity, and so is the result.
    shade = (far * opacity - rendered.depth[..., None]) / (far - near)
    return shade.clamp(0, 1).expand_as(rendered.rgb)


def _depth_range(model: TextTo3D, scene: AnyScene, look: Look) -> tuple[float, float]:
    """The least and greatest possible distance of the objects' surfaces from the camera."""
    radius = radius_of(scene, model.device)
    return max(0.0, look.distance - radius), look.distance + radius
