"""Render and score the prompts of a run: CLIP similarity, recall@1, and ground truth where known.

  python evaluate.py outputs/quickstart                          the whole corpus
  torchrun --nproc-per-node 8 evaluate.py outputs/quickstart     the same on eight
  python evaluate.py outputs/quickstart --prompt "a red cone"    any sentence

Writes RUN/evaluation/: results.json, results.csv, index.html, strips/ and turntables/.
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

import torch

from amortized import config as settings
from amortized.cli import one_sentence_errors, parser_for
from amortized.evaluation import evaluate, load_clip, merge_rows, summarize, summary, write_results
from amortized.rendering import render
from amortized.training import generator_weights, join_world, load_weights
from amortized.training.schedules import geometric_at
from corpora import prompt_list, read_prompts
from train import RunConfig, compose, corpus_of


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("evaluate.py", __doc__)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, e.g. evaluation.views=4")
    parser.add_argument("--prompts", type=Path, help="a text file of sentences to evaluate instead, one a line")
    parser.add_argument("--prompt", help="one sentence to evaluate instead")
    parser.add_argument("--output", type=Path, help="where to write (default: RUN/evaluation)")
    arguments = parser.parse_args(argv)
    with one_sentence_errors("evaluate.py"), torch.no_grad():
        if not (arguments.run / "config.yaml").exists():
            raise ValueError(f"{arguments.run} holds no run: train one first (python train.py configs/quickstart.yaml)")
        config = settings.load(RunConfig, arguments.run / "config.yaml", arguments.overrides)
        corpus = corpus_of(config)
        texts = [arguments.prompt] if arguments.prompt else read_prompts(arguments.prompts) if arguments.prompts else None
        asked = corpus if texts is None else prompt_list(texts, "prompts", background=corpus)
        with join_world(config.device) as world:
            _, bank, start = compose(config, world.device)
            generator = copy.deepcopy(start)  # the untrained one stays, to compare with
            load_weights(generator_weights(arguments.run), generator)
            prompts = [asked[i] for i in range(world.rank, len(asked), world.size)]
            grey = config.evaluation.background

            def look(scene, cameras, height, width):
                return render(
                    scene, cameras, height, width, config=config.renderer, training=False,
                    sharpness=geometric_at(config.trainer.sharpness, 1.0),
                    background=cameras.c2w.new_full((*cameras.c2w.shape[:2], 3), grey),
                )

            def scene_of(model, batch):
                return model(bank.get([prompt.text for prompt in batch]))

            folder = arguments.output or arguments.run / "evaluation"
            gallery = [*(corpus[i].text for i in range(len(corpus))), *corpus.distractors()]
            results = None if not prompts else evaluate(
                scene_for=partial(scene_of, generator), start_scene_for=partial(scene_of, start), render=look,
                prompts=prompts, gallery_texts=gallery, corpus_truth=asked.truth,
                scorer=load_clip(config.evaluation.clip, device=world.device), settings=config.evaluation,
                folder=folder, name=arguments.run.name, device=world.device, progress=bar(world),
            )
            shards = world.gather_objects(() if results is None else results.prompts)
            if world.is_main:
                rows = merge_rows(shards, [asked[i].id for i in range(len(asked))])
                results = summarize(rows, name=results.name, gallery=results.gallery, settings=results.settings)
                write_results(folder, results)
                print(summary(results))
                print(f"report: {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
