"""Model folders that others made: read and checked before a library sees them.

A prior in diffusers format or in a single file, a CLIP or T5 text encoder, a CLIP in open_clip's format, and
what a run adds to a prior: LoRAs and tokens. Each reader returns plain values and the headers of the weights.
Nothing here runs code of a folder, follows the name of another model, reads a pickle or uses a network,
except `local_folder` if allowed. All failures are one ValueError that names the file, the key or tensor, and
the rule.
"""

from amortized.model_folders.additions import NO_ADDITIONS, Additions, check_scales, read_additions
from amortized.model_folders.clip_folder import ClipFolder, read_clip_folder
from amortized.model_folders.configs import first_line, sentences
from amortized.model_folders.hub import local_folder
from amortized.model_folders.prior_folder import PARTS, FlowFolder, PriorFolder, read_prior_folder
from amortized.model_folders.single_file import is_single_file, read_single_file, read_single_text
from amortized.model_folders.text_folder import TextFolder, TextFolders, read_text_folder, read_text_folders
from amortized.model_folders.tokenizers import load_tokenizer
from amortized.model_folders.weights import Weights, build_empty, check_fit, load_weights

__all__ = [
    "NO_ADDITIONS",
    "PARTS",
    "Additions",
    "ClipFolder",
    "FlowFolder",
    "PriorFolder",
    "TextFolder",
    "TextFolders",
    "Weights",
    "build_empty",
    "check_fit",
    "check_scales",
    "first_line",
    "is_single_file",
    "load_tokenizer",
    "load_weights",
    "local_folder",
    "read_additions",
    "read_clip_folder",
    "read_prior_folder",
    "read_single_file",
    "read_single_text",
    "read_text_folder",
    "read_text_folders",
    "sentences",
]
