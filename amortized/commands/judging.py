"""The steps of an evaluation by a published protocol: load the judge, score what is missing, summarize."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.commands.compose import RunConfig
from amortized.commands.evaluation import Selection
from amortized.config import config_to_dict
from amortized.evaluation import EvaluatedModel, Gallery
from amortized.evaluation.judged import add_row, open_folder, write_scores
from amortized.evaluation.judges import Judge, load_judge
from amortized.evaluation.judging import cost, gallery_of, judge_prompts, show_fields
from amortized.evaluation.protocols import PROTOCOLS, RING, EvaluationProtocol
from amortized.generation import TextTo3D
from amortized.generation.folder import load_run
from amortized.names import slug
from amortized.parallel import World
from amortized.types import AnyScene, Cameras, Prompt, Render

HASHED = 12  # digits of a digest in messages


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a run is scored: the protocol, and the judge as the user named it."""

    protocol: EvaluationProtocol
    judge: str

    def folder(self, run: Path, selection: Selection) -> Path:
        """The folder of the scores by default; no two choices share one."""
        words = [self.protocol.name, self.judge, selection.words]
        return run / "evaluations" / slug(", ".join(word for word in words if word))


def choose_scoring(protocol: str, judge: str | None) -> Scoring | None:
    """The protocol and judge that the options name; None for the evaluation `ring`. Raises ValueError."""
    if protocol == RING:
        if judge is not None:
            raise ValueError(
                f"--judge {judge} needs --protocol, one of {', '.join(PROTOCOLS)}: {RING} scores by the CLIP "
                "of evaluation.clip"
            )
        return None
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no --protocol {protocol}: it is one of {', '.join((RING, *PROTOCOLS))}")
    chosen = PROTOCOLS[protocol]
    return Scoring(protocol=chosen, judge=judge or chosen.judge)


def score_run(
    run: Path,
    scoring: Scoring,
    config: RunConfig,
    selection: Selection,
    prompts: Sequence[Prompt],
    folder: Path,
    world: World,
    progress: Callable[[int, int], None],
) -> str:
    """Score the prompts that `folder` has no row of, and summarize all; returns text for rank 0 to print.

    Collective. Raises ValueError if the judge or the folder cannot be used.
    """
    settings, protocol = config.evaluation, scoring.protocol
    # 1. The judge, first: without it nothing is rendered.
    judge = load_judge(
        scoring.judge,
        clip=settings.clip,
        device=world.device,
        allow_network=settings.allow_network,
    )
    model = TextTo3D(*load_run(run, selection.checkpoint, str(world.device), config_to_dict(config)))
    gallery = gallery_of(protocol, prompts)
    identity = _identity(protocol, judge, model, config, gallery)
    # 2. The rows of an evaluation that was stopped.
    opened = world.run_on_all(lambda: open_folder(folder, identity) if world.is_main else None)[0]
    assert opened is not None
    rows, note = opened
    left = [prompt for prompt in prompts if prompt.id not in rows]
    if world.is_main:
        _print_start(scoring, judge, len(prompts), left, gallery, note)
    # 3. Each rank scores its share, and stores each row at once.
    share, new = left[world.rank :: world.size], []
    for row in judge_prompts(
        share,
        protocol=protocol,
        judge=judge,
        show=show_fields(_evaluated(model, protocol, settings.background), protocol),
        gallery=gallery,
        views_per_render=settings.views_per_render,
    ):
        add_row(folder, world.rank, row)
        new.append(row)
        progress(len(new), len(share))
    rows |= {row.id: row for share in world.gather_objects(new) for row in share}
    if not world.is_main:
        return ""
    return write_scores(
        folder,
        [rows[prompt.id] for prompt in prompts],
        identity=identity,
        gallery=None if gallery is None else len(gallery),
        seed=settings.seed,
    )


def _print_start(
    scoring: Scoring,
    judge: Judge,
    num_prompts: int,
    left: Sequence[Prompt],
    gallery: Gallery | None,
    note: str,
) -> None:
    if note:
        print(f"note: {note}")
    print(f"{scoring.protocol.name} ({scoring.protocol.about}) by {judge.name} {judge.digest[:HASHED]}")
    if len(left) < num_prompts:
        print(f"{num_prompts - len(left):,} of {num_prompts:,} prompts have scores already")
    print(cost(scoring.protocol, len(left), gallery), flush=True)


def _identity(
    protocol: EvaluationProtocol, judge: Judge, model: TextTo3D, config: RunConfig, gallery: Gallery | None
) -> dict[str, Any]:
    """Everything that the rows depend on, by key."""
    return {
        "protocol": protocol.name,
        "judge": judge.name,
        "judge_digest": judge.digest,
        "images": "splats" if model.makes_splats else "field",
        "model": model.identity,
        "background": config.evaluation.background if protocol.background is None else protocol.background,
        "gallery": None if gallery is None else hashlib.sha256("\0".join(gallery.texts).encode()).hexdigest(),
    }


def _evaluated(model: TextTo3D, protocol: EvaluationProtocol, gray: float) -> EvaluatedModel:
    """The model, rendered with the background of a protocol."""
    learned = protocol.background is None
    behind = gray if protocol.background is None else protocol.background

    def look(scene: AnyScene, cameras: Cameras, height: int, width: int) -> Render:
        return model.images(
            scene,
            cameras,
            (height, width),
            background=behind,
            show_environment=learned,
        )

    return EvaluatedModel(scene_for=model.scenes, render=look, device=model.device)
