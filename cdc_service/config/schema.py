"""The JSON Schema of the configuration, for editors."""

from __future__ import annotations

from typing import Any

from cdc_service.config.models import Config


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, with a description of every key. Variables are allowed wherever text, a number or a size is."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["type"] = "object"
    schema["title"] = "Configuration of cdc"
    schema["description"] = "One pipeline: a source, Kafka, Connect, a destination and the tables to replicate."
    return schema
