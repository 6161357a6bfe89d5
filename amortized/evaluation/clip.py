"""CLIP as the judge: unit embeddings of rendered images and of sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


class ClipScorer:
    """A frozen CLIP with its tokenizer and the preprocessing that its weights were trained with."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.size, self.interpolation = size, interpolation
        self.device, self.batch_size = torch.device(device), batch_size
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D], float32 on the CPU, of images [N, H, W, 3] in [0, 1].

        Not differentiable. Images that are not square lose what lies outside the middle square.
        """
        chunks = [
            self.model.encode_image(self.preprocess(chunk.to(self.device)))
            for chunk in images.split(self.batch_size)
        ]
        return F.normalize(torch.cat(chunks).float(), dim=-1).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [M, D], float32 on the CPU, of M sentences."""
        chunks = [
            self.model.encode_text(self.tokenizer(list(texts[i : i + self.batch_size])).to(self.device))
            for i in range(0, len(texts), self.batch_size)
        ]
        return F.normalize(torch.cat(chunks).float(), dim=-1).cpu()

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [N, H, W, 3] in [0, 1] => the model's input [N, 3, h, w], normalized."""
        pixels = images.movedim(-1, 1).float()  # antialiased resizing knows no half precision
        side = min(pixels.shape[-2:])
        top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(
                pixels, self.size, mode=self.interpolation, antialias=True, align_corners=False
            ).clamp(0, 1)  # bicubic overshoots; the 8-bit images of training could not
        return (pixels - self.mean) / self.std


def load_clip(
    path_or_name: str | Path, *, device: torch.device | str = "cpu", batch_size: int = 64
) -> ClipScorer:
    """The CLIP of a folder in open_clip's format, or of a published pair such as "ViT-L-14/openai".

    A folder (also written `local-dir:FOLDER`) holds `open_clip_config.json`,
    `open_clip_model.safetensors` and, where the config names `hf_tokenizer_name`, its tokenizer; it
    is read without a network. A pair ARCHITECTURE/TAG is downloaded. Weights that are not
    safetensors are refused, since reading them can run code. Raises ValueError.
    """
    name = str(path_or_name).removeprefix("local-dir:")
    folder = Path(name)
    if folder.is_dir():
        model, tokenizer = _from_folder(folder)
    elif not str(path_or_name).startswith("local-dir:") and _is_published(name):
        model, tokenizer = _from_hub(*name.split("/"))
    else:
        raise ValueError(
            f"evaluation.clip={str(path_or_name)!r} is neither a folder nor one of open_clip's "
            "ARCHITECTURE/TAG pairs such as 'ViT-L-14/openai': give an existing folder, or run `make weights`"
        )
    import open_clip

    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    if config.get("interpolation") not in ("bicubic", "bilinear"):
        raise ValueError(
            f"evaluation.clip={name!r} asks for {config.get('interpolation')!r} resizing: "
            "only bicubic and bilinear are known; set preprocess_cfg.interpolation"
        )
    return ClipScorer(
        model,
        tokenizer,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        device=device,
        batch_size=batch_size,
    )


def _from_folder(folder: Path) -> tuple[nn.Module, Any]:
    import open_clip

    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ValueError(
                f"evaluation.clip={str(folder)!r} has no {file}: run `make weights`, "
                "or name another folder in open_clip's format"
            )
    text_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if text_config.get("hf_tokenizer_name") and not any(folder.glob("tokenizer*.json")):
        raise ValueError(
            f"evaluation.clip={str(folder)!r} names a tokenizer but holds none: run `make weights`"
        )
    source = f"local-dir:{folder}"
    model = open_clip.create_model(source, require_pretrained=True)
    return model, open_clip.get_tokenizer(source)


def _is_published(name: str) -> bool:
    import open_clip

    architecture, _, tag = name.partition("/")
    return bool(tag) and open_clip.is_pretrained_cfg(architecture, tag)


def _from_hub(architecture: str, tag: str) -> tuple[nn.Module, Any]:
    import open_clip

    published = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        weights = open_clip.download_pretrained(published)
    except Exception as error:  # open_clip passes on whatever the network raises
        raise ValueError(
            f"evaluation.clip={architecture}/{tag} could not be downloaded ({error}): "
            "check the network, or name a local folder"
        ) from error
    if not weights.endswith(".safetensors"):
        raise ValueError(
            f"evaluation.clip={architecture}/{tag} came as {Path(weights).name}: only safetensors are read; "
            "name a pair published in that format, or convert it into a local folder"
        )
    # The plain architecture names of OpenAI's weights lack their quick GELU, which open_clip only
    # warns of: similarities would be quietly wrong.
    model = open_clip.create_model(
        architecture,
        pretrained=tag,
        require_pretrained=True,
        force_quick_gelu=bool(published.get("quick_gelu")),
    )
    return model, open_clip.get_tokenizer(architecture)
