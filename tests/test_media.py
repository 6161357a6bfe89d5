"""PNG and MP4 files decode to the images that were written."""

import os

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from amortized.media import save_grid, save_png, save_strip, save_turntable, to_uint8


def test_pixels_are_rounded_and_clamped():
    image = torch.tensor([0.0, 1.0, 0.5, -3.0, 7.0, float("nan"), 1 / 255, 0.6 / 255])
    assert to_uint8(image).tolist() == [0, 255, 128, 0, 255, 0, 1, 1]


def test_png_round_trip_is_exact(tmp_path):
    image = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "sub" / "a.png", image / 255)
    assert np.array_equal(iio.imread(tmp_path / "sub" / "a.png"), image.numpy())
    assert os.listdir(tmp_path / "sub") == ["a.png"]
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        save_png(tmp_path / "b.png", torch.zeros(3, 4, 4))


def test_strip_and_grid_contain_every_image_at_its_position(tmp_path):
    images = torch.rand(5, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    save_strip(tmp_path / "strip.png", images)
    strip = iio.imread(tmp_path / "strip.png")
    assert strip.shape == (4, 30, 3)
    save_grid(tmp_path / "grid.png", images, columns=2)
    grid = iio.imread(tmp_path / "grid.png")
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
    save_turntable(tmp_path / "t.mp4", frames, fps=12)
    played = iio.imread(tmp_path / "t.mp4", plugin="pyav")
    assert played.shape == (7, 32, 48, 3)
    assert np.abs(played[:, 8, 8].astype(float) - to_uint8(frames)[:, 8, 8]).max() < 8  # lossy
    meta = iio.immeta(tmp_path / "t.mp4", plugin="pyav")
    assert meta["codec"] == "h264" and meta["fps"] == 12
    properties = iio.improps(tmp_path / "t.mp4", plugin="pyav")
    assert properties.shape[0] == 7
    data = (tmp_path / "t.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # starts playing before it is fully loaded
    assert os.listdir(tmp_path) == ["t.mp4"]


def test_turntable_pixel_format_plays_in_browsers(tmp_path):
    import av

    save_turntable(tmp_path / "t.mp4", torch.rand(3, 16, 16, 3), fps=7.5)
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 7.5
