"""ImageReward (Xu et al. 2023) as a judge: a BLIP that reads the text with cross-attention to the image.

A folder in our format has config.json, model.safetensors, and the tokenizer of BERT in tokenizer.json;
`amortized convert image-reward` writes it from the published file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortized.evaluation.judges.judge import digest_of, resized
from amortized.model_folders import build_empty, check_fit, load_tokenizer, load_weights
from amortized.model_folders.configs import check_depth, check_name, known_values
from amortized.model_folders.tokenizers import check_vocabulary
from amortized.model_folders.weights import read_weights
from amortized.untrusted import read_json_object, short

CONFIG, WEIGHTS = "config.json", "model"
KIND = "image-reward"
TEXT_TOKENS = 35  # texts are padded and cut to so many, as in its training
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pixels


@dataclass(frozen=True, kw_only=True)
class ImageRewardConfig:
    """The sizes of the network; the defaults are those of the published one."""

    image_size: int = 224  # px
    patch_size: int = 16
    vision_width: int = 1024
    vision_hidden: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16
    vocabulary: int = 30524  # BERT's and two more
    text_width: int = 768
    text_hidden: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    text_positions: int = 512
    head: tuple[int, ...] = (1024, 128, 64, 16)  # widths between the text's state and the reward
    # Of the rewards of its training set: a score is (reward - mean) / std.
    reward_mean: float = 0.16717362830052426
    reward_std: float = 1.0333394966054072


class ImageRewardNetwork(nn.Module):
    """The two towers and the head. The head has no activations, as published."""

    def __init__(self, config: ImageRewardConfig) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.vision: Any = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=config.vision_width,
                intermediate_size=config.vision_hidden,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=1e-6,
                hidden_act="gelu",
            )
        )
        self.text: Any = BlipTextModel(
            BlipTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                encoder_hidden_size=config.vision_width,
                intermediate_size=config.text_hidden,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.text_positions,
                layer_norm_eps=1e-12,
                is_decoder=True,  # creates the cross-attention
                pad_token_id=0,
            ),
            add_pooling_layer=False,
        )
        widths = (config.text_width, *config.head, 1)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)))

    def see(self, pixels: Tensor) -> Tensor:
        """Image tokens [N, T, D], the class token among them, of normalized pixels [N, 3, H, W]."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def reward(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards [N], not yet standardized, of image tokens [N, T, D] with text ids and mask [N, L]."""
        states = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device),
            is_decoder=False,  # every token attends to all others, unlike in a decoder
        ).last_hidden_state
        return self.head(states[:, 0])[:, 0]  # of [CLS]


class ImageRewardJudge:
    """A frozen ImageReward. Texts cannot be encoded apart: each reads the image."""

    name = KIND

    def __init__(
        self,
        network: ImageRewardNetwork,
        tokenizer: Any,
        config: ImageRewardConfig,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.tokenizer, self.config = tokenizer, config
        self.device, self.batch_size = torch.device(device), batch_size
        preprocessing = {**asdict(config), "mean": MEAN, "std": STD, "resize": "Pillow bicubic"}
        self.digest = digest_of(network, preprocessing)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Image tokens [N, T, D] on the judge's device, of images [N, H, W, 3] in [0, 1]."""
        side = self.config.image_size
        pixels = (resized(images, (side, side), "bicubic") - torch.tensor(MEAN)) / torch.tensor(STD)
        chunks = pixels.movedim(-1, 1).split(self.batch_size)
        return torch.cat([self.network.see(chunk.to(self.device)) for chunk in chunks])

    @torch.no_grad()
    def score(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Standardized rewards [N, M], 0 on average in its training set; one pass for each image and text."""
        columns = []
        for text in texts:
            tokens = self.tokenizer(
                text, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
            ).to(self.device)
            parts = []
            for chunk in encoded.split(self.batch_size):
                ids, mask = (tokens[key].expand(len(chunk), -1) for key in ("input_ids", "attention_mask"))
                parts.append(self.network.reward(chunk, ids, mask))
            columns.append(torch.cat(parts))
        reward = torch.stack(columns, 1).float().cpu()
        return (reward - self.config.reward_mean) / self.config.reward_std


def load_image_reward(folder: Path, device: torch.device | str = "cpu") -> ImageRewardJudge:
    """The judge in a folder. Raises ValueError if a file is missing, damaged, or does not fit the others."""
    file = folder / CONFIG
    config = _config_of(file, read_json_object(file))
    weights = read_weights(folder, WEIGHTS)
    check_depth(
        file, {key: value for key, value in asdict(config).items() if "layers" in key}, len(weights.tensors)
    )
    network = build_empty(file, lambda: ImageRewardNetwork(config))
    load_weights(network, check_fit(network, weights), torch.float32)
    tokenizer = load_tokenizer(folder, "PreTrainedTokenizerFast")
    check_vocabulary(tokenizer, config.vocabulary, folder)
    return ImageRewardJudge(network, tokenizer, config, device=device)


def _config_of(file: Path, data: Mapping[str, Any]) -> ImageRewardConfig:
    """The config in a file, checked. Raises ValueError."""
    check_name(file, data, "model_type", (KIND,))
    defaults = asdict(ImageRewardConfig())
    kinds = {
        key: "list[int]" if isinstance(value, tuple) else "int | float" if isinstance(value, float) else "int"
        for key, value in defaults.items()
    }
    values = known_values(file, data, kinds, ("model_type", "source"))
    if missing := [field.name for field in fields(ImageRewardConfig) if field.name not in values]:
        raise ValueError(f"{short(file)} lacks '{missing[0]}'")
    for key, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        if key != "reward_mean" and not all(number > 0 for number in numbers):
            raise ValueError(f"{short(file)}: '{key}' must be positive, got {value}")
    if values["image_size"] > 4096:
        raise ValueError(f"{short(file)}: 'image_size' must be at most 4096, got {values['image_size']}")
    if values["text_positions"] < TEXT_TOKENS:
        raise ValueError(f"{short(file)}: 'text_positions' must be at least {TEXT_TOKENS}")
    values["head"] = tuple(values["head"])
    return ImageRewardConfig(**values)
