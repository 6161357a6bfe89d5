"""A CLIP tokenizer with one token for each word of the Shapes world."""

from __future__ import annotations

from collections.abc import Sequence

from amortized.cameras import VIEW_NAMES
from corpora.shapes.grammar import COLORS, MARK, RELATIONS, SHAPES, SIZES

CONTEXT_LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """List every word of the grammar and of the views, in a fixed order."""
    text = " ".join(
        ["a an the something", *SIZES, *COLORS, *SHAPES, *RELATIONS, MARK, *VIEW_NAMES, "view object below"]
    )
    return list(dict.fromkeys(text.split()))


def build_tokenizer(single_tokens: Sequence[str] = ()):
    """Build a `transformers.CLIPTokenizer` with all bytes, one merge path per word, BOS and EOS.

    The vocabulary has all 256 bytes: an unknown one would become EOS and truncate the sentence. CLIP splits
    digits from letters and from each other before any merge, so words with digits are one token only if
    they are in `single_tokens`, which are matched first.

    Merges come from simulating BPE: the merges so far are applied to each new word, and only the remaining
    pieces get new ones. New merges come last, so earlier words stay single tokens.
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
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(m) for m in merges), *single_tokens]
    # EOS has the largest id, so that both pooling rules of transformers pool at EOS.
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    # transformers declares merges as strings, but takes pairs.
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)  # type: ignore
    for word in single_tokens:
        tokenizer.add_tokens(AddedToken(word, single_word=True))
    return tokenizer


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply BPE merges to the pieces of a word, in order."""
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
