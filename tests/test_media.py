"""PNG and MP4 files decode to the images that were written."""

import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from amortized.media import save_grid, save_png, save_strip, save_video, save_webp, to_uint8


def test_pixels_are_rounded_and_clamped():
    image = torch.tensor([0.0, 1.0, 0.5, -3.0, 7.0, float("nan"), 1 / 255, 0.6 / 255])
    assert to_uint8(image).tolist() == [0, 255, 128, 0, 255, 0, 1, 1]


def test_png_round_trip_is_exact(tmp_path):
    image = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "sub" / "a.png", image / 255)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sub" / "a.png")), image.numpy())
    assert os.listdir(tmp_path / "sub") == ["a.png"]
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        save_png(tmp_path / "b.png", torch.zeros(3, 4, 4))


def test_strip_and_grid_contain_every_image_at_its_position(tmp_path):
    images = torch.rand(5, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    save_strip(tmp_path / "strip.png", images)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (4, 30, 3)
    save_grid(tmp_path / "grid.png", images, columns=2)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (12, 12, 3)
    for i, image in enumerate(to_uint8(images)):
        assert np.array_equal(strip[:, 6 * i : 6 * i + 6], image)
        row, column = divmod(i, 2)
        assert np.array_equal(grid[4 * row : 4 * row + 4, 6 * column : 6 * column + 6], image)
    assert not grid[8:, 6:].any()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47)])
def test_turntable_plays_back(tmp_path, height, width):
    levels = torch.linspace(0.1, 0.9, 7)
    frames = levels[:, None, None, None].expand(7, height, width, 3).clone()
    frames[..., 0] = 1.0 - frames[..., 0]
    save_video(tmp_path / "t.mp4", frames, fps=12)
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12)
        played = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert played.shape == (7, 32, 48, 3)
    assert np.abs(played[:, 8, 8].astype(float) - to_uint8(frames)[:, 8, 8]).max() < 8  # lossy
    data = (tmp_path / "t.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # starts playing before it is fully loaded
    assert os.listdir(tmp_path) == ["t.mp4"]


def test_turntable_pixel_format_plays_in_browsers(tmp_path):
    save_video(tmp_path / "t.mp4", torch.rand(3, 16, 16, 3), fps=7.5)
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 7.5
        context = stream.codec_context
        # Else players guess, and take another matrix for large frames than for small ones.
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 5)
        assert context.color_range == 1


@pytest.mark.parametrize("fps", [12, 7.5, 30000 / 1001])
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 2, 2), (5, 33, 18), (49, 64, 20)])
def test_every_frame_is_in_the_video_in_order(tmp_path, fps, num_frames, height, width):
    levels = torch.linspace(0.1, 0.9, num_frames)
    frames = (torch.full((height, width, 3), float(level)) for level in levels)  # read one by one
    save_video(tmp_path / "t.mp4", frames, fps)
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert len(decoded) == stream.frames == num_frames
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
        assert float(stream.duration * stream.time_base) == pytest.approx(num_frames / fps, rel=1e-3)
    for frame, level in zip(decoded, levels, strict=True):
        pixels = frame.to_ndarray(format="rgb24")
        assert pixels.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(pixels / 255 - float(level)).max() < 0.02


def test_webp_has_every_frame(tmp_path):
    levels = torch.linspace(0.1, 0.9, 5)
    save_webp(tmp_path / "t.webp", levels[:, None, None, None].expand(5, 7, 9, 3), fps=12.5)
    with Image.open(tmp_path / "t.webp") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (5, (9, 7), 0)
        for number, level in enumerate(levels):
            image.seek(number)
            pixels = np.asarray(image.convert("RGB")) / 255
            assert np.abs(pixels - float(level)).max() < 0.02 and image.info["duration"] == 80
