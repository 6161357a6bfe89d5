"""AT2520, the animal prompts of ATT3D (arXiv 2306.07349), generated from their grammar."""

from __future__ import annotations

from itertools import product

from corpora.table import Entry, PromptTable, tabulate

SUBJECTS = (
    "a squirrel",
    "a raccoon",
    "a pig",
    "a monkey",
    "a robot",
    "a lion",
    "a rabbit",
    "a tiger",
    "an orangutan",
    "a bear",
)
ACTIVITIES = (
    "riding a motorcycle",
    "sitting on a chair",
    "playing the guitar",
    "holding a shovel",
    "holding a blue balloon",
    "holding a book",
    "wielding a katana",
)
GARMENTS = ("a leather jacket", "a sweater", "a cape", "a medieval armor", "a backpack", "a suit")
HATS = ("a party hat", "a sombrero", "a helmet", "a tophat", "a backpack", "a baseball cap")

# The validation prompts follow another grammar, with words and combinations that training lacks.
UNSEEN_ACTIVITIES = ("riding a bicycle", *ACTIVITIES[1:], "riding a bike")
UNSEEN_LOOKS = (
    "made out of gold",
    "carved out of wood",
    "wearing a leather jacket",
    "wearing a tophat",
    "wearing a party hat",
    "wearing a sombrero",
    "wearing medieval armor",
)


def at2520() -> PromptTable:
    """2,520 training prompts, which the published test list repeats, and 56 for validation."""
    parts = product(SUBJECTS, ACTIVITIES, GARMENTS, HATS)
    sentences = [f"{who} {does} wearing {garment} wearing {hat}" for who, does, garment, hat in parts]
    unseen = [f"a pig {does} {looks}" for does, looks in product(UNSEEN_ACTIVITIES, UNSEEN_LOOKS)]
    lists = {"train": sentences, "val": unseen, "test": sentences}
    return tabulate((Entry(text, split, "at2520") for split in lists for text in lists[split]), "at2520")
