"""Reads a YAML file into plain data with the line of every key, and fills in its variables.

Variables are filled into values after YAML was read, so a value never changes the file's structure. Problems are collected, not raised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdc_service.config import defaults
from cdc_service.config.problems import Problem, dotted, nearest
from cdc_service.config.secret import REFERENCE, Template

Path_ = tuple[str, ...]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}


@dataclass(slots=True)
class Document:
    """A file's data (mappings, lists and scalars), the 1-based line of each path, and what was wrong so far."""

    data: Any = None
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def add(self, path: Path_, message: str, suggestion: str | None = None, line: int | None = None) -> None:
        self.problems.append(Problem(self.line(path) if line is None else line, dotted(path), message, suggestion))


def read(file: Path, text: str, env: Mapping[str, str]) -> Document:
    """The document of one YAML text. ``problems`` is not empty where it cannot be used."""
    document = Document()
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.data = _Reader(document, loader, env).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.add((), f"not YAML: {error.problem or error.context}", line=mark.line + 1 if mark else 1)
    except (yaml.YAMLError, RecursionError):
        document.add((), "not YAML: it holds a character that YAML does not allow, or is nested too deeply")
    finally:
        loader.dispose()
    return document


class _Reader:
    """Walks the nodes of one document."""

    def __init__(self, document: Document, loader: yaml.SafeLoader, env: Mapping[str, str]) -> None:
        self.document = document
        self.loader = loader
        self.env = env
        self.nodes = 0
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.nodes += 1
        if self.nodes > defaults.YAML_NODES_MAX:
            raise yaml.YAMLError("too many nodes")
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(i))) for i, item in enumerate(node.value)]
        if node.tag not in _SCALARS:
            self.document.add(path, f"the tag {node.tag} is not known")
            return None
        if node.tag.endswith((":str", ":timestamp")):
            return self._fill(node.value, path)
        try:
            return self.loader.construct_object(node)
        except ValueError:
            self.document.add(path, "not a value that YAML can read")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        if id(node) not in self.seen:  # an alias comes here again, with what '<<' merges already in it
            self.seen.add(id(node))
            self._refuse_twins(node, path)
            self.loader.flatten_mapping(node)
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.add(path, "a key must be plain text", line=line)
                continue
            key = key_node.value
            self.document.lines[(*path, key)] = line
            made[key] = self.value(value_node, (*path, key))
        return made

    def _refuse_twins(self, node: yaml.MappingNode, path: Path_) -> None:
        """YAML itself would take the last one, in silence."""
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                if key_node.value in first:
                    self.document.add((*path, key_node.value), f"written twice (the first time in line {first[key_node.value]})", line=line)
                first.setdefault(key_node.value, line)

    def _fill(self, text: str, path: Path_) -> str:
        """The text with ``${NAME}`` and ``$$`` replaced; a reference with a colon stays as it is."""
        values: dict[str, str] = {}

        def replace(found: re.Match[str]) -> str:
            name = found[1]
            if name is None:
                return "$"
            if ":" in name:
                self._foreign(name, found[0], path)
                return found[0]
            if not _NAME.fullmatch(name):
                self.document.add(path, f"{found[0]} does not name a variable; write $$ for a dollar sign")
            elif name not in self.env:
                self.document.add(path, f"the environment variable {name} is not set", nearest(name, list(self.env)))
            else:
                values[name] = self.env[name]
            return values.get(name, "")

        filled = REFERENCE.sub(replace, text)
        return Template(filled, text, values) if "$" in text else filled

    def _foreign(self, name: str, reference: str, path: Path_) -> None:
        """A reference with a colon is the worker's to resolve, which only options of Connect are."""
        plain = name.partition(":")[0] if re.match(r"[^:]+:[-=?+]", name) else name.rpartition(":")[2]
        if re.match(r"[^:]+:[-=?+]", name):
            self.document.add(path, f"{reference}: defaults are not supported; set the variable and write ${{{plain}}}")
        elif path[:2] != ("connect", "options"):
            self.document.add(path, f"{reference} is resolved by Kafka Connect alone; the service needs the value too: write ${{{plain}}}")
