"""A CLIP tokenizer whose words are the words of the Shapes world, one token each."""

from __future__ import annotations

from collections.abc import Sequence

from amortized.cameras import VIEW_NAMES
from corpora.shapes.grammar import COLORS, MARK, RELATIONS, SHAPES, SIZES

CONTEXT_LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word of the grammar, in a fixed order."""
    text = " ".join(
        ["a an the something", *SIZES, *COLORS, *SHAPES, *RELATIONS, MARK, *VIEW_NAMES, "view object below"]
    )
    return list(dict.fromkeys(text.split()))


def build_tokenizer(whole: Sequence[str] = ()):
    """A `transformers.CLIPTokenizer` with single bytes, one merge path per word, BOS and EOS.

    All 256 bytes are in: a letter that were not would become EOS, and cut the sentence off there.
    CLIP splits digits from letters and from each other before any merge: words with digits are one
    token only if they are in `whole`, which are looked for first.

    Merges are made by simulating BPE: the merges so far are applied to each new word and only what
    is left gets new ones. They come last, so that earlier words stay whole.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, CLIPTokenizer

    characters = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in words():
        pieces = _apply([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _apply(pieces, merges[-1:])
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(m) for m in merges), *whole]
    # EOS has the largest id: both of transformers' pooling rules then pool at EOS.
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    # transformers declares merges as strings, but takes pairs.
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)  # type: ignore
    for word in whole:
        tokenizer.add_tokens(AddedToken(word, single_word=True))
    return tokenizer


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for left, right in merges:
        merged, i = [], 0
        while i < len(pieces):
            if pieces[i : i + 2] == [left, right]:
                merged.append(left + right)
                i += 2
            else:
                merged.append(pieces[i])
                i += 1
        pieces = merged
    return pieces
