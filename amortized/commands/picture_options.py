"""Options of pictures, for `amortized generate`: what they show, from where, of which size and format."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from amortized.arguments import background, names, number, whole

if TYPE_CHECKING:
    from amortized.generation import TextTo3D
    from amortized.generation.pictures import Look

MAX_PIXELS = 2**26  # of a strip, or of all frames of a WebP: with their RGB in float32, 800 MB
MAX_VIDEO_PIXELS, MAX_VIDEO_SIDE = 4096 * 2304, 4096  # of H.264's level 5.2, which devices decode
# Memory per pixel. Measured for a render: 210 (4096 x 4096, float32, on a CPU).
RENDER_BYTES, STRIP_BYTES, WEBP_BYTES = 240, 28, 8
FORMATS, VIDEOS = ("png", "mp4", "webp"), ("mp4", "webp")
SHOWN = ("rgb", "normal", "depth", "opacity")
CAMERAS = ("turntable", "orbit", "fixed")


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of pictures, cameras, and the way between two prompts."""
    look = parser.add_argument_group("pictures")
    look.add_argument("--size", type=whole(1, 4096), default=128, help="pixels per side (%(default)s)")
    look.add_argument(
        "--views", type=whole(1, 256), help="views in a strip (4), or steps between prompts (6)"
    )
    look.add_argument(
        "--show",
        type=names(SHOWN),
        default=("rgb",),
        help="rows of each picture: rgb, normal (world axes), depth (near is white), opacity (default: rgb)",
    )
    look.add_argument(
        "--background",
        type=background,
        help="a gray 0..1, a color #rrggbb, or environment (default: that if there is one, else 0.5)",
    )
    look.add_argument("--frames", type=whole(0, 10_000), default=24, help="of a video; 0: none (%(default)s)")
    look.add_argument("--fps", type=number(1, 120), default=12.0, help="frames per second (%(default)g)")

    camera = parser.add_argument_group("camera")
    camera.add_argument(
        "--camera",
        choices=CAMERAS,
        help="turntable: once around; orbit: around, and up and down; fixed "
        "(default: turntable, between prompts fixed)",
    )
    camera.add_argument(
        "--azimuth", type=number(-360, 360), default=20.0, help="of the first view, degrees (%(default)g)"
    )
    camera.add_argument(
        "--elevation", type=number(-90, 90), default=20.0, help="above the horizon, degrees (%(default)g)"
    )
    camera.add_argument(
        "--distance", type=number(0.01, 1000), help="from the center (default: as in training)"
    )
    camera.add_argument(
        "--fovy", type=number(1, 170), help="field of view, degrees (default: as in training)"
    )

    way = parser.add_argument_group("between two prompts")
    way.add_argument(
        "--interpolate", action="store_true", help="show the way from the first PROMPT to the second"
    )
    way.add_argument(
        "--method", choices=("lerp", "slerp"), help="line or great circle between texts (default: lerp)"
    )
    way.add_argument("--loop", action="store_true", help="and back again")


def picture_formats(args: argparse.Namespace) -> list[str]:
    """The formats of pictures to write. Raises ValueError for contradicting or too large options."""
    formats = [format for format in args.format or ("png", "mp4") if format in FORMATS]
    videos = [format for format in formats if format in VIDEOS]
    stands_still = camera_of(args) == "fixed" and not args.interpolate
    if not args.interpolate and (args.loop or args.method):
        raise ValueError(f"--{'loop' if args.loop else 'method'} is for --interpolate")
    if args.interpolate and (args.views == 1 or args.frames == 1):
        raise ValueError("--interpolate needs at least 2 --views and --frames, one for each prompt")
    if stands_still and args.views not in (None, 1):
        raise ValueError(f"--camera fixed has one view, not the {args.views} of --views: omit one of them")
    if stands_still or args.frames == 0:
        if args.format and videos:
            reason = "--camera fixed: nothing moves" if stands_still else "--frames 0"
            raise ValueError(f"--format {videos[0]} needs a video, but {reason}: choose --format png")
        formats = [format for format in formats if format not in VIDEOS]
    _check_sizes(args, formats)
    return formats


def _check_sizes(args: argparse.Namespace, formats: list[str]) -> None:
    """Raise ValueError for a format that needs too much memory or that players do not decode."""
    rows = len(args.show)
    frame = rows * args.size**2
    sizes = f"--size {args.size} with --show {','.join(args.show)}"
    if "mp4" in formats and (frame > MAX_VIDEO_PIXELS or rows * args.size > MAX_VIDEO_SIDE):
        raise ValueError(
            f"{sizes} makes larger frames than players of mp4 decode (4096 x 2304 pixels, no side above "
            f"{MAX_VIDEO_SIDE}): lower one of them, or choose --format png"
        )
    num_frames = args.frames * (2 if args.loop else 1)
    for format, option, count in (("png", "views", num_views(args)), ("webp", "frames", num_frames)):
        if format in formats and count * frame > MAX_PIXELS:
            raise ValueError(
                f"{sizes} and {count} {option} makes a {format} of more than {MAX_PIXELS:,} pixels: "
                f"lower --size or --{option}"
            )


def check_memory(args: argparse.Namespace, formats: list[str], on_cpu: bool) -> None:
    """Raise ValueError if the pictures need more than the main memory that is available."""
    from amortized.memory_errors import available_cpu_bytes

    view, rows = args.size**2, len(args.show)
    held = {"png": num_views(args) * STRIP_BYTES, "webp": args.frames * (2 if args.loop else 1) * WEBP_BYTES}
    needed = max([held.get(format, 0) for format in formats]) * rows * view
    needed += RENDER_BYTES * view if on_cpu else 0
    available = available_cpu_bytes()
    if available is not None and needed > available:
        raise ValueError(
            f"--size {args.size} needs {needed / 2**30:.1f} GiB of memory for {' and '.join(formats)}, and "
            f"{available / 2**30:.1f} GiB are available: lower it, or --views or --frames"
        )


def camera_of(args: argparse.Namespace) -> Any:
    """The chosen camera, or the default: between two prompts, only the object changes."""
    return args.camera or ("fixed" if args.interpolate else "turntable")


def num_views(args: argparse.Namespace) -> int:
    """The views of a strip, or the steps of a grid."""
    if args.interpolate:
        return args.views or 6
    return args.views or (1 if camera_of(args) == "fixed" else 4)


def look_of(args: argparse.Namespace, model: TextTo3D) -> Look:
    """How pictures show objects. Raises ValueError for the environment of a model that has none."""
    from amortized.generation.pictures import Look

    if args.background == "environment" and not model.has_environment:
        raise ValueError("--background environment: this generator has none, so give a gray or a color")
    behind = args.background
    if behind is None:
        behind = "environment" if model.has_environment else 0.5
    distance, fovy_deg = model.config.cameras.middle
    return Look(
        camera=camera_of(args),
        azimuth_deg=args.azimuth,
        elevation_deg=args.elevation,
        distance=args.distance or distance,
        fovy_deg=args.fovy or fovy_deg,
        size=args.size,
        background=None if behind == "environment" else behind,
        show=args.show,
    )


def settings_of(args: argparse.Namespace, look: Look, format: str) -> dict[str, Any]:
    """The settings that a file depends on, as JSON values: equal to themselves after reading."""
    settings = {**asdict(look), "show": list(look.show)}
    if isinstance(look.background, tuple):
        settings["background"] = list(look.background)
    settings |= {"views": num_views(args)} if format == "png" else {"frames": args.frames, "fps": args.fps}
    if args.interpolate:
        settings["method"] = args.method or "lerp"
        settings |= {} if format == "png" else {"loop": args.loop}
    return settings
