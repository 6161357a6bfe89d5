"""The README of an exported generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amortized.untrusted import read_json_object

# Metrics of a results.json, with their names on the card.
METRICS = {
    "clip_similarity": "CLIP similarity",
    "recall_at_1": "CLIP recall@1",
    "iou": "volumetric IoU with the ground truth",
    "color_error": "color error",
}


def model_card(run: Path, name: str, config: Mapping[str, Any]) -> str:
    """The card in Markdown: what the generator is, how to use it, how it was trained, how it scores."""
    training, guidance = config["training"], config["training"]["guidance"]
    origin = f"Trained by\nscore distillation with amortized3d {config['amortized3d']}, without 3D data."
    rows = {
        "training corpus": training["corpus"],
        "steps": f"{training['step']:,}",
        "guidance": f"noise {guidance['noise']}, reference {guidance['reference']}",
        "2D prior": training["prior"],
    }
    return _card(name, config, origin, rows, _scores(run))


def converted_card(name: str, file: str, config: Mapping[str, Any]) -> str:
    """The card of a generator that another project trained, converted from a file of that name."""
    training = config["training"]
    source, step = training["converted_from"], training["step"]
    origin = (
        f"Trained by\nscore distillation with the public code of {_plain(source['project'])}, converted by "
        f"amortized3d {config['amortized3d']}."
    )
    rows = {
        "converted from": f"{file}, SHA-256 {source['files'][file]['sha256']}",
        "training corpus": training["corpus"],
        "steps": "unknown" if step is None else f"{step:,}",
        "guidance": training["guidance"]["method"].upper(),
        "2D prior": training["prior"],
    }
    return _card(name, config, origin, rows, "Not evaluated here.")


def _card(name: str, config: Mapping[str, Any], origin: str, rows: Mapping[str, str], scores: str) -> str:
    """A card: `origin` is a sentence on who trained it, `rows` say how, as plain text."""
    training, encoder = config["training"], config["text_encoder"]
    table = "\n".join(f"| {label} | {_plain(value)} |" for label, value in rows.items())
    fingerprint = f"fingerprint `{encoder['fingerprint']}`" if encoder["fingerprint"] else "not verified"
    return f"""---
library_name: amortized3d
pipeline_tag: text-to-3d
---

# {_plain(name)}

{_kind(config["generator"]["name"], training.get("prompt"))} {origin}

```python
from amortized.generation import TextTo3D

model = TextTo3D.from_pretrained({json.dumps(" ".join(name.split()))})
scene = model.scenes(["a red cube"])
images = model.images(scene, model.orbit(num_views=4), size=128).rgb  # [1, 4, 128, 128, 3]
```

| | |
|---|---|
{table}
| text encoder (not included) | {_plain(encoder["path"])}, {fingerprint} |

## Scores

{scores}

## License

amortized3d is under Apache-2.0 and claims no rights in these weights. A generator distilled from a
diffusion model may inherit the terms of use of that model and of the corpus: check them before publishing.
"""


def _kind(generator: str, prompt: str | None) -> str:
    """What the generator makes, in a sentence."""
    made = "Gaussian splats" if generator == "splats" else "a 3D object as a field of shape and color"
    if prompt is None:
        return f"A {generator} generator: any text to {made} in one forward pass."
    return f"A {generator} generator, trained on one prompt, {_plain(prompt)}: {made}."


def _scores(run: Path) -> str:
    """The scores of the run's evaluation, if it has one."""
    try:
        metrics = read_json_object(run / "evaluation" / "results.json")["metrics"]
        rows = [(label, metrics[key]) for key, label in METRICS.items() if key in metrics]
        lines = [f"| {label} | {m['mean']:.3f}{_interval(m)} |" for label, m in rows]
    except (OSError, ValueError, KeyError, TypeError):
        lines = []
    if not lines:
        return "Not evaluated: run `amortized evaluate RUN` before the export to have its scores here."
    return "\n".join(["| metric | mean over prompts [95 % interval] |", "|---|---|", *lines])


def _interval(metric: Mapping[str, Any]) -> str:
    """The interval in brackets; one prompt has none."""
    return "" if metric["low"] is None else f" [{metric['low']:.3f}, {metric['high']:.3f}]"


def _plain(text: Any) -> str:
    """Text for one line of Markdown: without line breaks or characters that mean something there."""
    line = " ".join(str(text).split())
    return "".join(f"\\{char}" if char in "|`[]<>\\" else char for char in line)
