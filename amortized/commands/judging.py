"""The steps of an evaluation by a published protocol: load the judge, score what is missing, summarize."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.commands.compose import RunConfig
from amortized.commands.evaluation import Selection
from amortized.commands.shown import FIELD, Source, build_source, check_show
from amortized.evaluation import Gallery
from amortized.evaluation.judged import SCORES, add_row, open_folder, write_scores
from amortized.evaluation.judges import Judge, load_judge
from amortized.evaluation.judging import cost, gallery_of, judge_prompts
from amortized.evaluation.protocols import PROTOCOLS, RING, EvaluationProtocol
from amortized.names import slug
from amortized.parallel import World
from amortized.types import Prompt

HASHED = 12  # digits of a digest in messages


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a run is scored: the protocol, and the judge as the user named it."""

    protocol: EvaluationProtocol
    judge: str
    show: str = FIELD  # the images: FIELD, MESH, or the path of GLB files with a place for the prompt

    def folder(self, run: Path, selection: Selection) -> Path:
        """The folder of the scores by default; no two choices share one."""
        words = [self.protocol.name, self.judge, self.show if self.show != FIELD else "", selection.words]
        return run / "evaluations" / slug(", ".join(word for word in words if word))


def choose_scoring(protocol: str, judge: str | None, show: str | None) -> Scoring | None:
    """The protocol, judge and images that the options name; None for the evaluation `ring`.

    Raises ValueError for names that there are not, and for a judge or images of `ring`.
    """
    if protocol == RING:
        if judge is not None or show is not None:
            option = f"--show {show}" if judge is None else f"--judge {judge}"
            raise ValueError(
                f"{option} needs --protocol, one of {', '.join(PROTOCOLS)}: {RING} scores by the CLIP "
                "of evaluation.clip"
            )
        return None
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no --protocol {protocol}: it is one of {', '.join((RING, *PROTOCOLS))}")
    chosen = PROTOCOLS[protocol]
    show = show or FIELD
    check_show(show)
    return Scoring(protocol=chosen, judge=judge or chosen.judge, show=show)


def score_run(
    run: Path,
    scoring: Scoring,
    config: RunConfig,
    selection: Selection,
    prompts: Sequence[Prompt],
    output: Path | None,
    world: World,
    progress: Callable[[int, int], None],
) -> None:
    """Score the prompts that the folder has no row of, write the scores of all, and print the means.

    Collective. `output` None: a folder in RUN/evaluations. Raises ValueError if the judge or the folder
    cannot be used.
    """
    settings, protocol = config.evaluation, scoring.protocol
    folder = scoring.folder(run, selection) if output is None else output.expanduser()
    # 1. The judge, first: without it nothing is rendered.
    judge = load_judge(
        scoring.judge,
        clip=settings.clip,
        device=world.device,
        allow_network=settings.allow_network,
    )
    source = build_source(scoring.show, run, selection.checkpoint, config, protocol, world.device)
    gallery = gallery_of(protocol, prompts)
    identity = _identity(protocol, judge, source, config, gallery)
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
        show=source.show,
        gallery=gallery,
        views_per_render=settings.views_per_render,
    ):
        add_row(folder, world.rank, row)
        new.append(row)
        progress(len(new), len(share))
    rows |= {row.id: row for share in world.gather_objects(new) for row in share}
    if world.is_main:
        text = write_scores(
            folder,
            [rows[prompt.id] for prompt in prompts],
            identity=identity,
            gallery=None if gallery is None else len(gallery),
            seed=settings.seed,
        )
        print(f"{text}\nscores: {folder / SCORES}")


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
    protocol: EvaluationProtocol, judge: Judge, source: Source, config: RunConfig, gallery: Gallery | None
) -> dict[str, Any]:
    """Everything that the rows depend on, by key."""
    return {
        "protocol": protocol.name,
        "judge": judge.name,
        "judge_digest": judge.digest,
        "images": source.kind,
        "model": source.identity,
        "background": config.evaluation.background if protocol.background is None else protocol.background,
        "gallery": None if gallery is None else hashlib.sha256("\0".join(gallery.texts).encode()).hexdigest(),
    }
