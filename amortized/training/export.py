"""A run's generator as a plain folder, model.safetensors and config.json: what using it needs, and no more.

  python -m amortized.training.export outputs/quickstart exported/quickstart
  python -m amortized.training.export RUN FOLDER --checkpoint best

`generators.pretrained.from_pretrained(FOLDER)` builds it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from amortized import __version__
from amortized.files import sync
from amortized.training.checkpoint import about_of, averaged_part, find_checkpoint, tensors_in


def export(run: Path, folder: Path, which: str = "newest") -> Path:
    """Write the folder; returns the checkpoint that it is of. Averaged weights where there are some.

    Raises ValueError where the run or its checkpoint cannot be read, or where the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name another folder, or remove it")
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} holds no run: its config.yaml is missing")
    checkpoint = find_checkpoint(run, which)
    config = yaml.safe_load((run / "config.yaml").read_text())
    partial = folder.with_name(f".partial_{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = tensors_in(checkpoint, averaged_part(checkpoint))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    about = about_of(checkpoint)
    (partial / "config.json").write_text(json.dumps(described(config, about.step, about.text_dim), indent=1))
    for path in (*partial.iterdir(), partial):
        sync(path)
    partial.rename(folder)
    sync(folder.parent)
    return checkpoint


def described(config: dict[str, Any], step: int, text_dim: int) -> dict[str, Any]:
    """Of a run's settings those that its generator cannot be used without, or should not."""
    sharpness = config["trainer"]["sharpness"]
    encoder = config["text"]["encoder"]
    reads = {"encoder": config["prior"]["path"], "revision": config["prior"]["revision"]}
    if encoder is not None:
        reads = {"encoder": encoder, "revision": config["text"]["revision"]}
    return {
        "amortized3d": __version__,
        "generator": config["generator"],
        "surroundings": config["surroundings"],
        "text_dim": text_dim,
        "text": reads,  # whose vectors the generator reads
        "sharpness": sharpness[-1] if isinstance(sharpness, list) else sharpness,
        "renderer": config["renderer"],
        "cameras": config["cameras"],
        "background": config["background"],
        "trained": {"step": step, "corpus": config["corpus"], "guidance": config["guidance"]},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m amortized.training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a name (%(default)s)")
    given = parser.parse_args(argv)
    try:
        checkpoint = export(given.run, given.folder, given.checkpoint)
    except (ValueError, OSError) as error:
        parser.exit(2, f"export: error: {' '.join(str(error).split())}\n")
    print(f"{given.folder}: {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
