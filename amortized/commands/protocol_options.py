"""Options of `amortized evaluate` for published protocols: which one, by which judge, of which images."""

from __future__ import annotations

import argparse

from amortized.arguments import text


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --protocol, --judge and --show, whose values `choose_scoring` checks."""
    parser.add_argument(
        "--protocol",
        default="ring",
        help="ring, scaledreamer-clip, scaledreamer-clip-df415, scaledreamer-clip-mvdream, t3bench-quality "
        "or t3bench-lite (default: %(default)s)",
    )
    parser.add_argument(
        "--judge",
        type=text,
        help="of such a protocol: clip, clip-bilinear, image-reward=FOLDER, or module:Class, a class of "
        "yours (default: the published one)",
    )
    parser.add_argument(
        "--show",
        type=text,
        help="the images of such a protocol: field, mesh (the GLB that generate writes), or GLB files, as "
        "'FOLDER/{slug}.glb', also with {id} or {prompt} (default: field)",
    )
