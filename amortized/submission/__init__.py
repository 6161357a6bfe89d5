"""Runs as jobs of a scheduler, and training requests as data. Imports no PyTorch."""

from amortized.submission.launching import Plan, check_ready, launch, make_plan
from amortized.submission.queue import queue_states
from amortized.submission.record import Submission, load_submission
from amortized.submission.requests import Catalog, TrainingRequest, embedded_catalog, read_request
from amortized.submission.schedulers import SCHEDULERS, log_of

__all__ = [
    "SCHEDULERS",
    "Catalog",
    "Plan",
    "Submission",
    "TrainingRequest",
    "check_ready",
    "embedded_catalog",
    "launch",
    "load_submission",
    "log_of",
    "make_plan",
    "queue_states",
    "read_request",
]
