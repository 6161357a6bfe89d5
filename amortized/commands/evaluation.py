"""The steps of an evaluation: choose prompts, score a share of them, summarize and report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from amortized.commands.compose import RunConfig, build_untrained
from amortized.commands.provenance import provenance
from amortized.config import config_to_dict, config_to_yaml
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
from amortized.evaluation.evaluator import file_names
from amortized.evaluation.folder import partial_of, replaced_folder
from amortized.evaluation.objects import can_make_objects
from amortized.generation import TextTo3D
from amortized.generation.folder import checkpoint_of, load_run
from amortized.names import slug
from amortized.pages import load_history
from amortized.parallel import World
from amortized.types import AnyScene, Cameras, Corpus, GroundTruth, Prompt, Render
from corpora import indices_of, near_duplicates, open_corpus, prompt_list
from corpora.prompts import normalized


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a run is evaluated; the default is the whole corpus at the newest checkpoint."""

    split: str = "all"
    prompts: str | None = None  # a file or corpus instead of the run's corpus
    prompt: str | None = None  # or a single prompt
    limit: int | None = None  # at most so many prompts, evenly spaced
    checkpoint: str = "newest"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt and --prompts exclude each other: write all prompts into one file")
        if self.split != "all" and (self.prompt is not None or self.prompts is not None):
            raise ValueError(
                f"--split {self.split} selects from the corpus: omit it with --prompt or --prompts"
            )

    @property
    def words(self) -> str:
        """The options that differ from the default, in words; empty for the default."""
        words = [] if self.prompt is None else [self.prompt]
        words += [] if self.prompts is None else [self.prompts]
        words += [] if self.split == "all" else [f"split {self.split}"]
        words += [] if self.limit is None else [f"limit {self.limit}"]
        words += [] if self.checkpoint == "newest" else [f"checkpoint {self.checkpoint}"]
        return ", ".join(words)

    def folder(self, run: Path) -> Path:
        """The folder of its results by default: no other selection replaces the report of the run."""
        return run / "evaluations" / slug(self.words) if self.words else run / "evaluation"


def choose_prompts(corpus: Corpus, selection: Selection, *, one_object: bool = False) -> list[Prompt]:
    """The prompts to evaluate: a split of the corpus, those of another file or corpus, or a single one.

    Raises ValueError if there is none, or for other texts than the one of `one_object`, which ignores them.
    """
    texts = None
    if selection.prompt is not None:
        texts = [selection.prompt]
    elif selection.prompts is not None:
        texts = _texts(open_corpus(selection.prompts))
    if texts is not None:
        trained = {normalized(corpus[int(index)].text) for index in corpus.trained}
        if one_object and (others := [text for text in texts if normalized(text) not in trained]):
            raise ValueError(
                f"the run is one object, {corpus[0].text!r}, and ignores the text {others[0]!r}: omit "
                "--prompt and --prompts"
            )
        corpus = replace(prompt_list(texts, "--prompt", truth_from=corpus), trained=())
    indices = indices_of(corpus, selection.split)
    number = min(len(indices), selection.limit or len(indices))
    return [corpus[int(indices[i * len(indices) // number])] for i in range(number)]


@contextmanager
def results_folder(folder: Path, world: World, *, retain: bool) -> Iterator[Path]:
    """Context: the folder that all ranks write to; it replaces `folder` when they are done. Collective.

    `retain` as in `replaced_folder`. Raises ValueError on all ranks for a folder that must not be replaced.
    """
    with ExitStack() as stack:
        if world.is_main:
            world.run_on_all(lambda: stack.enter_context(replaced_folder(folder, retain=retain)) and None)
        else:
            world.run_on_all(lambda: None)
        yield partial_of(folder)


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
    settings = config.evaluation
    model = TextTo3D(*load_run(run, checkpoint, str(world.device), config_to_dict(config)))
    if world.is_main:
        for note in model.texts.notes_on([prompt.text for prompt in prompts], generator_only=True):
            print(f"note: {note}")
    missing = can_make_objects() if settings.objects and not model.makes_splats else ""
    if missing and world.is_main:
        print(f"note: the report has no objects in 3D: {missing}")
    share = list(prompts[world.rank :: world.size])
    if not share:
        return []
    untrained = None  # a run with a `start`, which may be gone, did not begin as an untrained generator
    if config.start is None:
        generator = build_untrained(config, model.text_dim, world.device)
        untrained = TextTo3D(generator, model.texts, model.config)

    def look(scene: AnyScene, cameras: Cameras, height: int, width: int) -> Render:
        return model.images(
            scene,
            cameras,
            (height, width),
            background=settings.background,
            show_environment=settings.show_environment,
        )

    return evaluate(
        EvaluatedModel(
            scene_for=model.scenes,
            start_scene_for=None if untrained is None else untrained.scenes,
            render=look,
            device=world.device,
        ),
        share,
        gallery=gallery,
        truth_for=truth_for,
        scorer=load_clip(settings.clip, device=world.device, allow_network=settings.allow_network),
        config=settings,
        folder=folder,
        names=file_names(prompts),
        with_object={prompt.id for prompt in prompts[: settings.objects]} if not missing else (),
        progress=progress,
    )


def report(
    run: Path,
    selection: Selection,
    config: RunConfig,
    corpus: Corpus,
    prompts: Sequence[Prompt],
    gallery: Gallery,
    shares: Sequence[Sequence[PromptRow]],
    folder: Path,
    world: World,
) -> str:
    """Summarize the rows of all ranks, write the results and the report page; returns text to print."""
    checkpoint, step = checkpoint_of(run, selection.checkpoint)
    history = load_history(run / "log.jsonl", step)
    selected = selection.words or f"the whole corpus, {config.corpus}"
    rows = mark_near_duplicates(merge_rows(shares, [prompt.id for prompt in prompts]), corpus)
    results = summarize(
        rows,
        name=run.resolve().name,
        gallery=len(gallery),
        settings=asdict(config.evaluation),
        seed=config.evaluation.seed,
        provenance=provenance(run, config, checkpoint, step, selected, history, world),
    )
    write_results(folder, results, history=history, config_yaml=config_to_yaml(config))
    return summary(results)


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
