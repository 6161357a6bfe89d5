"""Train the embedded CLIP, in open_clip's format: the scorer, trained on other images than the prior.

The loss is contrastive, over sentences without view words. A batch holds each sentence at most once, since
two views of one scene would be each other's negatives. Two thirds of a batch are the 64 shape-color sentences
of one kind, so that every image has its color in seven other shapes as negatives: in random batches color
alone nearly solves the task, and shapes are learned very slowly (0.78 after 2,000 steps, docs/log.md).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from amortized.random import generator_for
from corpora.shapes.grammar import COLORS, SHAPES, sentence, singles
from corpora.shapes.recipe.card import write_card
from corpora.shapes.recipe.images import JUDGE, DrawConfig, ImageSet, draw
from corpora.shapes.recipe.progress import run_stage
from corpora.shapes.recipe.tokenizer import CONTEXT_LENGTH, build_tokenizer

SEED = 21
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def model_config(vocabulary: int) -> dict:
    """open_clip's model_cfg. A small ResNet learns color and silhouette better than a small ViT."""
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 24,
            "head_width": 48,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": 96,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "tokenizer",
        },
    }


def build_model(tokenizer):
    """An untrained `open_clip.CLIP` for the tokenizer's vocabulary."""
    from open_clip import CLIP

    config = model_config(len(tokenizer))
    text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    return CLIP(**{**config, "text_cfg": text})


def normalize(images: Tensor) -> Tensor:
    """Standardize images [N, H, W, 3] in [0, 255] with MEAN and STD; returns [N, 3, H, W]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def sample_scenes(weight: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Draw distinct scene indices [batch]: 64 of one kind (plain, marked, small, large or pair), then others.

    The others are drawn in proportion to weight [num_scenes].
    """
    # The share of each kind as the 64 is a choice: half plain, which the scores are about.
    start = 64 * int(torch.multinomial(torch.tensor([0.5, 0.12, 0.08, 0.08, 0.22]), 1, generator=random))
    chosen = torch.arange(start, start + 64)
    if start == 256:  # 64 random pairs
        chosen = 256 + torch.randperm(len(weight) - 256, generator=random)[:64]
    others = weight.clone()
    others[chosen] = 0
    return torch.cat([chosen, torch.multinomial(others, batch - 64, generator=random)])


def train_clip(folder: Path, data: ImageSet, steps: int, batch: int):
    """Train with CLIP's symmetric cross-entropy (arXiv 2103.00020); returns (model, tokenizer, scores)."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.visual.to(memory_format=torch.channels_last)  # a third faster on a CPU (docs/log.md)
    members = [torch.nonzero(data.scene == i).squeeze(-1) for i in range(len(data.descriptions))]
    texts = [sentence(description) for description in data.descriptions]
    weight = torch.tensor([float(len(m)) for m in members])
    held_out = draw_held_out()

    def step_fn(step: int) -> dict[str, float]:
        random = generator_for(SEED, "clip", step)
        scenes = sample_scenes(weight, batch, random)
        picks = [members[s][torch.randint(len(members[s]), (), generator=random)] for s in scenes.tolist()]
        images = data.images[torch.stack(picks)]
        if step % 2:  # every sentence stays true in a mirror image
            images = images.flip(2)
        if step % 3 == 0:  # generated images are softer than exact renders
            small = functional.interpolate(images.permute(0, 3, 1, 2).float(), scale_factor=0.5, mode="area")
            soft = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
            images = soft.permute(0, 2, 3, 1)
        batch_texts = [texts[s] for s in scenes]
        tokens = tokenizer(batch_texts, padding="max_length", truncation=True, return_tensors="pt")
        image, text, scale = model(normalize(images), tokens.input_ids)[:3]
        logits = scale * image @ text.T
        target = torch.arange(batch)
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss.backward()
        top1 = (logits.argmax(-1) == target).float().mean()
        return {"loss": loss.item(), "top1": top1.item()}

    def score() -> dict[str, float]:
        return accuracy(model, tokenizer, held_out)

    scores = run_stage(
        name="clip",
        folder=folder,
        modules=model,
        steps=steps,
        learning_rate=2e-3,
        step_fn=step_fn,
        score=score,
        score_every=500,
        ema_decay=0.995,
    )
    return model, tokenizer, scores


def draw_held_out() -> ImageSet:
    """Render the 64 plain sentences with another seed, disjoint from all training images."""
    return draw(
        DrawConfig(
            seed=3,
            views_single=8,
            views_marked=0,
            views_sized=0,
            num_pairs=0,
            distance=JUDGE.distance,
            fovy_deg=JUDGE.fovy_deg,
            background=JUDGE.background,
            colored_background=True,
            random_light=True,
        )
    )


@torch.no_grad()
def accuracy(model, tokenizer, data: ImageSet) -> dict[str, float]:
    """Fractions of images matched to their shape, their color and both, among the 64 plain sentences."""
    model.eval()
    texts = [sentence(description) for description in singles()]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = model.encode_text(tokens, normalize=True)
    chunks = data.images.split(256)
    image = torch.cat([model.encode_image(normalize(chunk), normalize=True) for chunk in chunks])
    guess = (image @ text.T).argmax(-1)
    model.train()
    num_colors = len(COLORS)
    assert len(texts) == len(SHAPES) * num_colors
    return {
        "shape": (guess // num_colors == data.scene // num_colors).float().mean().item(),
        "color": (guess % num_colors == data.scene % num_colors).float().mean().item(),
        "both": (guess == data.scene).float().mean().item(),
    }


CARD = """
A small CLIP for the Shapes world in open_clip's `local-dir:` format (ResNet image tower, transformer text
tower, word-level vocabulary): the scorer of this world's evaluations.

- **Data**: {images} exact renders, drawn independently of the prior's: random light directions, colored
  backgrounds, fields of view and distances; a third of the batches are blurred.
- **Training**: `make weights` on a CPU, fp32, AdamW, {steps} steps of {batch} distinct sentences, seed
  {seed}.
- **License**: Apache-2.0; the data are generated by code in this repository.

Figures: the fraction of held-out exact renders matched to their shape, their color and both among the 64
shape-color sentences.
"""
STEPS, BATCH = 4500, 96


def make_clip(work: Path, output: Path) -> None:
    """Train, or resume, and write `output` in the layout of open_clip's `local-dir:` schema."""
    data = draw(JUDGE, work / "judge_images.safetensors")
    model, tokenizer, scores = train_clip(work, data, STEPS, BATCH)
    output.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": model_config(len(tokenizer)),
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, output / "open_clip_model.safetensors")
    tokenizer.save_pretrained(output)
    details = {"images": len(data.images), "steps": STEPS, "batch": BATCH, "seed": SEED}
    write_card(output, "Shapes CLIP", CARD.format(**details), scores)
    print(f"{output}: {scores}")
