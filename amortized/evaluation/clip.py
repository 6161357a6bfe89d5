"""CLIP as a scorer: unit embeddings of rendered images and of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortized.files import in_project, restore_hint
from amortized.model_folders import (
    ClipFolder,
    build_empty,
    check_fit,
    load_tokenizer,
    load_weights,
    read_clip_folder,
    sentences,
)
from amortized.model_folders.tokenizers import check_vocabulary
from amortized.model_folders.weights import is_finite
from amortized.network import network_on_request


class ClipScorer:
    """A frozen CLIP with its tokenizer and the preprocessing of its training."""

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
        """Embed images [N, H, W, 3] in [0, 1] as unit vectors [N, D], float32 on the CPU.

        Not differentiable. Non-square images are cropped to the center square.
        """
        chunks = [
            self.model.encode_image(self.preprocess(chunk.to(self.device)))
            for chunk in images.split(self.batch_size)
        ]
        return F.normalize(torch.cat(chunks).float(), dim=-1).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as unit vectors [M, D], float32 on the CPU. Not differentiable."""
        chunks = [
            self.model.encode_text(self.tokenizer(list(texts[i : i + self.batch_size])).to(self.device))
            for i in range(0, len(texts), self.batch_size)
        ]
        return F.normalize(torch.cat(chunks).float(), dim=-1).cpu()

    def preprocess(self, images: Tensor) -> Tensor:
        """Crop, resize and normalize images [N, H, W, 3] in [0, 1] to the model's input [N, 3, h, w]."""
        pixels = images.movedim(-1, 1).float()  # antialiased resizing does not support half precision
        side = min(pixels.shape[-2:])
        top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(
                pixels, self.size, mode=self.interpolation, antialias=True, align_corners=False
            ).clamp(0, 1)  # bicubic overshoots, which the 8-bit images of training cannot
        return (pixels - self.mean) / self.std


@network_on_request
def load_clip(
    path_or_name: str | Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    allow_network: bool = False,
) -> ClipScorer:
    """Load a CLIP from a folder in open_clip's format, or a published pair such as "ViT-L-14/openai".

    A folder (also written `local-dir:FOLDER`) holds `open_clip_config.json`, `open_clip_model.safetensors`
    and, if the config names `hf_tokenizer_name`, a tokenizer; loading it needs no network. A pair
    ARCHITECTURE/TAG comes from the local cache of the Hub, or is downloaded if `allow_network`. Only
    safetensors are loaded, since other formats can run code.

    Raises:
        ValueError: no such folder or pair, a file is missing, the download fails, the weights are not
            safetensors, or the preprocessing is unsupported.
    """
    name = str(path_or_name).removeprefix("local-dir:")
    folder = Path(in_project(name))
    if folder.is_dir():
        try:
            model, tokenizer = _from_folder(read_clip_folder(folder))
        except ValueError as error:
            raise ValueError(
                f"evaluation.clip={name!r} cannot be loaded: {str(error).rstrip('.')}; "
                f"{restore_hint(folder) or 'name another folder in open_clip format'}"
            ) from error
    elif not str(path_or_name).startswith("local-dir:") and _is_pretrained(name):
        architecture, _, tag = name.partition("/")
        model, tokenizer = _from_hub(architecture, tag, allow_network)
    else:
        raise ValueError(
            f"evaluation.clip={str(path_or_name)!r} is neither a folder nor one of open_clip's "
            f"ARCHITECTURE/TAG pairs such as 'ViT-L-14/openai': give an existing folder{_or_restore(name)}"
        )
    import open_clip

    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    if config.get("interpolation") not in ("bicubic", "bilinear"):
        raise ValueError(
            f"evaluation.clip={name!r} needs {config.get('interpolation')!r} resizing, but only bicubic and "
            "bilinear are supported: choose another pair"
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


def _from_folder(folder: ClipFolder) -> tuple[nn.Module, Any]:
    import open_clip
    from open_clip.model import set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if name := folder.model["vision_cfg"].get("timm_model_name"):
        import timm

        if not timm.is_model(name):
            raise ValueError(f"{folder.config_file}: 'timm_model_name' is {name!r}, which timm does not have")
    kind = open_clip.CustomTextCLIP if folder.separate_text else open_clip.CLIP
    model = build_empty(folder.config_file, lambda: kind(**folder.model))
    headers = check_fit(model, folder.weights)
    if folder.has_tokenizer:
        own = load_tokenizer(folder.folder, "CLIPTokenizer")
        check_vocabulary(own, model.vocab_size, folder.folder)
        tokenizer: Any = FolderTokenizer(own, model.context_length, **folder.tokenizer)
    else:
        clean = folder.tokenizer.get("clean", "lower")
        tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length, clean=clean)
        if tokenizer.vocab_size > model.vocab_size:
            raise ValueError(
                f"{folder.config_file} names no tokenizer ('hf_tokenizer_name'), and that of open_clip has "
                f"{tokenizer.vocab_size} tokens, but 'vocab_size' is {model.vocab_size}"
            )
    with sentences(f"{folder.config_file} does not describe a network that can run"):
        model = kind(**folder.model)  # with the buffers that its weights do not hold
    load_weights(model, headers, torch.float32)
    preprocess = merge_preprocess_dict(PreprocessCfg(), dict(folder.preprocess))
    set_model_preprocess_cfg(model, preprocess | {"size": model.visual.image_size})
    with sentences(f"{folder.config_file} does not describe a network that can run"), torch.no_grad():
        model.eval().encode_text(tokenizer([""]))
    return model, tokenizer


class FolderTokenizer:
    """The tokenizer of a folder, which cleans, pads and truncates texts as open_clip does."""

    def __init__(
        self, tokenizer: Any, length: int, clean: str = "whitespace", strip_sep_token: bool = False
    ) -> None:
        from open_clip.tokenizer import get_clean_fn

        self.tokenizer, self.length, self.strip_sep_token = tokenizer, length, strip_sep_token
        self.clean = get_clean_fn(clean)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [N, length]."""
        ids = self.tokenizer(
            [self.clean(text) for text in texts],
            return_tensors="pt",
            max_length=self.length,
            padding="max_length",
            truncation=True,
        ).input_ids
        if self.strip_sep_token:
            ids = ids.where(ids != self.tokenizer.sep_token_id, 0)
        return ids


def _or_restore(folder: str | Path) -> str:
    hint = restore_hint(folder)
    return f", or {hint}" if hint else ""


def _is_pretrained(name: str) -> bool:
    import open_clip

    architecture, _, tag = name.partition("/")
    return bool(tag) and open_clip.is_pretrained_cfg(architecture, tag)


def _from_hub(architecture: str, tag: str, allow_network: bool) -> tuple[nn.Module, Any]:
    import open_clip

    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    # A pair that is not on the Hub is a pickle at some other address: not even downloaded.
    weights = pretrained.get("url", "") if not pretrained.get("hf_hub") else ""
    try:
        weights = weights or open_clip.download_pretrained(pretrained)
    except Exception as error:  # open_clip lets any error of the network stack through
        remedy = f"could not be downloaded ({error}): check the network"
        if not allow_network:
            remedy = "is not in the local cache: set evaluation.allow_network=true to download it"
        raise ValueError(f"evaluation.clip={architecture}/{tag} {remedy}, or name a local folder") from error
    if not weights.endswith(".safetensors"):
        raise ValueError(
            f"evaluation.clip={architecture}/{tag} is published as {Path(weights).name}, but only "
            "safetensors are loaded: name a pair published in that format, or convert it into a local folder"
        )
    # OpenAI's weights need quick GELU, which the plain architecture names do not imply. open_clip only
    # warns about it, and similarities would be silently wrong.
    with sentences(f"evaluation.clip={architecture}/{tag} cannot be loaded from {weights}"):
        model = open_clip.create_model(
            architecture,
            pretrained=tag,
            require_pretrained=True,
            force_quick_gelu=bool(pretrained.get("quick_gelu")),
        )
        broken = [
            name
            for name, value in model.state_dict().items()
            if value.is_floating_point() and not is_finite(value)
        ]
        if broken:
            raise ValueError(f"'{broken[0]}' has values that are not finite; download it again")
        text = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})
        plain: dict[str, Any] = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        return model, open_clip.get_tokenizer(architecture, **plain)
