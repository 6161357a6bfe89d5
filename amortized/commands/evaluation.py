"""The steps of an evaluation: choose prompts, score a share of them, summarize and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from amortized.commands.compose import RunConfig, build_untrained
from amortized.config import config_to_dict
from amortized.evaluation import (
    EvaluatedModel,
    Gallery,
    PromptRow,
    evaluate,
    load_clip,
    merge_rows,
    summarize,
    summary,
    write_results,
)
from amortized.generation import TextTo3D
from amortized.generation.folder import load_run
from amortized.parallel import World
from amortized.types import Cameras, Corpus, GroundTruth, Prompt, Render, Scene
from corpora import indices_of, near_duplicates, open_corpus, prompt_list


def choose_prompts(
    corpus: Corpus, split: str, source: str | None, prompt: str | None, limit: int | None
) -> list[Prompt]:
    """The prompts to evaluate: a split of the corpus, those of another file or corpus, or a single one.

    `limit` takes at most so many of them, evenly spaced. Raises ValueError for options that exclude others.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    if prompt or source:
        if split != "all":
            raise ValueError(f"--split {split} selects from the corpus: omit it with --prompt or --prompts")
        texts = [prompt] if prompt else _texts(open_corpus(str(source)))
        corpus = replace(prompt_list(texts, "prompts", truth_from=corpus), trained=())
    indices = indices_of(corpus, split)
    number = min(len(indices), limit or len(indices))
    return [corpus[int(indices[i * len(indices) // number])] for i in range(number)]


def evaluate_share(
    run: Path,
    checkpoint: str,
    config: RunConfig,
    truth_for: Callable[[Prompt], GroundTruth | None],
    prompts: Sequence[Prompt],
    gallery: Gallery,
    folder: Path,
    world: World,
    progress: Callable[[int, int], None],
) -> list[PromptRow]:
    """Render and score this rank's share of the prompts."""
    model = TextTo3D(*load_run(run, checkpoint, str(world.device), config_to_dict(config)))
    share = list(prompts[world.rank :: world.size])
    if not share:
        return []
    untrained = TextTo3D(build_untrained(config, model.text_dim, world.device), model.texts, model.config)
    settings = config.evaluation

    def look(scene: Scene, cameras: Cameras, height: int, width: int) -> Render:
        return model.images(
            scene,
            cameras,
            (height, width),
            background=settings.background,
            show_environment=settings.show_environment,
        )

    return evaluate(
        EvaluatedModel(
            scene_for=model.scenes, start_scene_for=untrained.scenes, render=look, device=world.device
        ),
        share,
        gallery=gallery,
        truth_for=truth_for,
        scorer=load_clip(settings.clip, device=world.device, allow_network=settings.allow_network),
        config=settings,
        folder=folder,
        progress=progress,
    )


def report(
    name: str,
    config: RunConfig,
    corpus: Corpus,
    prompts: Sequence[Prompt],
    gallery: Gallery,
    shares: Sequence[Sequence[PromptRow]],
    folder: Path,
) -> str:
    """Summarize the rows of all ranks, write the results and the report page; returns text to print."""
    rows = mark_near_duplicates(merge_rows(shares, [prompt.id for prompt in prompts]), corpus)
    results = summarize(
        rows,
        name=name,
        gallery=len(gallery),
        settings=asdict(config.evaluation),
        seed=config.evaluation.seed,
    )
    write_results(folder, results)
    return f"{summary(results)}\nreport: {folder / 'index.html'}"


def mark_near_duplicates(rows: list[PromptRow], corpus: Corpus) -> list[PromptRow]:
    """Mark each held-out row with the training prompt it nearly duplicates, if any.

    A prompt that equals a training prompt counts as one.
    """
    others = [row.text for row in rows if row.split != "train"]
    near = near_duplicates(others, (corpus[int(i)].text for i in corpus.trained)) if others else {}

    def marked(row: PromptRow) -> PromptRow:
        trained, _ = near.get(row.text, (None, 0.0))
        return replace(row, split="train") if trained == row.text else replace(row, near_train=trained)

    return [marked(row) for row in rows]


def build_gallery(config: RunConfig, corpus: Corpus, prompts: Sequence[Prompt]) -> Gallery:
    """The texts that recall@1 is measured against."""
    texts = [*(prompt.text for prompt in prompts), *corpus.distractors()]
    if config.evaluation.gallery == "corpus":
        texts += _texts(corpus)
    return Gallery(texts)


def _texts(corpus: Corpus) -> list[str]:
    return [corpus[i].text for i in range(len(corpus))]
