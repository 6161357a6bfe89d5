"""Text conditioning: encode prompts, vary them by view, and cache the embeddings.

A *prompt* is an entry of the corpus. A *text* is any string to encode: a prompt, a prompt with a view suffix
(", front view"), or a negative prompt. The generator is conditioned on prompts; the prior is conditioned on
one view-dependent text for each image.
"""

from amortized.conditioning.bank import TextBank, TextConfig
from amortized.conditioning.perp_neg import interpolated_text, perp_neg_text
from amortized.conditioning.rows import expand_row, mix_rows, take_rows
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.text_encoder import CLIPTextEncoder, load_text_encoder
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    azimuth_word,
    elevation_word,
    view_suffixes,
)

__all__ = [
    "CLIPTextEncoder",
    "ShardStore",
    "TextBank",
    "TextConfig",
    "ViewText",
    "ViewTextConfig",
    "azimuth_word",
    "elevation_word",
    "expand_row",
    "interpolated_text",
    "load_text_encoder",
    "mix_rows",
    "perp_neg_text",
    "take_rows",
    "view_suffixes",
]
