"""Extract the surface of a field: marching cubes in the blocks that can contain it.

Of a field that is a distance:

1. Cheap distances at the centers of blocks, then of their parts, rule out the blocks that the surface cannot
   reach, by a Lipschitz bound on the field.
2. Marching cubes (Lewiner et al. 2003) runs block by block: memory is one block plus the mesh. Where the
   surface leaves a block, the neighbor is visited as well, so a wrong bound never tears the surface; it
   could only miss a part that lies in skipped blocks entirely, for which random points are tried.
3. Vertices on shared faces are equal to the last bit and are welded.

No bound rules out blocks of other fields: densities and splats can change within any length. They are
evaluated everywhere in the ball, each grid vertex once, plane by plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from amortized.assets.field import CHUNK, Field
from amortized.assets.mesh import AssetError

BLOCK = 16  # cells per side
PARTS = 4  # per side of a block, in the second test
BLOCKS_AT_ONCE = CHUNK // (BLOCK + 1) ** 3
MIN_RESOLUTION, MAX_RESOLUTION = 16, 2048
SAMPLES = 50_000  # points at which the bound is estimated, and at which skipped blocks are tested
MIN_LIPSCHITZ = 2.0
# Cells: no grid vertex is closer to the surface. Otherwise vertices of the surface on several edges could be
# equal there, and welding them would join sheets that only touch.
CLEARANCE = 1e-3
MAX_ON_BALL = 0.01  # share of the area that the bounding ball may cut

Block = tuple[int, int, int]
Triangles = tuple[np.ndarray, np.ndarray]  # vertices [V, 3] float64, faces [F, 3] int64
Pieces = dict[Block, Triangles]


@dataclass(frozen=True)
class Grid:
    """The vertices of `blocks`^3 blocks of cells around the ball."""

    cell: float
    blocks: int
    origin: float  # coordinate of vertex 0 along each axis

    @property
    def axis(self) -> np.ndarray:
        """Coordinates along an axis, the same for all blocks, so that shared vertices are equal."""
        return self.origin + self.cell * np.arange(self.blocks * BLOCK + 1)

    @property
    def block_size(self) -> float:
        return BLOCK * self.cell

    def centers(self, blocks: np.ndarray) -> np.ndarray:
        """Centers [N, 3] of blocks [N, 3]."""
        return self.origin + (blocks + 0.5) * self.block_size


def grid_of(radius: float, resolution: int) -> Grid:
    """A grid with `resolution` cells across the ball and 2 cells around it on each side, or more."""
    if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise ValueError(
            f"the resolution must lie between {MIN_RESOLUTION} and {MAX_RESOLUTION}, got {resolution}"
        )
    cell = 2 * radius / (resolution - 4)
    return Grid(cell=cell, blocks=-(-resolution // BLOCK), origin=-cell * resolution / 2)


def extract(field: Field, resolution: int = 256, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a field: vertices [V, 3] float64 and faces [F, 3] int64, closed and oriented outward.

    resolution  cells per side of the grid, which the bounding ball fills but for 2 cells on each side
    exact       evaluate the field everywhere, whatever the distances say

    Raises AssetError if the scene is empty, or if its bounding ball cuts it off.
    """
    grid = grid_of(field.radius, resolution)
    if exact or not field.is_distance:
        vertices, faces = _march_everywhere(field, grid)
    else:
        vertices, faces = _march_near_surface(field, grid)
    if not len(faces):
        raise AssetError("the object is empty: the field is positive everywhere in the bounding ball")
    vertices, faces = weld(vertices, faces)
    vertices = grid.origin + vertices * grid.cell
    on_ball = _share_on_ball(field, vertices, faces, grid.cell)
    if on_ball > MAX_ON_BALL:
        raise AssetError(
            f"the object is cut off by the bounding ball of radius {field.radius:g}: {on_ball:.0%} of its "
            "surface lies on the ball"
        )
    return vertices, faces


def _march_near_surface(field: Field, grid: Grid) -> Triangles:
    """Marching cubes in the blocks that the surface may reach."""
    everything = np.array(list(product(range(grid.blocks), repeat=3)))
    chosen = _candidates(field, grid, everything, lipschitz_bound(field))
    while True:
        found, visited = _march(field, grid, chosen)
        missed = _missed(field, grid, everything, visited)
        if not len(missed):
            return found
        chosen = np.concatenate([np.array(sorted(visited)).reshape(-1, 3), missed])


def _march_everywhere(field: Field, grid: Grid) -> Triangles:
    """Marching cubes in all blocks; memory is one layer of blocks plus the mesh."""
    least = CLEARANCE * grid.cell * (1.0 if field.is_distance else lipschitz_bound(field))
    pieces: Pieces = {}
    planes = (_apart(_plane(field, grid, x), least) for x in grid.axis)
    last = next(planes)
    for x in range(grid.blocks):
        layer = np.stack([last, *(next(planes) for _ in range(BLOCK))])
        last = layer[-1]
        for y, z in product(range(grid.blocks), repeat=2):
            _, rows, columns = (slice(k * BLOCK, (k + 1) * BLOCK + 1) for k in (x, y, z))
            _march_block(pieces, (x, y, z), layer[:, rows, columns])
    return _joined(pieces)


def _plane(field: Field, grid: Grid, x: float) -> np.ndarray:
    """The field [N, N] float32 at the grid's vertices of one x."""
    y, z = np.meshgrid(grid.axis, grid.axis, indexing="ij")
    points = np.stack([np.full_like(y, x), y, z], -1).astype(np.float32).reshape(-1, 3)
    values = (np.linalg.norm(points, axis=1) - field.radius).astype(np.float32)
    # No edge of the grid that leads to a vertex farther out can cross the surface.
    near = values < grid.cell
    values[near] = field.value(points[near])
    return values.reshape(y.shape)


def lipschitz_bound(field: Field) -> float:
    """A bound on the field's slope, from differences at random points of the ball: 4 evaluations each.

    Trained fields are no exact distances: slopes up to 3 occur. A hash grid's finest levels can exceed any
    estimate, which `extract` allows for.
    """
    random = np.random.default_rng(0)
    points = random.normal(size=(SAMPLES, 3))
    points *= (
        field.radius * random.random((SAMPLES, 1)) ** (1 / 3) / np.linalg.norm(points, axis=1, keepdims=True)
    )
    slopes = np.linalg.norm(field.gradient(points, 1e-3 * field.radius), axis=1)
    return max(MIN_LIPSCHITZ, 1.1 * float(np.quantile(slopes, 0.999)))


def _candidates(field: Field, grid: Grid, blocks: np.ndarray, bound: float) -> np.ndarray:
    """The blocks [N, 3] that the surface may reach, by the bound on the slope."""
    half_diagonal = grid.block_size * np.sqrt(3) / 2
    blocks = blocks[np.abs(field.value(grid.centers(blocks))) < bound * half_diagonal]
    middles = (np.arange(PARTS) + 0.5) / PARTS - 0.5
    offsets = np.stack(np.meshgrid(*[middles * grid.block_size] * 3, indexing="ij"), -1).reshape(-1, 3)
    parts = (grid.centers(blocks)[:, None] + offsets).reshape(-1, 3)
    near = np.abs(field.value(parts)).reshape(len(blocks), -1).min(1, initial=np.inf)
    return blocks[near < bound * half_diagonal / PARTS]


def _march(field: Field, grid: Grid, blocks: np.ndarray) -> tuple[Triangles, set[Block]]:
    """Marching cubes in the blocks, and in their neighbors wherever the surface crosses a shared face.

    Also returns the blocks that were visited.
    """
    pieces: Pieces = {}
    pending = [tuple(block) for block in blocks.tolist()]
    visited = set(pending)
    while pending:
        now, pending = pending[:BLOCKS_AT_ONCE], pending[BLOCKS_AT_ONCE:]
        for block, values in zip(now, _values(field, grid, now), strict=True):
            if not _march_block(pieces, block, values):
                continue
            for neighbor in _crossed(block, values, grid.blocks):
                if neighbor not in visited:
                    visited.add(neighbor)
                    pending.append(neighbor)
    return _joined(pieces), visited


def _march_block(pieces: Pieces, block: Block, values: np.ndarray) -> bool:
    """Add the surface in a block, with values [17, 17, 17] at its vertices, to `pieces`, if there is one.

    A vertex is an integer plus a float32, so those on shared faces are equal to the last bit.
    """
    from skimage.measure import marching_cubes

    if values.min() > 0 or values.max() < 0:
        return False
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    pieces[block] = vertices.astype(np.float64) + np.array(block) * BLOCK, faces.astype(np.int64)
    return True


def _joined(pieces: Pieces) -> Triangles:
    """The surfaces of all blocks as one, its vertices in cells from the grid's vertex 0, not yet welded."""
    # In the order of the grid: the result does not depend on how the blocks were found.
    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for _, (own, corners) in sorted(pieces.items()):
        vertices.append(own)
        faces.append(corners + count)
        count += len(own)
    return np.concatenate(vertices), np.concatenate(faces)


def _values(field: Field, grid: Grid, blocks: list[Block]) -> np.ndarray:
    """The field [N, 17, 17, 17] at the vertices of N blocks."""
    axis = grid.axis
    points = np.empty((len(blocks), *[BLOCK + 1] * 3, 3), np.float32)
    for i, block in enumerate(blocks):
        x, y, z = (axis[k * BLOCK : (k + 1) * BLOCK + 1] for k in block)
        points[i, ..., 0], points[i, ..., 1], points[i, ..., 2] = x[:, None, None], y[:, None], z
    values = field.value(points.reshape(-1, 3)).reshape(points.shape[:-1])
    return _apart(values, CLEARANCE * grid.cell)


def _apart(values: np.ndarray, least: float) -> np.ndarray:
    """Values that are at least so far from 0; see `CLEARANCE`."""
    limit = np.float32(least)
    return np.where(np.abs(values) < limit, np.where(values > 0, limit, -limit), values)


def _crossed(block: Block, values: np.ndarray, blocks: int) -> Iterator[Block]:
    """The neighbors across those faces of a block on which the field changes sign."""
    for axis in range(3):
        for side, step in ((0, -1), (-1, 1)):
            face = values.take(side, axis)
            neighbor = list(block)
            neighbor[axis] += step
            if face.min() < 0 < face.max() and 0 <= neighbor[axis] < blocks:
                yield neighbor[0], neighbor[1], neighbor[2]


def _missed(field: Field, grid: Grid, blocks: np.ndarray, visited: set[Block]) -> np.ndarray:
    """The skipped blocks [N, 3] in which the field has both signs, at a random point and at the center."""
    skipped = np.array([block for block in blocks.tolist() if tuple(block) not in visited]).reshape(-1, 3)
    if not len(skipped):
        return skipped
    random = np.random.default_rng(1)
    chosen = skipped[random.integers(len(skipped), size=SAMPLES)]
    points = grid.origin + (chosen + random.random(chosen.shape)) * grid.block_size
    crossed = (field.value(points) <= 0) != (field.value(grid.centers(chosen)) <= 0)
    return np.unique(chosen[crossed], axis=0)


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal vertices, and drop the faces that have two equal corners then."""
    vertices = vertices + 0.0  # -0 becomes 0
    order = np.lexsort(vertices.T)
    new = np.ones(len(order), bool)
    new[1:] = (vertices[order[1:]] != vertices[order[:-1]]).any(1)
    index = np.empty(len(order), np.int64)
    index[order] = np.cumsum(new) - 1
    faces = index[faces]
    flat = (faces == np.roll(faces, 1, axis=1)).any(1)
    return vertices[order[new]], faces[~flat]


def _share_on_ball(field: Field, vertices: np.ndarray, faces: np.ndarray, cell: float) -> float:
    """The share of the area at which the bounding ball cuts the object off."""
    near = np.linalg.norm(vertices, axis=1) > field.radius - cell
    cut = np.zeros(len(vertices), bool)
    cut[near] = field.cut_by_ball(vertices[near])
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return float(areas[cut[faces].all(1)].sum() / max(areas.sum(), 1e-30))
