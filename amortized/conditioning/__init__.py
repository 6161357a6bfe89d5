"""Text as conditions: encoding, words for views, and the bank that keeps both."""

from amortized.conditioning.bank import TextBank, TextConfig
from amortized.conditioning.rows import concatenate_rows, expand_row, mix_rows, move_rows, take_rows
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.source import SentenceEncoder
from amortized.conditioning.text_encoder import TextEncoder, load_text_encoder
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    azimuth_word,
    elevation_word,
    mixed_text,
    view_words,
)

__all__ = [
    "SentenceEncoder",
    "ShardStore",
    "TextBank",
    "TextConfig",
    "TextEncoder",
    "ViewText",
    "ViewTextConfig",
    "azimuth_word",
    "concatenate_rows",
    "elevation_word",
    "expand_row",
    "load_text_encoder",
    "mix_rows",
    "mixed_text",
    "move_rows",
    "take_rows",
    "view_words",
]
