"""Render and score the prompts of a run: CLIP similarity, recall@1, and ground truth where known.

  python evaluate.py outputs/quickstart                          the whole corpus
  torchrun --nproc-per-node 8 evaluate.py outputs/quickstart     the same on eight
  python evaluate.py outputs/quickstart --prompt "a red cone"    any sentence

Writes RUN/evaluation/: results.json, results.csv, index.html, strips/ and turntables/.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from amortized.cli import one_sentence_errors, parser_for, progress_bar
from amortized.config import geometric_at, load_config
from amortized.evaluation import (
    PromptRow,
    evaluate,
    load_clip,
    merge_rows,
    summarize,
    summary,
    write_results,
)
from amortized.rendering import render
from amortized.training import join_world, load_generator, z_of
from amortized.types import Cameras, Corpus, Prompt, Render, Scene
from corpora import indices_of, near_duplicates, open_corpus, prompt_list
from train import RunConfig, compose, corpus_of


def spaced(indices: Sequence[int], limit: int | None) -> list[int]:
    """At most `limit` of the indices, evenly spaced."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    taken = min(len(indices), limit or len(indices))
    return [int(indices[place * len(indices) // taken]) for place in range(taken)]


def texts_of(name: str) -> list[str]:
    """All prompts of a corpus, or of a file."""
    corpus = open_corpus(name)
    return [corpus[index].text for index in range(len(corpus))]


def told_nearness(rows: list[PromptRow], corpus: Corpus) -> list[PromptRow]:
    """The rows, of which those that are not of training say which of its prompts they nearly equal."""
    asked = [row.text for row in rows if row.split != "train"]
    near = near_duplicates(asked, (corpus[int(i)].text for i in corpus.trained)) if asked else {}

    def told(row: PromptRow) -> PromptRow:
        seen, _ = near.get(row.text, (None, 0.0))
        return replace(row, split="train") if seen == row.text else replace(row, near_train=seen)

    return [told(row) for row in rows]


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("evaluate.py", __doc__)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. evaluation.views=4")
    parser.add_argument("--split", default="all", help="train, heldout, val, test (%(default)s)")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a name (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many prompts, evenly spaced")
    parser.add_argument("--prompts", help="evaluate the sentences of this file or corpus instead")
    parser.add_argument("--prompt", help="evaluate this sentence instead")
    parser.add_argument("--output", type=Path, help="where to write (default: RUN/evaluation)")
    given = parser.parse_intermixed_args(argv)
    with one_sentence_errors("evaluate.py"), torch.no_grad():
        if not (given.run / "config.yaml").exists():
            raise ValueError(f"{given.run} holds no run: train one first (python train.py CONFIG)")
        for word in given.overrides:
            if word.startswith(("corpus=", "held_out=", "prompt=")):
                raise ValueError(f"{word} would say that the run learned something else: use --prompts")
        config = load_config(RunConfig, given.run / "config.yaml", given.overrides)
        corpus = asked = corpus_of(config)
        if given.prompt or given.prompts:
            if given.split != "all":
                raise ValueError(
                    f"--split {given.split} is of a corpus: leave it out with --prompt or --prompts"
                )
            texts = [given.prompt] if given.prompt else texts_of(given.prompts)
            asked = replace(prompt_list(texts, "prompts", background=corpus), trained=())
        chosen = spaced(indices_of(asked, given.split), given.limit)
        folder = given.output or given.run / "evaluation"
        with join_world(config.device) as world:
            _, bank, start = compose(config, world.device)
            trained = copy.deepcopy(start.eval())  # the untrained one stays, to compare with
            load_generator(given.run, trained, given.checkpoint)

            def look(scene: Scene, cameras: Cameras, height: int, width: int) -> Render:
                grey = torch.full_like(cameras.c2w[..., :3, 3], config.evaluation.background)
                own = torch.full(grey.shape[:2], config.evaluation.own_background, device=grey.device)
                sharpness = geometric_at(config.trainer.sharpness, 1.0)
                return render(
                    scene, cameras, height, width, config=config.renderer, background=grey,
                    own_background=own, sharpness=sharpness, training=False,
                )  # fmt: skip

            def scenes_of(generator: torch.nn.Module):
                def scene_for(prompts: list[Prompt]) -> Scene:
                    z = z_of(prompts, generator, config.seed, config.trainer.seeds_per_prompt)
                    text = bank.generator_text([prompt.text for prompt in prompts])
                    return generator(text, z.to(world.device))

                return scene_for

            mine = [asked[i] for i in chosen[world.rank :: world.size]]
            gallery = [*(asked[i].text for i in chosen), *corpus.distractors()]
            if config.evaluation.gallery == "corpus":
                gallery += [corpus[i].text for i in range(len(corpus))]
            results = None
            if mine:
                results = evaluate(
                    scene_for=scenes_of(trained), start_scene_for=scenes_of(start), render=look,
                    prompts=mine, gallery_texts=gallery, corpus_truth=asked.truth,
                    scorer=load_clip(config.evaluation.clip, device=world.device),
                    settings=config.evaluation, folder=folder, name=given.run.name,
                    device=world.device, progress=progress_bar("evaluating", quiet=not world.is_main),
                )  # fmt: skip
            shards = world.gather_objects(() if results is None else results.prompts)
            if results is not None and world.is_main:
                rows = told_nearness(merge_rows(shards, [asked[i].id for i in chosen]), corpus)
                results = summarize(
                    rows, name=results.name, gallery=results.gallery, settings=results.settings
                )
                write_results(folder, results)
                print(f"{summary(results)}\nreport: {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
