"""Placement of the solids of a sentence, for every pair of shapes and sizes and every relation."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from amortized.cameras import cameras_at
from corpora.shapes.grammar import COLORS, RELATIONS, SHAPES, SIZES, WHITE, Description, Item
from corpora.shapes.render import Light, render_truth
from corpora.shapes.scene import GAP, MARK_RADIUS, ShapesTruth, truth_of
from tests.corpora.solids import inside, surface

AXIS = {"on top of": 2, "next to": 1, "in front of": 0}
SIGN = {"on top of": 1, "next to": -1, "in front of": 1}  # side of the first item along that axis
FLAT = Light(ambient=1.0, diffuse=0.0)
NUM_PAIRS = (len(SHAPES) * len(SIZES)) ** 2


def pair(first: Item, relation: str, second: Item) -> ShapesTruth:
    return truth_of(Description((first, second), relation=relation))


def marked(shape: str, color: str = "blue", size: str = "") -> ShapesTruth:
    return truth_of(Description((Item(shape, color, size),), marked=True))


def world(truth: ShapesTruth, spacing: float = 0.06) -> list[np.ndarray]:
    """Surface samples [N, 3] of each solid in world coordinates."""
    return [np.array(solid.center) + solid.scale * surface(solid.shape, spacing) for solid in truth.solids]


def look(truth: ShapesTruth, *azimuths_deg: float, size: int = 64) -> torch.Tensor:
    """Render unshaded images [V, size, size, 3] over black at elevation 0."""
    azimuth = torch.tensor([azimuths_deg])
    cameras = cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=torch.zeros_like(azimuth),
        distance=torch.full_like(azimuth, 2.6),
        fovy_deg=torch.full_like(azimuth, 38.0),
    )
    return render_truth(truth, cameras, size, light=FLAT, background=torch.zeros(len(azimuths_deg), 3))


@pytest.fixture(scope="module", params=RELATIONS)
def all_pairs(request) -> tuple[str, np.ndarray, np.ndarray]:
    """The relation, and bounding boxes [pairs, item, low or high, 3] and radii [pairs] of all pairs."""
    items = [Item(shape, "red", size) for shape, size in itertools.product(SHAPES, SIZES)]
    pairs = [world(pair(*both)) for both in itertools.product(items, [request.param], items)]
    boxes = [[(points.min(0), points.max(0)) for points in solids] for solids in pairs]
    radius = [max(np.linalg.norm(points, axis=-1).max() for points in solids) for solids in pairs]
    return request.param, np.array(boxes), np.array(radius)


def test_pairs_are_disjoint_and_touch(all_pairs):
    relation, boxes, _ = all_pairs
    assert boxes.shape == (NUM_PAIRS, 2, 2, 3)
    along = SIGN[relation] * boxes[..., AXIS[relation]]
    # A plane perpendicular to the axis of the relation separates the items.
    gap = along[:, 0].min(-1) - along[:, 1].max(-1)
    np.testing.assert_allclose(gap, 0.0 if relation == "on top of" else 2 * GAP, atol=1e-9)


def test_pairs_are_centered_along_their_relation(all_pairs):
    relation, boxes, _ = all_pairs
    low, high = boxes[:, :, 0].min(1), boxes[:, :, 1].max(1)
    np.testing.assert_allclose((low + high)[:, AXIS[relation]], 0, atol=1e-9)
    if relation == "on top of":
        np.testing.assert_allclose(low + high, 0, atol=1e-9)
    else:  # on the same ground, with the origin halfway between the heights of their centers
        np.testing.assert_allclose(boxes[:, 0, 0, 2], boxes[:, 1, 0, 2], atol=1e-9)
        np.testing.assert_allclose(boxes[..., 2].sum((1, 2)), 0, atol=1e-9)


def test_all_scenes_lie_well_inside_the_unit_ball(all_pairs):
    assert all_pairs[2].max() < 0.96
    for shape, size in itertools.product(SHAPES, SIZES):
        (points,) = world(truth_of(Description((Item(shape, "red", size),))))
        assert np.linalg.norm(points, axis=-1).max() < 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_relations_hold_in_images(shape: str):
    """Left is column 0, up is row 0, and the item in front occludes the one behind."""
    red, blue = Item(shape, "red"), Item(shape, "blue")

    def locate(image: torch.Tensor, channel: int) -> tuple[float, float, float]:
        """Mean row, mean column and number of the red (0) or blue (2) pixels."""
        pixels = torch.nonzero((image[..., channel] > 0.5).to(torch.float32))
        return *pixels.float().mean(0).tolist(), len(pixels)

    (front,) = look(pair(red, "next to", blue), 0.0)
    assert locate(front, 0)[1] < 31.5 < locate(front, 2)[1]
    (side,) = look(pair(red, "on top of", blue), 90.0)
    assert locate(side, 0)[0] < 31.5 < locate(side, 2)[0]
    front, back = look(pair(red, "in front of", blue), 0.0, 180.0)
    assert locate(front, 0)[2] > 2 * locate(front, 2)[2]
    assert locate(back, 2)[2] > 2 * locate(back, 0)[2]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Item("cone", "red", "small"), Item("torus", "blue", "large")),
        (Item("octahedron", "pink"), Item("pyramid", "cyan", "small")),
    ],
)
def test_distance_and_color_of_pairs(first: Item, relation: str, second: Item):
    truth, spacing = pair(first, relation, second), 0.02
    points = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    solids = [cKDTree(samples) for samples in world(truth, spacing)]
    nearest = np.stack([solid.query(points)[0] for solid in solids])
    local = [inside(s.shape, (points - np.array(s.center)) / s.scale) for s in truth.solids]
    is_inside = local[0] | local[1]
    assert not (local[0] & local[1]).any()

    distance = truth.sdf(torch.from_numpy(points)).numpy()
    np.testing.assert_array_equal(distance < 0, is_inside)
    excess = nearest.min(0) - abs(distance)
    assert excess.min() > -1e-9 and excess.max() < spacing

    color = truth.color(torch.from_numpy(points)).numpy()
    clear = is_inside | (abs(nearest[0] - nearest[1]) > spacing)
    owner = np.where(is_inside, local[1], nearest.argmin(0))
    albedo = np.array([COLORS[first.color], COLORS[second.color]])[owner]
    np.testing.assert_allclose(color[clear], albedo[clear], rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mark_lies_on_the_surface_and_is_white(shape: str, size: str):
    truth = marked(shape, size=size)
    center = torch.tensor([truth.front_mark], dtype=torch.float64)
    assert truth.sdf(center).abs().item() < 1e-6
    (points,) = world(truth)
    near = np.linalg.norm(points - center.numpy(), axis=-1) < MARK_RADIUS
    expected = np.where(near[:, None], WHITE, COLORS["blue"])
    assert near.any()
    np.testing.assert_allclose(truth.color(torch.from_numpy(points)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_front_shows_the_mark(shape: str):
    """The center of the front is white; a side shows at most the rim of the mark, the back none of it."""
    # Fine enough to compare counts: at 64 px the rim on a tip has 18 pixels and the front 52, at 256 px 238
    # and 1016.
    white = look(marked(shape), 0.0, 90.0, 180.0, -90.0, size=256).amin(-1) > 0.5  # [V, H, W]
    front, left, back, right = white.sum((1, 2)).tolist()
    assert white[0, 124:132, 124:132].all() and front > 800
    assert max(left, right) < front / 3 and not white[1::2, 112:144, 112:144].any()
    assert back == 0


def test_unmarked_sentences_show_no_white():
    truth = truth_of(Description((Item("sphere", "blue"),)))
    assert truth.front_mark is None
    assert not (look(truth, 0.0).amin(-1) > 0.5).any()


def test_kinds():
    assert [truth_of(Description((Item(shape, "red"),))).kind for shape in SHAPES] == list(SHAPES)
    assert pair(Item("cube", "red"), "next to", Item("cone", "red")).kind == "pair"


@pytest.mark.parametrize("item", [Item("cube", None), Item(None, "red")])
def test_underspecified_sentences_raise(item: Item):
    with pytest.raises(ValueError, match="leaves a word open"):
        truth_of(Description((item,)))
