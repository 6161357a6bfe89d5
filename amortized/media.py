"""Write float images in [0, 1] as PNG, and videos as MP4 or animated WebP, atomically."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amortized.files import atomic_path, atomic_write_bytes

CAPTION_HEIGHT, CAPTION_MARGIN = 28, 3  # px
BT709 = 1  # of H.264's primaries and transfer functions; those of sRGB, to players


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert images [..., 3], float in [0, 1], to uint8 on the CPU: clamped and rounded, NaN becomes 0."""
    return images.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().cpu().numpy()


def save_png(path: str | Path, image: Tensor) -> None:
    """Write an image [H, W, 3]; raises ValueError for another shape."""
    from PIL import Image

    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"save_png needs an image [H, W, 3], got {list(image.shape)}")
    encoded = io.BytesIO()  # a file that a library has open fails a second time, when it is collected
    Image.fromarray(to_uint8(image)).save(encoded, "PNG")
    atomic_write_bytes(path, encoded.getvalue())


def save_strip(path: str | Path, images: Tensor) -> None:
    """Write V images [V, H, W, 3] side by side, left to right."""
    save_png(path, images.movedim(0, 1).flatten(1, 2))


def tile(images: Tensor, columns: int) -> Tensor:
    """N images [N, H, W, 3] in one, row by row in `columns` columns; unused tiles are black."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    num_images, height, width, _ = images.shape
    rows = -(-num_images // columns)
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - num_images))
    tiles = padded.reshape(rows, columns, height, width, 3)
    return tiles.transpose(1, 2).reshape(rows * height, columns * width, 3)


def save_grid(path: str | Path, images: Tensor, columns: int) -> None:
    """Write N images [N, H, W, 3] row by row in `columns` columns; unused tiles are black."""
    save_png(path, tile(images, columns))


def caption(text: str, width: int) -> Tensor:
    """A white band [CAPTION_HEIGHT, width, 3] with `text` in black, in at most two lines; the rest is cut.

    Any text is accepted: characters that the font lacks are boxes, control characters are "?".
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    words = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[:1000].split()))
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow without FreeType draws Latin letters only
        words = words.encode("latin-1", errors="replace").decode("latin-1")
    room = width - 2 * CAPTION_MARGIN
    first = _fitting(words, font, room)
    if len(first) < len(words) and " " in first:
        first = first.rpartition(" ")[0]  # break between words, if the first is not too long
    rest = words[len(first) :].strip()
    second = _fitting(rest, font, room)
    if len(second) < len(rest):
        second = _fitting(rest, font, room - font.getlength("...")) + "..."
    image = Image.new("RGB", (width, CAPTION_HEIGHT), "white")
    ImageDraw.Draw(image).multiline_text((CAPTION_MARGIN, 1), f"{first}\n{second}", fill="black", font=font)
    return torch.from_numpy(np.array(image)).float() / 255


def _fitting(text: str, font: Any, width: float) -> str:
    """The longest beginning of a text that is drawn in `width` pixels."""
    lengths = range(len(text) + 1)
    return text[: bisect_right(lengths, width, key=lambda length: font.getlength(text[:length])) - 1]


def save_video(path: str | Path, frames: Iterable[Tensor], fps: float) -> None:
    """Write frames [H, W, 3], or a tensor of them [T, H, W, 3], as an H.264 MP4 that all browsers play.

    One frame is in memory at a time. Browsers require 4:2:0 color, which requires even sides: an odd side
    repeats its last row or column.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    with atomic_path(path) as temporary:
        # "faststart" puts the index first, so that playback starts before the download ends.
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"}
            )
            stream.pix_fmt = "yuv420p"
            # All three are named, else players guess the matrix by the size: BT.709 from 720 rows on.
            stream.codec_context.color_range = ColorRange.MPEG
            stream.codec_context.color_primaries = BT709
            stream.codec_context.color_trc = BT709
            stream.codec_context.colorspace = Colorspace.ITU601  # of the conversion below
            for number, frame in enumerate(frames):
                height, width = frame.shape[:2]
                pixels = np.pad(to_uint8(frame), [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
                if number == 0:
                    stream.height, stream.width = pixels.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def save_webp(path: str | Path, frames: Iterable[Tensor], fps: float) -> None:
    """Write frames [H, W, 3], or a tensor of them [T, H, W, 3], as an animated WebP that repeats.

    Frames are shown for whole milliseconds. All of them are in memory, 3 bytes per pixel.
    """
    from PIL import Image

    first, *others = [Image.fromarray(to_uint8(frame)) for frame in frames]
    encoded = io.BytesIO()
    first.save(
        encoded, "WEBP", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=90
    )
    atomic_write_bytes(path, encoded.getvalue())
