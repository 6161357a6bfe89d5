"""How much of a user's file is read: far above any list of prompts, far below what would exhaust memory."""

from __future__ import annotations

GiB = 2**30

MAX_FILE_BYTES = 8 * GiB  # of a list, unpacked if it is Parquet: 800 bytes for each of ten million prompts
MAX_ROWS = 2**27  # of a list, repeats included
MAX_PROMPTS = 2**25  # distinct prompts of a corpus: their table takes some 8 GB while it is built
MAX_TEXT_BYTES = 2 * GiB  # of all distinct prompts of a corpus together
MAX_ENTRY_BYTES = 2**16  # of a line, a row of CSV, an entry of a JSON list, a cell of Parquet
MAX_GROUP_BYTES = GiB  # of a row group in Parquet, unpacked
MAX_GROUP_ROWS = 2**24
