"""One comparison by reladiff, in its own environment: prints its seconds and the keys that differ as JSON.

Run: python reladiff_once.py SOURCE_URL DUCKDB_FILE THREADS KEY COLUMN...
"""

from __future__ import annotations

import json
import sys
import time

import reladiff

url, file, threads, key, *columns = sys.argv[1:]
began = time.monotonic()
here = reladiff.connect_to_table(url, "orders", key, thread_count=int(threads))
there = reladiff.connect_to_table(f"duckdb://{file}", ("public", "orders"), key, thread_count=int(threads))
# Sorting the result fails where a value is None.
found = reladiff.diff_tables(
    here, there, extra_columns=tuple(columns), threaded=True, max_threadpool_size=int(threads), skip_sort_results=True
)
keys = sorted({int(row[0]) for _, row in found})
print(json.dumps({"seconds": time.monotonic() - began, "keys": keys}))
