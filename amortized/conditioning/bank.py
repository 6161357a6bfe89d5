"""Text conditions for a step: one per prompt for the generator, one per image for the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amortized.conditioning.cached_encoder import CachedTextEncoder, TextKey
from amortized.conditioning.fitting import num_overlong, unknown_words
from amortized.conditioning.perp_neg import interpolated_text, perp_neg_text
from amortized.conditioning.rows import move_rows
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.text_encoder import TextEncoder
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    add_shared_texts,
    azimuth_word,
    elevation_word,
    plain_text,
    view_suffixes,
)
from amortized.config import PathText, check
from amortized.types import Cameras, TextCondition
from amortized.urls import check_url
from amortized.wording import command

WORDS_SHOWN = 8  # in a message
Device = torch.device | str | None


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text encoders and shards. Texts that are in no shard are encoded on demand."""

    # Folders or URLs written by `amortized encode`, with the prior's text encoder or the generator's.
    shards: tuple[PathText, ...] = ()
    # The generator's text encoder: a folder or Hub id of a CLIP or T5. null: the prior's text encoder.
    encoder: PathText | None = None
    revision: str | None = None  # branch, tag or commit, if `encoder` is a Hub id
    # LRU cache size per encoder, in texts. If the corpus times its view suffixes exceeds it, most texts are
    # encoded again on every visit. One text takes 0.3 MB with Stable Diffusion 2.1.
    cache_size: int = 8192

    def __post_init__(self) -> None:
        check(self, "cache_size", at_least=1, limit=10**9)
        for url in self.shards:
            check_url(url)


class TextBank:
    """Text conditions for generator and prior, from shards, a cache or the text encoder. Thread-safe."""

    def __init__(
        self,
        encoder: TextEncoder,
        config: ViewTextConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        generator_encoder: TextEncoder | None = None,
        stores: Sequence[ShardStore] = (),
        cache_size: int = 8192,
    ) -> None:
        """Create an empty bank.

        encoder            the prior's text encoder
        device             default device of the results
        generator_encoder  the generator's text encoder; None: the prior's
        stores             shards of either encoder; shards without tokens serve the generator only
        cache_size         number of texts cached per encoder

        Raises ValueError if a store belongs to neither encoder.
        """
        self.config = config or ViewTextConfig()
        self.device = torch.device(device)
        stores_with_tokens = [store for store in stores if not store.manifest.pooled_only]
        self.prior_encoder = CachedTextEncoder(encoder, stores_with_tokens, cache_size=cache_size)
        # One cache serves both, unless shards of pooled vectors make the generator's rows differ.
        if generator_encoder is None and len(stores_with_tokens) == len(stores):
            self.generator_encoder = self.prior_encoder
        else:
            lock = self.prior_encoder.lock if generator_encoder is None else None
            self.generator_encoder = CachedTextEncoder(
                generator_encoder or encoder, stores, cache_size=cache_size, lock=lock
            )
        for store in stores:
            if store not in (*self.prior_encoder.stores, *self.generator_encoder.stores):
                names = f"the prior's {encoder.name}"
                names += "" if generator_encoder is None else f" or the generator's {generator_encoder.name}"
                raise ValueError(
                    f"text.shards: {store.url} was encoded with {store.manifest.encoder_name}, not with "
                    f"{names}; encode the corpus again: "
                    f"{command('encode', store.manifest.corpus, '--encoder', 'FOLDER', '--output', 'FOLDER')}"
                )

    def __len__(self) -> int:
        """Return the number of cached texts."""
        shared = self.generator_encoder is self.prior_encoder
        return len(self.prior_encoder) + (0 if shared else len(self.generator_encoder))

    @property
    def pooled_only(self) -> bool:
        """Whether the generator's conditions have no tokens (L = 0)."""
        return self.generator_encoder.pooled_only

    def missing_from_shards(self, prompts: Sequence[str]) -> str | None:
        """Return a warning with the share of texts that are in no shard; None if there is nothing to report.

        Numbered directions (`direction_step_deg`) are not counted: shards never contain them.
        """
        if not (self.generator_encoder.stores or self.prior_encoder.stores):
            return None
        plain = [(prompt, "") for prompt in prompts]
        missing = {"prompts": 1 - self.generator_encoder.fraction_in_shards(plain)}
        if not self.config.direction_step_deg:
            by_view = [(prompt, suffix) for prompt in prompts for suffix in self.config.suffixes]
            missing["view texts"] = 1 - self.prior_encoder.fraction_in_shards(by_view)
        shares = [f"{share:.0%} of the {name}" for name, share in missing.items() if share > 0]
        if not shares:
            return None
        return (
            f"text.shards lack {' and '.join(shares)}: these are encoded on demand, one at a time; "
            "encode the corpus with --views, or pass this run's views.suffixes as --suffixes"
        )

    def check_suffixes(self) -> None:
        """Raise ValueError if a view's words alone exceed the tokens of the prior's text encoder."""
        encoder = self.prior_encoder.encoder
        for suffix in self._longest_suffixes():
            if encoder.is_overlong(f"a{suffix}"):
                raise ValueError(
                    f"views.suffixes: {suffix[:80]!r} leaves no room for a prompt in the "
                    f"{encoder.max_length} tokens of the prior's text encoder; shorten it"
                )

    def notes_on(
        self, prompts: Sequence[str], *, sampled: bool = False, generator_only: bool = False
    ) -> list[str]:
        """Return messages for the start of a run: how many prompts are cut, and unknown words in them.

        sampled         the prompts are a sample, which the messages then mention
        generator_only  no prior is used, and no words for views
        """
        encoders = {"prior": self.prior_encoder.encoder, "generator": self.generator_encoder.encoder}
        if generator_only or encoders["generator"] is encoders["prior"]:
            del encoders["prior" if generator_only else "generator"]
        number = f"{len(prompts):,} {'sampled ' * sampled}prompt{'s' * (len(prompts) != 1)}"
        notes = []
        for name, encoder in encoders.items():
            suffixes = self._longest_suffixes() if name == "prior" else [""]
            if cut := num_overlong(encoder, prompts, suffixes):
                with_views = " with the words for a view" if suffixes != [""] else ""
                notes.append(
                    f"{cut:,} of {number} {'is' if cut == 1 else 'are'} longer{with_views} than the "
                    f"{encoder.max_length} tokens of the {name}'s text encoder, and will be cut"
                )
            if words := unknown_words(encoder, prompts):
                shown = ", ".join(list(words)[:WORDS_SHOWN]) + ", ..." * (len(words) > WORDS_SHOWN)
                notes.append(
                    f"the {name}'s text encoder does not know {len(words):,} "
                    f"word{'s' * (len(words) != 1)} of {number}: {shown}"
                )
        return notes

    def _longest_suffixes(self) -> list[str]:
        """The suffixes of all views; with numbered directions, each with the longest numbers."""
        if not self.config.direction_step_deg:
            return list(dict.fromkeys(self.config.suffixes))
        return [f"{suffix} {azimuth_word(350)} {elevation_word(-80)}" for suffix in self.config.suffixes]

    def for_step(
        self, prompts: Sequence[str], cameras: Cameras, device: Device = None
    ) -> tuple[TextCondition, ViewText]:
        """Return (generator_text, prior_text) of P prompts, encoding all missing texts together."""
        constants = [self.config.negative_prompt, "", *self.config.negatives]
        prior_keys = [(text, "") for text in constants] + self._view_keys(prompts, cameras)
        generator_keys = [(prompt, "") for prompt in prompts]
        shared = self.generator_encoder is self.prior_encoder
        self.prior_encoder.ensure_cached(prior_keys + generator_keys if shared else prior_keys)
        self.generator_encoder.ensure_cached(generator_keys)
        return self.generator_text(prompts, device), self.prior_text(prompts, cameras, device)

    def generator_text(self, prompts: Sequence[str], device: Device = None) -> TextCondition:
        """Return the generator's condition: the prompts without view suffixes, P rows."""
        rows = self.generator_encoder.encode([(prompt, "") for prompt in prompts])
        return move_rows(rows, device or self.device)

    def encode_for_prior(self, texts: Sequence[str], device: Device = None) -> TextCondition:
        """Encode N texts unchanged with the prior's encoder: N rows."""
        return move_rows(self.prior_encoder.encode([(text, "") for text in texts]), device or self.device)

    def prior_text(self, prompts: Sequence[str], cameras: Cameras, device: Device = None) -> ViewText:
        """Return the prior's conditions: P prompts from V cameras each, B = P * V rows, prompt-major."""
        config, device = self.config, device or self.device
        unconditional = self.encode_for_prior([config.negative_prompt], device)
        if config.direction_step_deg:
            # The same prompt and numbered direction rarely recur: caching them would only evict useful texts.
            keys = _image_keys(prompts, cameras, config)
            text = plain_text(move_rows(self.prior_encoder.encode_uncached(keys), device), unconditional)
        else:
            rows = move_rows(self.prior_encoder.encode(self._view_keys(prompts, cameras)), device)
            if config.interpolates:
                between = perp_neg_text if config.perp_neg else interpolated_text
                text = between(rows, unconditional, cameras, config)
            else:
                text = plain_text(rows, unconditional)
        empty = self.encode_for_prior([""], device)
        negatives = self.encode_for_prior(config.negatives or [""], device)
        return add_shared_texts(text, empty=empty, negatives=negatives, weights=config.negative_weights)

    def _view_keys(self, prompts: Sequence[str], cameras: Cameras) -> list[TextKey]:
        """Return the view texts to cache: P * 4 to interpolate, none for numbered directions, else P * V."""
        if self.config.direction_step_deg:
            return []
        if self.config.interpolates:
            return [(prompt, suffix) for prompt in prompts for suffix in self.config.suffixes]
        return _image_keys(prompts, cameras, self.config)


def _image_keys(prompts: Sequence[str], cameras: Cameras, config: ViewTextConfig) -> list[TextKey]:
    """Return the (prompt, suffix) of each of the P * V images, prompt-major."""
    num_views = cameras.azimuth_deg.shape[1]
    return [(prompts[i // num_views], suffix) for i, suffix in enumerate(view_suffixes(cameras, config))]
