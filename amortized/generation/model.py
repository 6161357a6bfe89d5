"""Use a trained generator: any text to a scene, a scene to images.

    model = TextTo3D.from_run("outputs/quickstart")
    scene = model.scenes(["a red cube", "a blue sphere"])
    images = model.images(scene, model.orbit(num_views=4), size=128).rgb  # [2, 4, 128, 128, 3]

This is the one place that knows what a trained generator needs besides its weights: the text encoder it was
trained with, its z, the sharpness at its step, the renderer. Previews, evaluation, benchmarks and export all
use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from amortized.cameras import orbit, repeat_cameras
from amortized.conditioning import TextBank
from amortized.generation.config import SceneConfig
from amortized.generation.folder import load_exported, load_run
from amortized.generation.interpolation import Method, between
from amortized.generation.variants import z_of, z_width
from amortized.names import text_hash
from amortized.random import generator_for
from amortized.rendering import render
from amortized.splats import from_surface, scene_of
from amortized.transfer import to_device
from amortized.types import AnyScene, Cameras, Prompt, Render, SplatScene
from generators.environment import WithEnvironment
from generators.splats import Splats


class TextTo3D:
    """A trained generator with its text encoder and renderer, ready to turn text into scenes.

    Build it with `from_run` or `from_pretrained`, or directly from parts that are already loaded.
    """

    def __init__(
        self,
        generator: nn.Module,
        texts: TextBank,
        config: SceneConfig,
        identity: str = "",
        prompt: str | None = None,
    ) -> None:
        """`generator` maps (TextCondition, z) to a scene; `texts` encodes what it takes.

        `identity` is a name and a digest of weights and settings; two models with the same one are the same.
        `prompt` is the only one that it was trained on, if there is one.
        """
        self.generator, self.texts, self.config, self.identity = generator, texts, config, identity
        self.prompt, self.device = prompt, texts.device

    @property
    def text_dim(self) -> int:
        """D, the width of the text embeddings."""
        return self.texts.generator_text([""]).pooled.shape[-1]

    @property
    def has_environment(self) -> bool:
        """Whether its scenes have a learned background."""
        return isinstance(self.generator, WithEnvironment)

    @property
    def one_object(self) -> bool:
        """Whether it holds a single object, whatever the text."""
        return getattr(getattr(self._foreground, "config", None), "one_object", False)

    @property
    def attends_padding(self) -> bool:
        """Whether the padding of a text is a part of it for the generator."""
        return bool(getattr(getattr(self._foreground, "config", None), "attend_padding", None))

    @property
    def makes_splats(self) -> bool:
        """Whether its scenes are Gaussian splats."""
        return isinstance(self._foreground, Splats)

    @property
    def _foreground(self) -> nn.Module:
        """The generator without its environment."""
        return self.generator.generator if isinstance(self.generator, WithEnvironment) else self.generator

    @classmethod
    def from_run(cls, run: str | Path, *, checkpoint: str = "newest", device: str = "auto") -> TextTo3D:
        """Load the generator of a run's folder; `checkpoint` is newest, best or a name.

        Raises ValueError if the folder holds no run, or the checkpoint is missing or damaged.
        """
        return cls(*load_run(Path(run), checkpoint, device))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, text_encoder: str | None = None, device: str = "auto"
    ) -> TextTo3D:
        """Load an exported folder, or a Hub id that is in the local cache.

        `text_encoder` is a folder or Hub id to use instead of the recorded one; it must be the same encoder.
        Raises ValueError if the folder is damaged, or if its text encoder is missing or another one.
        """
        return cls(*load_exported(folder, text_encoder, device))

    @torch.no_grad()
    def scenes(self, prompts: str | Sequence[str | Prompt], seed: int | Sequence[int] = 0) -> AnyScene:
        """The scenes of P prompts from one forward pass.

        Another `seed`, one for all prompts or one each, gives other variants, if the generator takes a z; it
        is ignored otherwise.
        """
        chosen = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = [_as_prompt(prompt) for prompt in chosen]
        text = self.texts.generator_text([prompt.text for prompt in rows])
        seeds = [seed] * len(rows) if isinstance(seed, int) else list(seed)
        z = torch.cat([self.z_of([row], number) for row, number in zip(rows, seeds, strict=True)])
        return self.generator.eval()(text, z.to(self.device))

    @torch.no_grad()
    def splats(self, prompt: str | Prompt, seed: int = 0, *, count: int = 20_000) -> SplatScene:
        """The object of a prompt as Gaussian splats: its own, or `count` on its surface, in its colors.

        Raises ValueError for densities, and an object without a surface; see `from_surface`.
        """
        scene = self.scenes([prompt], seed)
        if isinstance(scene, SplatScene):
            return scene
        rng = generator_for(self.config.seed, "surface splats", seed)
        return scene_of(from_surface(scene, count, rng, device=self.device), scene.bounding_radius)

    @torch.no_grad()
    def interpolate(
        self,
        prompt_a: str,
        prompt_b: str,
        steps: int | Sequence[float],
        seed: int = 0,
        *,
        method: Method = "lerp",
    ) -> AnyScene:
        """Scenes from one prompt to another, whose texts lie between theirs; see `interpolation`.

        `steps` scenes at even distances, both ends included, or one at each of the positions in [0, 1]. z is
        that of `prompt_a` throughout. Raises ValueError if `steps` is less than 2.
        """
        if isinstance(steps, int) and steps < 2:
            raise ValueError(f"interpolate needs at least 2 steps, got {steps}")
        if isinstance(steps, int):
            positions = torch.linspace(0, 1, steps, dtype=torch.float64)
        else:
            positions = torch.tensor(steps, dtype=torch.float64)
        ends = self.texts.generator_text([prompt_a, prompt_b])
        if self.attends_padding:  # then no position is without a token in one of the texts
            ends = replace(ends, mask=torch.ones_like(ends.mask))
        text = between(ends, positions, method)
        z = self.z_of([_as_prompt(prompt_a)], seed).expand(len(positions), -1)
        return self.generator.eval()(text, z.to(self.device))

    @torch.no_grad()
    def images(
        self,
        scene: AnyScene,
        cameras: Cameras,
        size: int | tuple[int, int],
        *,
        background: float | tuple[float, float, float] = 0.5,
        show_environment: bool = True,
        want_normal: bool = False,
    ) -> Render:
        """Render P scenes from V cameras each: `rgb` is [P, V, H, W, 3] in [0, 1].

        `size` is H = W, or (H, W). Cameras of a single prompt serve all scenes. Behind the objects is the
        scene's learned environment, if it has one and `show_environment`, else the `background`, a gray or a
        color in [0, 1].
        """
        height, width = (size, size) if isinstance(size, int) else size
        if len(cameras.fovy_deg) == 1:
            cameras = repeat_cameras(cameras, scene.num_prompts)
        cameras = to_device(cameras, self.device)
        behind = torch.zeros_like(cameras.c2w[..., :3, 3]) + torch.tensor(background, device=self.device)
        environment = torch.full(behind.shape[:2], show_environment, device=self.device)
        return render(
            scene,
            cameras,
            height,
            width,
            config=self.config.renderer,
            background=behind,  # [P, V, 3]
            show_environment=environment,
            sharpness=self.config.sharpness,
            training=False,
            want_normal=want_normal,
        )

    def orbit(
        self,
        num_prompts: int = 1,
        num_views: int = 4,
        *,
        elevation_deg: float = 20.0,
        start_azimuth_deg: float = 20.0,
    ) -> Cameras:
        """Evenly spaced cameras around each of P prompts, at training's mean distance and field of view."""
        distance, fovy_deg = self.config.cameras.middle
        return orbit(
            num_prompts,
            num_views,
            elevation_deg=elevation_deg,
            distance=distance,
            fovy_deg=fovy_deg,
            start_azimuth_deg=start_azimuth_deg,
        )

    def z_of(self, prompts: Sequence[Prompt], number: int = 0) -> Tensor:
        """z [P, z_dim] of variant `number` of each prompt; see `z_of`."""
        config = self.config
        return z_of(prompts, z_width(self.generator), config.seed, config.seeds_per_prompt, number)


def _as_prompt(prompt: str | Prompt) -> Prompt:
    """A text as the prompt that a corpus would make of it, so that both get the same z."""
    return prompt if isinstance(prompt, Prompt) else Prompt(id=text_hash(prompt), text=prompt)
