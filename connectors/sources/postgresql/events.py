"""What PostgreSQL says of the connector's events: their table, their place in the log, and their values (codecs.py).

Changes are ordered within a key by the log position of the record, snapshot before stream; the commit is advice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.order import BY_RECORD, INCREMENTAL, NO_POSITION, Ordering, snapshot_record
from connectors.sources.postgresql import codecs

_INITIAL = pa.array(["first", "first_in_data_collection", "true", "last_in_data_collection", "last"])
_COMMIT = r'^\["(?P<commit>[0-9]{1,18})",'


class PostgresEvents:
    """Events of Debezium's PostgreSQL connector (ports.events.EventModel).

    record: ``source.lsn``; rows of an initial snapshot lie below every change of the stream, and rows of an incremental one, which have
    no lsn, between the two. commit: the first of ``source.sequence``, the end of the transaction before this one; NULL where the
    connector does not know it, and for snapshots, whose rows it does not place among the transactions.
    """

    table = ("schema", "table")
    fields: pa.Schema = pa.schema([("lsn", pa.int64()), ("sequence", pa.string()), ("snapshot", pa.string())])
    needed: tuple[str, ...] = ("lsn", "snapshot")
    others: pa.Schema = pa.schema([("txId", pa.int64()), ("xmin", pa.int64()), ("origin", pa.string()), ("origin_lsn", pa.int64())])
    ordering: Ordering = BY_RECORD
    settings: tuple[str, ...] = ("hstore.handling.mode",)
    whole = "alter the table to REPLICA IDENTITY FULL"
    source_type = staticmethod(codecs.source_type)
    codec = staticmethod(codecs.codec)
    codec_without_schema = staticmethod(codecs.codec_without_schema)

    def positions(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        lsn = source.field("lsn")
        missing = np.array(pc.or_kleene(lsn.is_null(), pc.less(lsn, 0)).fill_null(True).to_numpy(zero_copy_only=False), np.bool_)
        position = np.array(lsn.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        phase = source.field("snapshot")
        initial = np.array(pc.is_in(phase, _INITIAL).to_numpy(zero_copy_only=False), np.bool_)
        incremental = np.array(pc.equal(phase, "incremental").fill_null(False).to_numpy(zero_copy_only=False), np.bool_)
        record = np.where(initial, snapshot_record(position), position)
        record[missing] = NO_POSITION
        record[incremental] = INCREMENTAL
        commit = _commit(source.field("sequence"))
        if incremental.any():
            commit = pc.if_else(pa.array(incremental), pa.scalar(None, pa.int64()), commit)
        return commit, record, np.zeros(len(record), np.int64)


def _commit(sequence: pa.Array) -> pa.Array:
    # Records of one transaction share their text, so that most of the work is done once a transaction.
    encoded = sequence.dictionary_encode()
    found = pc.extract_regex(encoded.dictionary, _COMMIT)
    # struct_field, unlike field, is NULL where the text did not match.
    return pc.struct_field(found, "commit").cast(pa.int64()).take(encoded.indices)
