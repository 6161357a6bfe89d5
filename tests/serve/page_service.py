"""A service for tests of the page, as a process: pictures and boxes that follow from the prompt, no training.

python -m tests.serve.page_service STORE [TOKEN_FILE]
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amortized.knowledge import Knowledge
from amortized.serve.logs import logging_to_stderr
from amortized.serve.problems import Failure
from amortized.serve.server import Engines, ServiceConfig, run
from tests.serve.fakes import FakeEngine

PROMPTS = tuple(f"a {color} {shape}" for shape in ("cube", "cone", "ball") for color in ("red", "blue"))
PROMPTS += tuple(f"number {number}" for number in range(40)) + ("<img src=x onerror=alert(1)>",)


def color_of(prompt: str) -> tuple[int, int, int]:
    """The color of the objects of a prompt."""
    red, green, blue = hashlib.sha256(prompt.encode()).digest()[:3]
    return (red, green, blue)


class PageEngine(FakeEngine):
    """Draws a bar of the prompt's color, which moves from view to view."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest * 16)
        words = ("a", "red", "cube", "blue", "cone", "ball")
        self.knowledge = Knowledge(corpus="boxes", number=90_000, prompts=PROMPTS, words=words)

    def about(self) -> dict[str, Any]:
        about = {"device": "cpu", "generator": "Boxes", "takes_seed": True, "only_prompt": None}
        return about | {"max_prompt_tokens": 77, "camera": {"distance": 2.6, "fovy_deg": 38.0}}

    def familiarity(self, prompt: str) -> dict[str, Any]:
        if prompt in PROMPTS:
            return {"trained": True, "far": False, "nearest": [], "sentences": []}
        said = [f"No training prompt has the words \u201c{prompt[:40]}\u201d."]
        return {"trained": False, "far": True, "nearest": [{"prompt": "a red cube"}], "sentences": said}

    def preview_batch(self, items: Sequence[Any]) -> list[bytes]:
        from PIL import Image, ImageDraw

        made = []
        for item in items:
            if "broken" in item.prompt:
                raise Failure("engine_failed")
            strip = Image.new("RGB", (item.views * item.size, item.size), (128, 128, 128))
            for view in range(item.views):
                left = view * item.size + view * item.size // (2 * item.views)
                box = (left, item.size // 4, left + item.size // 3, item.size * 3 // 4)
                ImageDraw.Draw(strip).rectangle(box, color_of(item.toward or item.prompt))
            file = io.BytesIO()
            strip.save(file, "PNG")
            made.append(file.getvalue())
        return made


def make_boxes(task: dict[str, Any], folder: Path, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Writes a box as GLB, and some bytes as any other format."""
    import trimesh

    on_stage("begin")
    if "surfaceless" in task["prompt"]:
        raise Failure("no_surface", "the object has no surface")
    for stage in ("extract", "texture", "files"):
        on_stage(stage)
        time.sleep(0.02)
    for format in task["formats"]:
        data: Any = trimesh.creation.box().export(file_type="glb") if format == "glb" else b"solid"
        (folder / {"mp4": "turntable.mp4"}.get(format, f"object.{format}")).write_bytes(data)
    return {}


def main() -> None:
    store, *tokens = sys.argv[1:]
    config = ServiceConfig(
        store=Path(store), port=0, grace_s=1, tokens=Path(tokens[0]) if tokens else None, asset_limit_s=60
    )
    engines = [(name, PageEngine(digest), 4) for name, digest in (("first", "a"), ("second", "b"))]
    with logging_to_stderr():
        run(config, Engines(engines=engines, maker=make_boxes), lambda address: print(address, flush=True))


if __name__ == "__main__":
    main()
