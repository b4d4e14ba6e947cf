"""The configuration: ``load`` reads one YAML file into a frozen Config, ``resolve`` meets its tables with those of the source."""

from cdc_service.config.load import find_config, load, parse
from cdc_service.config.models import Config, Flush, Listen
from cdc_service.config.problems import InvalidConfig, Problem
from cdc_service.config.resolve import TableConfig, resolve
from cdc_service.config.schema import json_schema
from cdc_service.config.secret import Options, Secret, Url

__all__ = [
    "Config",
    "Flush",
    "InvalidConfig",
    "Listen",
    "Options",
    "Problem",
    "Secret",
    "TableConfig",
    "Url",
    "find_config",
    "json_schema",
    "load",
    "parse",
    "resolve",
]
