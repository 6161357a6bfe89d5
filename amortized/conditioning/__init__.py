"""Text as conditions: encoding, words for views, and the bank that keeps both."""

from amortized.conditioning.bank import SentenceEncoder, TextBank
from amortized.conditioning.rows import concatenate_rows, expand_row, mix_rows, move_rows, take_rows
from amortized.conditioning.text_encoder import TextEncoder
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    azimuth_word,
    elevation_word,
    view_text,
    view_words,
)

__all__ = [
    "SentenceEncoder",
    "TextBank",
    "TextEncoder",
    "ViewText",
    "ViewTextConfig",
    "azimuth_word",
    "concatenate_rows",
    "elevation_word",
    "expand_row",
    "mix_rows",
    "move_rows",
    "take_rows",
    "view_text",
    "view_words",
]
