"""A judge that the user wrote, by the name of its class.

Importing it runs its code, so the name must come from the user: a command line, never a file of a run.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from amortized.evaluation.judges.judge import Judge
from amortized.model_folders import first_line
from amortized.untrusted import short


def load_own(name: str, device: torch.device) -> Judge:
    """The judge `module:Class`, built as `Class(device)`.

    Raises ValueError if the module or class is missing, or if the class is not a judge.
    """
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"{short(name)} does not name a judge: write module:Class")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"the judge {short(name)} cannot be imported ({first_line(error)}): install its package, or set "
            "PYTHONPATH to the folder that has its module"
        ) from error
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type):
        raise ValueError(f"the judge {short(name)} cannot be imported: {module_name} has no such class")
    judge: Any = kind(device)
    texts = [key for key in ("name", "digest") if not isinstance(getattr(judge, key, None), str)]
    methods = [key for key in ("encode", "score") if not callable(getattr(judge, key, None))]
    if texts or methods:
        what = f"the text '{texts[0]}'" if texts else f"the method '{methods[0]}'"
        raise ValueError(f"{short(name)} is not a judge: it lacks {what}; see docs/evaluation.md")
    return judge
