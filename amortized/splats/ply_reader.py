"""Read the vertices of PLY files that others wrote: bounded, and one sentence for what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amortized.splats.parameters import MAX_SPLATS
from amortized.untrusted import check_not_pointer, open_regular, short

FILE_LIMIT = 2**29  # bytes; a million splats of degree 3 with double precision have 496 MB
TEXT_LIMIT = 2**26  # of a file of words, which take far more memory than their bytes
HEADER_LIMIT = 2**16
MAX_PROPERTIES = 256
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


def read_vertices(path: str | Path, needed: tuple[str, ...]) -> np.ndarray:
    """Return the vertices of a PLY file as a structured array, whose fields include all that are `needed`.

    Binary and text files are read; elements after the vertices are ignored. Raises ValueError for a file that
    cannot be read, is not a PLY, lacks a needed property, or has no vertex or more than a million.
    """
    with open_regular(path, FILE_LIMIT) as file:
        data = file.read(FILE_LIMIT + 1)
    check_not_pointer(path, data[:64])
    format, kinds, count, start = _header(data, short(path))
    if missing := [name for name in needed if name not in kinds]:
        raise ValueError(f"{short(path)} lacks the vertex properties {', '.join(missing)}")
    if not 1 <= count <= MAX_SPLATS:
        raise ValueError(f"{short(path)} has {count:,} vertices, and 1 to {MAX_SPLATS:,} are allowed")
    dtype = np.dtype([(name, ORDERS[format] + kind) for name, kind in kinds.items()])
    if format == "ascii":
        return _ascii_vertices(data[start:], dtype, count, short(path))
    if len(data) - start < count * dtype.itemsize:
        raise ValueError(f"{short(path)} ends within its {count:,} vertices: it is damaged")
    return np.frombuffer(data, dtype, count, start)


def columns(vertices: np.ndarray, names: tuple[str, ...], path: str | Path) -> np.ndarray:
    """Return fields as float32 columns [N, names]. Raises ValueError if a number is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.stack([vertices[name].astype(np.float32) for name in names], axis=1)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).any(1).argmax())
        raise ValueError(
            f"{short(path)}: vertex {row:,} has a number that is not finite in {', '.join(names)}"
        )
    return values


def _header(data: bytes, name: str) -> tuple[str, dict[str, str], int, int]:
    """Return the format, the kinds of the vertices' fields, their number, and where the data starts."""
    end = data[:HEADER_LIMIT].find(b"end_header")
    line_end = data.find(b"\n", end, end + 16)
    if not data.startswith((b"ply\n", b"ply\r")) or end < 0 or line_end < 0:
        raise ValueError(f"{name} is not a PLY file with a header of at most {HEADER_LIMIT:,} bytes")
    format, count, elements = "", -1, 0
    fields: list[tuple[str, str]] = []
    for line in data[:end].decode("latin-1").splitlines():
        match line.split():
            case ["format", kind, *_]:
                format = kind
            case ["element", element, number]:
                elements += 1
                if element == "vertex" and elements == 1 and number.isdecimal() and len(number) < 19:
                    count = int(number)
            case ["property", kind, field] if elements == 1:
                fields.append((field, TYPES.get(kind, "")))
            case ["property", "list", *_] if elements == 1:
                fields.append(("list", ""))
    if format not in ORDERS:
        raise ValueError(f"{name} has no PLY format out of {', '.join(ORDERS)}")
    if count < 0:
        raise ValueError(f"{name} does not begin with vertices")
    kinds = dict(fields)
    if len(fields) > MAX_PROPERTIES or len(kinds) < len(fields) or "" in kinds.values():
        raise ValueError(
            f"{name} has vertex properties that cannot be read: at most {MAX_PROPERTIES} numbers, each of "
            "another name, are allowed"
        )
    return format, kinds, count, line_end + 1


def _ascii_vertices(data: bytes, dtype: np.dtype, count: int, name: str) -> np.ndarray:
    if len(data) > TEXT_LIMIT:
        raise ValueError(f"{name} is text of more than {TEXT_LIMIT:,} bytes: save it as binary PLY")
    names = dtype.names or ()
    words = data.split(None, count * len(names))[: count * len(names)]
    try:
        numbers = np.fromiter(map(float, words), np.float64, len(words))
    except ValueError:
        raise ValueError(f"{name} has a vertex that is not a number") from None
    if len(numbers) < count * len(names):
        raise ValueError(f"{name} ends within its {count:,} vertices: it is damaged")
    vertices = np.empty(count, dtype)
    for index, field in enumerate(names):
        with np.errstate(over="ignore", invalid="ignore"):
            vertices[field] = numbers[index :: len(names)].astype(dtype[field])
    return vertices
