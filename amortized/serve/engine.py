"""A trained generator as the service sees it, apart from HTTP: previews of many prompts, files of one.

    engine = Engine.load(ModelSource(path="exported/quickstart", is_run=False))
    scene = engine.scenes(["a red cube", "a blue sphere"], [0, 0])
    first, second = engine.previews(scene, views=4, size=128)  # PNG

The same object serves under FastAPI, under Ray Serve and in scripts. It is not safe to call from two threads.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amortized.assets import TEXTURED, AssetConfig, Source, make_asset, save_asset
from amortized.generation import ModelSource, TextTo3D
from amortized.generation.folder import checkpoint_of
from amortized.generation.pictures import Look, object_pictures, save_pictures
from amortized.knowledge import Knowledge
from amortized.media import to_uint8
from amortized.serve.batcher import SIZES, fit_size
from amortized.serve.familiarity import Familiarity, sentences
from amortized.serve.job import PreviewItem
from amortized.serve.problems import Failure
from amortized.serve.requests import MAX_PROMPT
from amortized.types import AnyScene

CPU_BATCH = 1  # prompts: more gain nothing, since the cost is the field, and delay the first of them
PIXELS_AT_ONCE = 2**20  # of previews in one render: some 100 MB
PRINTED = {"stl", "3mf"}
FRAMES, FRAME_SIZE, FPS = 36, 192, 18.0  # of a turntable: some 20 s on a CPU core


class Engine:
    """A loaded generator. Everything that it makes is a function of the prompt, the seed and the settings."""

    def __init__(self, model: TextTo3D, source: ModelSource, knowledge: Knowledge | None = None) -> None:
        """`knowledge` is what it was trained on, if that is known."""
        self.model, self.source, self.knowledge = model, source, knowledge
        self._familiarity = None if knowledge is None else Familiarity(knowledge, self.embed)

    @classmethod
    def load(cls, source: ModelSource, knowledge: Knowledge | None = None) -> Engine:
        """Load a run's checkpoint or an exported folder. Raises ValueError."""
        return cls(source.load(), source, knowledge)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a digest of the weights and settings."""
        return self.model.identity.rpartition(" ")[2]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def about(self) -> dict[str, Any]:
        """What clients may know of the model; JSON."""
        model = self.model
        encoder = model.texts.generator_encoder.encoder
        return {
            "checkpoint": model.identity,
            "generator": type(getattr(model.generator, "generator", model.generator)).__name__,
            "device": model.device.type,
            "text_encoder": encoder.fingerprint(),
            "max_prompt_characters": MAX_PROMPT,
            "max_prompt_tokens": encoder.max_length,
            "camera": self._camera(),
            "takes_seed": getattr(model.generator, "z_dim", 0) > 0,
            "only_prompt": model.prompt if model.one_object else None,
        }

    def _camera(self) -> dict[str, float]:
        """That of the previews."""
        distance, fovy_deg = self.model.config.cameras.middle
        return {"distance": distance, "fovy_deg": fovy_deg}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [N, D] of N texts, as the generator takes them."""
        return self.model.texts.generator_text(texts).pooled

    def familiarity(self, prompt: str) -> dict[str, Any]:
        """How a prompt relates to the training prompts, with sentences to show beside its object; JSON."""
        if self.model.one_object:
            return {"sentences": ["This model holds one object, whatever the sentence."]}
        notes = self.model.texts.notes_on([prompt], generator_only=True)
        if self._familiarity is None:
            return {"sentences": [_as_sentence(note) for note in notes]}
        found = self._familiarity(prompt)
        unknown = found["unseen_words"]  # a word that training has not seen needs no second sentence
        cut = [_as_sentence(note) for note in notes if not unknown or "does not know" not in note]
        return found | {"sentences": sentences(found, cut)}

    def scenes(self, prompts: Sequence[str], seeds: Sequence[int]) -> AnyScene:
        """The scenes of P prompts from one forward pass."""
        if self.model.one_object:  # it takes a batch of one, and ignores the text
            prompts, seeds = prompts[:1], seeds[:1]
        return self.model.scenes(prompts, seeds)

    def previews(self, scene: AnyScene, *, views: int, size: int) -> list[bytes]:
        """A PNG of each of the P objects: `views` pictures side by side."""
        from PIL import Image

        cameras = self.model.orbit(num_views=views, start_azimuth_deg=20.0)
        rgb = self.model.images(scene, cameras, size).rgb  # [P, V, H, W, 3]
        pictures = []
        for views_of_one in to_uint8(rgb):
            file = io.BytesIO()
            strip = views_of_one.transpose(1, 0, 2, 3).reshape(size, views * size, 3)
            Image.fromarray(strip).save(file, "PNG")
            pictures.append(file.getvalue())
        return pictures

    def preview_batch(self, items: Sequence[PreviewItem]) -> list[bytes]:
        """The previews of several objects: one forward pass for those of the same size."""
        pictures: dict[int, bytes] = {}
        for i, item in enumerate(items):
            if item.toward is not None:
                between = self.model.interpolate(item.prompt, item.toward, [item.position], item.seed)
                pictures[i] = self.previews(between, views=item.views, size=item.size)[0]
        plain = [i for i in range(len(items)) if i not in pictures]
        for views, size in dict.fromkeys((items[i].views, items[i].size) for i in plain):
            same = [i for i in plain if (items[i].views, items[i].size) == (views, size)]
            together = 1 if self.model.one_object else max(1, PIXELS_AT_ONCE // (views * size**2))
            for start in range(0, len(same), together):
                part = same[start : start + together]
                chosen = [items[i] for i in part]
                if self.device.type != "cpu":  # few sizes, so that each is compiled or captured once
                    length = next((one for one in SIZES if one >= len(chosen)), len(chosen))
                    chosen += [chosen[-1]] * (length - len(chosen))
                scene = self.scenes([item.prompt for item in chosen], [item.seed for item in chosen])
                made = self.previews(scene, views=views, size=size)
                pictures |= dict(zip(part, made, strict=False))
        return [pictures[i] for i in range(len(items))]

    def asset(
        self,
        prompt: str,
        seed: int,
        settings: dict[str, Any],
        folder: Path,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> dict[str, Any]:
        """Write the files of an object into a folder, and return a report; JSON.

        `settings` are those of `Options.settings`: formats, and faces, resolution and texture as they need.
        Raises AssetError for an object without a surface.
        """
        formats, report = set(settings["formats"]), {}
        scene = self.scenes([prompt], [seed])
        if meshes := sorted(formats - {"mp4"}):
            config = AssetConfig(
                resolution=settings["resolution"],
                faces=settings["faces"],
                texture=settings.get("texture", 0) if formats & set(TEXTURED) else 0,
                printable=bool(formats & PRINTED),
            )
            source = Source(prompt=prompt, seed=seed, checkpoint=self.model.identity)
            asset = make_asset(scene, config, source, self.device, on_stage)
            on_stage("files")
            for format in meshes:
                save_asset(asset, folder / "object", format)
            report = {key: value for key, value in asset.report.items() if key != "prompt"}
        if "mp4" in formats:
            on_stage("video")
            distance, fovy_deg = self.model.config.cameras.middle
            look = Look(distance=distance, fovy_deg=fovy_deg, size=FRAME_SIZE)
            pictures = object_pictures(
                self.model,
                prompt,
                seed,
                look,
                num_views=1,
                num_frames=FRAMES,
            )
            save_pictures(pictures, folder / "turntable.mp4", "mp4", FPS)
        return report

    def task(self, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """The call of `asset` as plain data, for `make_asset_files` in another process."""
        return {
            "source": asdict(self.source),
            "digest": self.digest,
            "prompt": prompt,
            "seed": seed,
            "settings": settings,
        }

    def batch_size(self) -> int:
        """How many prompts of the default preview a batch may have, by measured memory on a GPU."""
        if self.model.one_object:
            return 1
        if self.device.type != "cuda":
            return CPU_BATCH
        peaks = {}
        for number in (1, 2, 4):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.preview_batch([PreviewItem(prompt="a cube", seed=0, views=4, size=128)] * number)
            peaks[number] = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        return fit_size(peaks, torch.cuda.mem_get_info(self.device)[0])


def pinned(source: ModelSource) -> ModelSource:
    """A run's newest checkpoint by its name, so that other processes load the same one. Raises ValueError."""
    if not source.is_run:
        return source
    return replace(source, checkpoint=checkpoint_of(Path(source.path), source.checkpoint)[0])


def newer(engine: Engine, checkpoint: str = "newest") -> Engine | None:
    """The engine of a run's newest checkpoint, if that is another one. Raises ValueError."""
    if not engine.source.is_run:
        return None
    source = pinned(replace(engine.source, checkpoint=checkpoint))
    return None if source == engine.source else Engine.load(source, engine.knowledge)


def _as_sentence(note: str) -> str:
    """A note of the text encoder on one prompt as a sentence for its author."""
    note = note.replace("1 of 1 prompt", "this sentence").replace("of 1 prompt", "of this sentence")
    return f"{note[:1].upper()}{note[1:]}."


# ---- in a worker process --------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _engine(source: ModelSource) -> Engine:
    return Engine.load(source)


def make_asset_files(task: dict[str, Any], folder: Path, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Make the files of a task in a folder and return the report, with a generator that is loaded once.

    `on_stage("begin")` says that it is loaded. Raises Failure if the checkpoint is gone or another one.
    """
    try:
        engine = _engine(ModelSource(**task["source"]))
    except ValueError as error:
        raise Failure("model_gone") from error
    if engine.digest != task["digest"]:
        raise Failure("model_gone")
    on_stage("begin")
    return engine.asset(task["prompt"], task["seed"], task["settings"], folder, on_stage)
