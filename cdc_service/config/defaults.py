"""Every default of the configuration, in one place. Sizes are bytes, times are seconds."""

from __future__ import annotations

from typing import Final

CONFIG_FILE = "cdc.yaml"
CONFIG_VARIABLE = "CDC_CONFIG"

MODE = "upsert"
TARGET = "{schema}.{table}"
KEYLESS: Final = "refuse"
METADATA: Final = "full"
SNAPSHOT: Final = "connector"

FLUSH_ROWS = 100_000
FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 1.0

LIMIT_MEMORY = 400 * 2**20
LIMIT_QUARANTINE_ROWS = 10_000
LIMIT_QUARANTINE_SHARE = 0.01
LIMIT_SNAPSHOT_SECONDS = 300.0

META_SCHEMA = "_cdc"
CONNECT_SECRETS: Final = "env"
API_LISTEN = "127.0.0.1:0"
STATE_DIR = ".cdc"

LOAD_BY: Final = "cursor"
LOAD_DELETES: Final = "never"
LOAD_NULL_CURSOR: Final = "refuse"

FILE_SCHEMES = frozenset({"duckdb", "sqlite"})
"""URL schemes whose database is a file, so that a relative one means: beside the configuration file."""

YAML_BYTES_MAX = 4 * 2**20
YAML_NODES_MAX = 100_000
"""A configuration larger than this is a mistake (or a chain of aliases that multiply)."""
