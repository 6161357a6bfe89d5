"""Draw the rooms and their imports, from the imports themselves.

python -m tests.draw_rooms          writes docs/images/rooms.svg
"""

from __future__ import annotations

from pathlib import Path

from tests.rooms import ROOT, import_graph

PICTURE = ROOT / "docs/images/rooms.svg"
BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 128, 34, 22, 46, 16
COLORS = {"generators": "#fde9c9", "corpora": "#fde9c9", "amortized.commands": "#d9ead3", "ground": "#eeeeee"}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without arrows that a longer way implies."""

    def reachable(room: str) -> set[str]:
        return set().union(*({below} | reachable(below) for below in graph[room])) if graph[room] else set()

    return {
        room: {below for below in imported if not any(below in reachable(via) for via in imported - {below})}
        for room, imported in graph.items()
    }


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by floor, the top one first: a room stands above all that it imports."""

    def height(room: str) -> int:
        return 1 + max((height(below) for below in graph[room]), default=-1)

    rows: dict[int, list[str]] = {}
    for room in sorted(graph):
        rows.setdefault(height(room), []).append(room)
    return [rows[number] for number in sorted(rows, reverse=True)]


def draw() -> str:
    """The picture as SVG text: boxes on floors, arrows from a room to those that it imports."""
    graph = import_graph()
    graph = {room: {below for below in imported if below in graph} for room, imported in graph.items()}
    rows = floors(graph)
    width = max(len(row) for row in rows) * (BOX_W + GAP_X) - GAP_X + 2 * MARGIN
    place = {}
    for floor, row in enumerate(rows):
        left = (width - len(row) * (BOX_W + GAP_X) + GAP_X) / 2
        for column, room in enumerate(row):
            place[room] = (left + column * (BOX_W + GAP_X), MARGIN + floor * (BOX_H + GAP_Y))
    height = MARGIN * 2 + len(rows) * (BOX_H + GAP_Y) - GAP_Y
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,1 L7,4 L0,7 z" fill="#888"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for room, imported in sorted(reduced(graph).items()):
        for below in sorted(imported):
            (x1, y1), (x2, y2) = place[room], place[below]
            start, end = (x1 + BOX_W / 2, y1 + BOX_H), (x2 + BOX_W / 2, y2)
            bend = (end[1] - start[1]) / 2
            path = (
                f"M{start[0]:g},{start[1]:g} C{start[0]:g},{start[1] + bend:g} {end[0]:g},{end[1] - bend:g} "
                f"{end[0]:g},{end[1] - 1:g}"
            )
            lines.append(f'<path d="{path}" fill="none" stroke="#888" marker-end="url(#tip)"/>')
    for room, (x, y) in sorted(place.items()):
        name = "config, types, cameras, ..." if room == "ground" else room.removeprefix("amortized.")
        size = ' font-size="9.5"' if room == "ground" else ""
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX_W}" height="{BOX_H}" rx="6" stroke="#555" '
            f'fill="{COLORS.get(room, "#dce8f7")}"/>'
            f'<text x="{x + BOX_W / 2:g}" y="{y + BOX_H / 2 + 5:g}" text-anchor="middle"{size}>{name}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(path: Path = PICTURE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw(), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
