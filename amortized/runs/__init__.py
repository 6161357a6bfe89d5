"""All runs under a folder: their status, a table and a page, from their folders alone. Imports no PyTorch."""

from amortized.runs.page import write_page
from amortized.runs.status import Run, read_runs, statuses
from amortized.runs.table import table

__all__ = ["Run", "read_runs", "statuses", "table", "write_page"]
