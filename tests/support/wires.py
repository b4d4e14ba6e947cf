"""The wires that tests of the line read: JSON with schemas, which needs nothing, and Avro with the stack's registry."""

from __future__ import annotations

import os

from deploy.local.stack import Stack

WIRE = os.environ.get("CDC_TEST_WIRE", "json")
"""What pipelines of tests read that name no wire themselves: json or avro. For the tests of the hostile load: in Avro, defaults of columns
that may be NULL are refused, which other tests have."""
APICURIO = "io.apicurio.registry.utils.converter.AvroConverter"


def avro(stack: Stack) -> dict[str, str]:
    """The options and the section of a pipeline in Avro. Names are left to the service."""
    told = {}
    for side in ("key.converter", "value.converter"):
        told |= {
            side: APICURIO,
            f"{side}.apicurio.registry.url": stack.converter_url,
            f"{side}.apicurio.registry.auto-register": "true",
            f"{side}.apicurio.registry.as-confluent": "true",
            f"{side}.apicurio.registry.headers.enabled": "false",
            f"{side}.apicurio.registry.use-id": "contentId",
            # It would ask for what it knows again every 30 s, and fail its task where the registry is away then.
            f"{side}.apicurio.registry.check-period-ms": "86400000",
        }
    options = ", ".join(f'{name}: "{value}"' for name, value in told.items())
    return {"options": options, "sections": f'schema_registry: {{url: "{stack.registry_url}"}}'}


FLATTENED = {
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.unwrap.add.fields": "op,source.schema,source.table,source.lsn,source.sequence,source.snapshot,source.ts_us",
    "transforms.unwrap.delete.tombstone.handling.mode": "rewrite-with-tombstone",
    "transforms.unwrap.replace.null.with.default": "false",
}
