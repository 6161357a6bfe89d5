"""What all HTML pages share: escaping, a frame with a security policy, a style sheet, training curves.

A page is one file that opens from disk and requests nothing outside its folder.
"""

from amortized.pages.curves import Line, charts, curves, key
from amortized.pages.history import PREVIEW_SCORES, History, finite, load_history, read_history
from amortized.pages.markup import block, link, number, pairs, text
from amortized.pages.pictures import Picture, find_picture, image
from amortized.pages.skeleton import asset, digest, document, is_page_of, navigation, section
from amortized.pages.viewing import (
    MAX_FROM_DISK,
    SUFFIXES,
    VIEWER_FILES,
    find_media,
    frame_address,
    objects_button,
    remove_scripts,
    script_of,
    video_button,
    write_script,
    write_viewer,
)

__all__ = [
    "MAX_FROM_DISK",
    "PREVIEW_SCORES",
    "SUFFIXES",
    "VIEWER_FILES",
    "History",
    "Line",
    "Picture",
    "asset",
    "block",
    "charts",
    "curves",
    "digest",
    "document",
    "find_media",
    "find_picture",
    "finite",
    "frame_address",
    "image",
    "is_page_of",
    "key",
    "link",
    "load_history",
    "navigation",
    "number",
    "objects_button",
    "pairs",
    "read_history",
    "remove_scripts",
    "script_of",
    "section",
    "text",
    "video_button",
    "write_script",
    "write_viewer",
]
