"""The folder of a text encoder: CLIP's text model, alone or in a whole CLIP, or a T5."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import (
    check_depth,
    check_name,
    check_no_adapter,
    check_value,
    known_values,
)
from amortized.model_folders.tokenizers import FILES, check_tokenizer
from amortized.model_folders.weights import Weights, choose_files, read_weights
from amortized.untrusted import read_json_object, short

INDEX = "model_index.json"
TRANSFORMER = "transformer/config.json"  # of a Stable Diffusion 3
MORE = ("_2", "_3")  # the ends of the names of further text encoders and tokenizers
KINDS = {"clip": "CLIP", "clip_text_model": "CLIP", "t5": "T5"}
CLIP = {
    "vocab_size": "int",
    "hidden_size": "int",
    "intermediate_size": "int",
    "projection_dim": "int | None",
    "num_hidden_layers": "int",
    "num_attention_heads": "int",
    "max_position_embeddings": "int",
    "hidden_act": "str",
    "layer_norm_eps": "float",
    "attention_dropout": "float",
    "pad_token_id": "int | None",
    "bos_token_id": "int | None",
    "eos_token_id": "int | None",
}
T5 = {
    "vocab_size": "int",
    "d_model": "int",
    "d_kv": "int",
    "d_ff": "int",
    "num_layers": "int",
    "num_heads": "int",
    "relative_attention_num_buckets": "int",
    "relative_attention_max_distance": "int",
    "dropout_rate": "float",
    "layer_norm_epsilon": "float",
    "feed_forward_proj": "str",
    "pad_token_id": "int | None",
    "eos_token_id": "int | None",
}
REQUIRED = {
    "CLIP": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    "T5": ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
}
ARCHITECTURES = {
    "CLIP": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    "T5": ("T5EncoderModel", "T5Model", "T5ForConditionalGeneration", "T5WithLMHeadModel"),
}
# What other versions of transformers leave in every config: it concerns training, text generation, or heads
# that are not used, and is not passed on.
LEFTOVERS = frozenset(
    """
    add_cross_attention architectures bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id
    dense_act_fn diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label initializer_factor initializer_range is_decoder is_encoder_decoder
    is_gated_act label2id length_penalty logit_scale_init_value max_length min_length model_type
    n_positions no_repeat_ngram_size num_beam_groups num_beams num_decoder_layers num_return_sequences
    output_attentions output_hidden_states output_past output_scores pad_token_id prefix problem_type
    projection_dim pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate scale_decoder_outputs sep_token_id suppress_tokens task_specific_params
    temperature text_config text_config_dict tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
    use_cache vision_config vision_config_dict
    """.split()
)
ALIASES = {"T5": {"encoder.embed_tokens.weight": "shared.weight"}, "CLIP": {}}
# Tensors of the other half of a CLIP or T5, and counters that are computed.
UNUSED = {
    "CLIP": (
        "vision_model.",
        "visual_projection.",
        "text_projection.",
        "logit_scale",
        "embeddings.position_ids",
    ),
    "T5": ("decoder.", "lm_head."),
}


@dataclass(frozen=True)
class TextFolder:
    """A text encoder's checked config and the headers of its weights."""

    kind: str  # CLIP or T5
    config_file: Path
    config: Mapping[str, Any]
    weights: Weights
    tokenizer: Path | None  # its folder; None: CLIP's published vocabulary, padded with `padding`
    padding: str = ""
    projected: bool = (
        False  # whether the model projects its pooled vector, as both CLIPs of Stable Diffusion 3
    )

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.config.get("d_model" if self.kind == "T5" else "hidden_size", 512)

    def rename(self, name: str, expected: Mapping[str, Any]) -> str | None:
        """Return a stored tensor's name in the model, whose own names are in `expected`; None if unused."""
        plain = name.removeprefix("text_model.")
        if self.projected and plain in expected:
            return plain
        if plain.startswith(UNUSED[self.kind]):
            return None
        # Whether a CLIP's names start so depends on the version of transformers.
        return next((each for each in (name, plain, f"text_model.{name}") if each in expected), name)


@dataclass(frozen=True)
class TextFolders:
    """The text encoders of a model: one, the two of SDXL, or the two or three of Stable Diffusion 3."""

    first: TextFolder
    second: TextFolder | None = None
    third: TextFolder | None = None  # the T5 of Stable Diffusion 3
    zero_empty: bool = False  # whether SDXL's text encoders give zeros for the empty text
    joint_width: int | None = None  # of Stable Diffusion 3: the width of its denoiser's tokens

    @property
    def all(self) -> tuple[TextFolder, ...]:
        """Those that there are."""
        return tuple(each for each in (self.first, self.second, self.third) if each is not None)

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.joint_width or sum(each.width for each in self.all)


def read_text_folders(folder: Path, variant: str | None = None) -> TextFolders:
    """Read the text encoders of a folder, see `read_text_folder`. Raises ValueError if one is invalid."""
    second, third = ((folder / f"text_encoder{end}").is_dir() for end in MORE)
    if is_flow_folder(folder):
        first = read_text_folder(folder, variant, projected=True)
        if not second:
            raise ValueError(f"{short(folder)} lacks text_encoder_2, which a Stable Diffusion 3 needs")
        texts = TextFolders(
            first,
            read_text_folder(folder, variant, "_2", projected=True),
            read_text_folder(folder, variant, "_3") if third else None,
            joint_width=_joint_width(folder / TRANSFORMER),
        )
    else:
        first = read_text_folder(folder, variant)
        if not second:
            return TextFolders(first)
        other = read_text_folder(folder, variant, "_2", projected=True)
        texts = TextFolders(first, other, zero_empty=zeroes_empty_texts(folder))
    kinds = [each.kind for each in texts.all]
    if kinds not in (["CLIP"] * 2, ["CLIP", "CLIP", "T5"]):
        raise ValueError(
            f"the text encoders of {short(folder)} are {', '.join(kinds)}: they must be two CLIPs, as those "
            "of SDXL, or two CLIPs and a T5, as those of Stable Diffusion 3"
        )
    return texts


def is_flow_folder(folder: Path) -> bool:
    """Return whether a folder is of a model with a transformer, as Stable Diffusion 3."""
    return os.path.lexists(folder / TRANSFORMER) and not os.path.lexists(folder / "unet")


def _joint_width(file: Path) -> int:
    """Return the width of a transformer's tokens."""
    data = read_json_object(file)
    check_name(file, data, "_class_name", ("SD3Transformer2DModel",))
    width = data.get("joint_attention_dim", 4096)  # diffusers' default
    check_value(file, "joint_attention_dim", width, "int")
    return width


def read_text_folder(
    folder: Path, variant: str | None = None, end: str = "", *, projected: bool = False
) -> TextFolder:
    """Read a folder in diffusers format with text_encoder and tokenizer, or one in that of transformers.

    end        of both names: "_2" for the second text encoder of SDXL
    projected  whether its model projects the pooled vector

    Raises ValueError if it is neither, or invalid.
    """
    check_no_adapter(folder)
    layered = (folder / f"text_encoder{end}").is_dir()
    names = (f"text_encoder{end}", f"tokenizer{end}") if layered else ("", "")
    model, tokenizer = (folder / name for name in names)
    check_no_adapter(model)
    file = model / "config.json"
    data = read_json_object(file)
    if isinstance(kind := data.get("model_type"), str) and kind not in KINDS and kind.isidentifier():
        raise ValueError(f"{short(file)}: its text encoder is a {short(kind)}, not a CLIP or a T5")
    kind = KINDS[check_name(file, data, "model_type", KINDS)]
    architectures = data.get("architectures")
    for name in [] if architectures is None else architectures if isinstance(architectures, list) else [None]:
        check_name(file, {"architectures": name}, "architectures", ARCHITECTURES[kind])
    keys = CLIP if kind == "CLIP" else T5
    config = known_values(file, data, keys, LEFTOVERS)
    if data["model_type"] == "clip":  # a whole CLIP; the second key is of old versions, and has precedence
        config = {}
        for key in ("text_config", "text_config_dict"):
            inner = data.get(key)
            if inner is not None and not isinstance(inner, dict):
                raise ValueError(f"{short(file)}: '{key}' must be an object")
            config |= known_values(file, inner or {}, keys, LEFTOVERS)
    missing = [key for key in REQUIRED[kind] if key not in config]
    # The configs of transformers omit values that equal its defaults only inside "text_config".
    if missing and data["model_type"] != "clip":
        raise ValueError(f"{short(file)} lacks '{missing[0]}'")
    weights = read_weights(model, "model", variant)
    check_depth(file, config, len(weights.tensors))
    check_tokenizer(tokenizer)
    return TextFolder(kind, file, config, weights, tokenizer, projected=projected)


def wanted_files(names: list[str]) -> list[str]:
    """Return which files of a repository to download: config, tokenizer and weights."""
    layered = any(name.startswith("text_encoder/") for name in names)
    prefix = "text_encoder/" if layered else ""
    inside = [
        name.removeprefix(prefix)
        for name in names
        if name.startswith(prefix) and "/" not in name[len(prefix) :]
    ]
    chosen = [
        f"{prefix}{name}"
        for name in ("config.json", *choose_files(inside, "model", None, Path(prefix or ".")))
    ]
    folder = "tokenizer/" if layered else ""
    chosen += [f"{folder}{name}" for name in FILES if f"{folder}{name}" in names]
    return chosen + more_text_files(names)


def more_text_files(names: list[str], variant: str | None = None) -> list[str]:
    """Return which files of a repository belong to the further text encoders of an SDXL or its like."""
    chosen: list[str] = []
    for end in MORE:
        prefix = f"text_encoder{end}/"
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if inside:
            files = ("config.json", *choose_files(inside, "model", variant, Path(prefix)))
            chosen += [f"{prefix}{name}" for name in files]
            others = [f"tokenizer{end}/{name}" for name in FILES]
            chosen += [name for name in others if name in names]
    return chosen + [name for name in (INDEX, TRANSFORMER) if chosen and name in names]


def zeroes_empty_texts(folder: Path) -> bool:
    """Return whether an SDXL's folder says that the empty text is encoded as zeros, as in its training."""
    key = "force_zeros_for_empty_prompt"
    if not os.path.lexists(folder / INDEX):
        return True  # diffusers' default
    value = read_json_object(folder / INDEX).get(key, True)
    if type(value) is not bool:
        raise ValueError(f"{short(folder / INDEX)}: '{key}' must be bool, got {short(repr(value))}")
    return value
