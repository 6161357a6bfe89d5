"""The tokenizers of model folders: CLIP's, T5's, and any that a tokenizer.json describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import check_name, check_no_adapter, known_values, sentences
from amortized.untrusted import MiB, open_regular, read_json_object, short

CONFIG, FAST = "tokenizer_config.json", "tokenizer.json"
SLOW = ("vocab.json", "merges.txt")
LIMIT = 64 * MiB  # of a tokenizer.json; that of a multilingual T5 has 16 MiB
# What a library reads besides: each must be a regular file.
OTHERS = (*SLOW, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "spiece.model")
FILES = (CONFIG, FAST, *OTHERS)
# The class in transformers for each name that a config may give.
CLASSES = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "T5Tokenizer": "T5Tokenizer",
    "T5TokenizerFast": "T5Tokenizer",
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
    "TokenizersBackend": "PreTrainedTokenizerFast",
}
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
KNOWN = {
    "add_prefix_space": "bool | None",
    "do_lower_case": "bool | None",
    "clean_up_tokenization_spaces": "bool | None",
    "split_special_tokens": "bool | None",
    "add_bos_token": "bool | None",
    "add_eos_token": "bool | None",
    "legacy": "bool | None",
    "from_slow": "bool | None",
    "is_local": "bool | None",
    "use_fast": "bool | None",
    "local_files_only": "bool | None",
    "padding_side": "str | None",
    "truncation_side": "str | None",
    "errors": "str | None",
    "backend": "str | None",
    "extra_ids": "int | None",
    "max_length": "int | None",
    "stride": "int | None",
    "pad_to_multiple_of": "int | None",
    "pad_token_type_id": "int | None",
    "padding": "str | bool | None",
    "truncation": "str | bool | None",
    "truncation_strategy": "str | None",
    "model_input_names": "list[str] | None",
    "processor_class": "str | None",
    "tokenizer_class": "str | None",
}
# Names and paths on the machine that wrote the folder; libraries do not follow them.
IGNORED = ("name_or_path", "special_tokens_map_file", "device_map", "sp_model_kwargs")
SPECIALS = (
    *TOKENS,
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
    "added_tokens_decoder",
)
TOKEN_KEYS = ("__type", "content", "id", "lstrip", "normalized", "rstrip", "single_word", "special")


def check_tokenizer(folder: Path) -> Mapping[str, Any]:
    """Return the config of a tokenizer's folder, {} without one; raises ValueError if a file is invalid.

    The folder must have tokenizer.json, or vocab.json and merges.txt.
    """
    check_no_adapter(folder)
    _check_files(folder)
    config: dict[str, Any] = read_json_object(folder / CONFIG) if os.path.lexists(folder / CONFIG) else {}
    _check_config(folder / CONFIG, config)
    if not os.path.lexists(folder / FAST):
        lacking = [name for name in SLOW if not os.path.lexists(folder / name)]
        if lacking:
            raise ValueError(f"{short(folder)} has neither {FAST} nor {' and '.join(lacking)}")
        _check_ids(folder / SLOW[0], read_json_object(folder / SLOW[0], LIMIT))
    else:
        _check_fast(folder / FAST, read_json_object(folder / FAST, LIMIT))
    if os.path.lexists(file := folder / "special_tokens_map.json"):
        data = read_json_object(file)
        known_values(file, {key: value for key, value in data.items() if key not in SPECIALS}, {})
        _check_tokens(file, data)
    if os.path.lexists(file := folder / "added_tokens.json"):
        data = read_json_object(file)
        known_values(file, data, dict.fromkeys(data, "int"))
    return config


def _check_files(folder: Path) -> None:
    for name in OTHERS:
        if os.path.lexists(folder / name):
            with open_regular(folder / name, LIMIT):
                pass
    for name in ("tokenizer.model", "tekken.json", "additional_chat_templates"):
        if os.path.lexists(folder / name) and not os.path.lexists(folder / FAST):
            raise ValueError(f"{short(folder / name)} is in a format that is not read: add a {FAST}")


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    config = {key: value for key, value in config.items() if key not in IGNORED}
    for key in SPECIALS:
        token = config.pop(key, None)
        content = token.get("content") if isinstance(token, dict) else token
        if key in TOKENS and content is not None and not (isinstance(content, str) and content):
            raise ValueError(f"{short(file)}: '{key}' must be a text, got {short(repr(content))}")
        _check_tokens(file, {key: token})
    config.pop("chat_template", None)  # for chats only
    length = config.pop("model_max_length", None)  # 1e30 means none
    if length is not None and (type(length) not in (int, float) or not 3 <= length < float("inf")):
        raise ValueError(
            f"{short(file)}: 'model_max_length' must be a number from 3, got {short(repr(length))}"
        )
    known_values(file, config, KNOWN)
    if hidden := sorted(key for key in config if key.startswith("_") and key != "_commit_hash"):
        raise ValueError(
            f"{short(file)}: unknown key {short(repr(hidden[0]))}, which a library would read: remove it"
        )
    if config.get("tokenizer_class") is not None:
        check_name(file, config, "tokenizer_class", CLASSES)


def _check_tokens(file: Path, value: Any, key: str = "", depth: int = 0) -> None:
    """Raise ValueError unless `value` has only tokens: texts, their ids, and the flags of an added token."""
    if depth > 3 or isinstance(value, str) and len(value) > 1000:
        raise ValueError(f"{short(file)}: '{short(key)}' is not a token")
    if isinstance(value, dict):
        if "content" in value and (unknown := sorted(set(value) - set(TOKEN_KEYS))):
            raise ValueError(
                f"{short(file)}: '{short(key)}' is a token with the unknown key '{short(unknown[0])}'"
            )
        for name, inner in value.items():
            if name in ("auto_map", "trust_remote_code"):
                raise ValueError(f"{short(file)}: the key '{name}' is refused, because it names Python code")
            _check_tokens(file, inner, name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_tokens(file, inner, key, depth + 1)
    elif not isinstance(value, (str, bool, type(None))) and not (type(value) is int and 0 <= value < 2**31):
        raise ValueError(f"{short(file)}: '{short(key)}' is not a token: {short(repr(value))}")


def _check_ids(file: Path, vocabulary: Mapping[str, Any]) -> None:
    ids = list(vocabulary.values())
    wrong = next((token for token, index in vocabulary.items() if type(index) is not int or index < 0), None)
    if wrong is not None or len(set(ids)) < len(ids):
        problem = (
            "two tokens have one id" if wrong is None else f"{short(repr(wrong))} has no integer as its id"
        )
        raise ValueError(f"{short(file)}: the vocabulary is damaged, since {problem}")


def _check_fast(file: Path, data: Mapping[str, Any]) -> None:
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)) or not model["vocab"]:
        raise ValueError(f"{short(file)}: the tokenizer has no vocabulary ('model', 'vocab')")
    if isinstance(model["vocab"], dict):
        _check_ids(file, model["vocab"])
    padding = data.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    fixed = strategy.get("Fixed", 0) if isinstance(strategy, dict) else 0
    if type(fixed) is not int or not 0 <= fixed <= 2**20:
        raise ValueError(f"{short(file)}: 'padding' is to a length of {short(repr(fixed))}")


def load_tokenizer(folder: Path, kind: str) -> Any:
    """Return a folder's tokenizer, of class `kind` (such as CLIPTokenizer) unless its config names one.

    Raises ValueError if a file is invalid, or the vocabulary is empty.
    """
    config = check_tokenizer(folder)
    import transformers

    name = config.get("tokenizer_class") or kind
    if CLASSES[name] == "PreTrainedTokenizerFast" and not os.path.lexists(folder / FAST):
        raise ValueError(f"{short(folder)} has no {FAST}, which a {name} needs")
    with sentences(f"the tokenizer in {short(folder)} cannot be built"):
        tokenizer = getattr(transformers, CLASSES[name]).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        vocabulary = tokenizer.get_vocab()
        specials = set(tokenizer.all_special_ids)
        tokenizer("a", add_special_tokens=False)
    if len(vocabulary) <= len(specials):
        # transformers silently builds such a tokenizer from a folder without a vocabulary.
        raise ValueError(f"the tokenizer in {short(folder)} has no vocabulary")
    return tokenizer


def published_tokenizer(padding: str, length: int) -> Any:
    """Return the tokenizer of OpenAI's CLIP, for texts of `length` tokens filled with `padding`.

    open_clip carries its merges; the vocabulary follows from them.
    """
    import open_clip.tokenizer
    from transformers import CLIPTokenizer

    own = open_clip.tokenizer.SimpleTokenizer()
    begin, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [token for token, _ in sorted(own.encoder.items(), key=lambda item: item[1])][:-2]
    vocab = {token: index for index, token in enumerate([*tokens, begin, end])}
    merges: Any = list(own.bpe_ranks)  # pairs, though annotated as texts in transformers
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=begin,
        eos_token=end,
        unk_token=end,
        pad_token=padding,
        model_max_length=length,
    )


def check_vocabulary(tokenizer: Any, num_embeddings: int, folder: Path) -> None:
    """Raise ValueError if a tokenizer has ids without an embedding."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= num_embeddings:
        raise ValueError(
            f"the tokenizer in {short(folder)} has the id {largest} ({short(repr(token))}), but the text "
            f"encoder has embeddings of only {num_embeddings} tokens: use the tokenizer that belongs to it"
        )
