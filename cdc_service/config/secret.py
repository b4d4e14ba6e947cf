"""Values that must not be seen: a secret never prints, is never serialised, and says which variable it came from.

``Secret`` wraps one value; ``Url`` keeps its password in one; ``Options`` wraps the values that look like secrets. The text itself
leaves through ``reveal()`` alone, so that a search for that word finds every place where it can.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

MASK = "***"
SECRET_NAME = re.compile(r"passw|secret|token|credential|jaas|private|passphrase|api.?key|access.?key|user\.info", re.IGNORECASE)
REFERENCE = re.compile(r"\$(?:\$|\{([^{}]*)\})")
"""``$$`` or ``${...}``; group 1 is what stands between the braces."""


class Template(str):
    """A configuration value with its variables filled in, which remembers how it was written.

    ``raw`` is the text of the file, ``values`` the variables it names. ``str`` itself is the filled-in text.
    """

    __slots__ = ("raw", "values")
    raw: str
    values: Mapping[str, str]

    def __new__(cls, text: str, raw: str, values: Mapping[str, str]) -> Self:
        made = super().__new__(cls, text)
        made.raw = raw
        made.values = values
        return made

    @property
    def variable(self) -> str | None:
        """NAME, where the value is ``${NAME}`` and nothing else."""
        found = REFERENCE.fullmatch(self.raw)
        return found[1] if found and found[1] in self.values else None


class Secret:
    """A value that never prints. ``variable`` is the environment variable that it came from whole, where it did."""

    __slots__ = ("_value", "variable")

    def __init__(self, value: str, variable: str | None = None) -> None:
        self._value = value
        self.variable = variable

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


@dataclass(frozen=True, slots=True)
class Url:
    """A database or HTTP address, in SQLAlchemy's form. ``str`` and JSON show it with its password masked; ``reveal()`` is the whole.

    ``database`` is everything behind the slash that follows the host, not decoded (a path for a file, a name for a server).
    """

    scheme: str
    username: str | None = None
    password: Secret | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    query: tuple[tuple[str, str | Secret], ...] = ()

    _FORM = re.compile(
        r"(?P<scheme>[A-Za-z][\w+.-]*)://"
        r"(?:(?P<username>[^:/@?]*)(?::(?P<password>[^@]*))?@)?"
        r"(?:\[(?P<ipv6>[^\]/?]+)\]|(?P<host>[^/:?\[\]]*))"
        r"(?::(?P<port>[^/?]*))?"
        r"(?:/(?P<database>[^?]*))?"
        r"(?:\?(?P<query>.*))?",
        re.DOTALL,
    )

    @classmethod
    def parse(cls, text: str) -> Url:
        """Reads a URL; ValueError without any part of it in the message.

        A variable inside a part (the password, most often) is taken as it is: it needs no percent-encoding, whatever it holds.
        """
        template = text if isinstance(text, Template) else Template(str(text), str(text).replace("$", "$$"), {})
        if REFERENCE.match(template.raw) and not template.raw.startswith("$$"):
            template = Template(str(template), str(template).replace("$", "$$"), {})  # the whole address came from a variable
        names = list(template.values)
        marks = {name: f"\ue000{i}\ue001" for i, name in enumerate(names)}  # private use: survives splitting and decoding
        marked = REFERENCE.sub(lambda m: "$" if m[1] is None else marks.get(m[1], m[0]), template.raw)

        def fill(part: str) -> str:
            return re.sub("\ue000(\\d+)\ue001", lambda m: template.values[names[int(m[1])]], part)

        found = cls._FORM.fullmatch(marked)
        if found is None:
            raise ValueError("not a URL such as postgresql://user:${PASSWORD}@host:5432/database")
        if "@" in (found["host"] or ""):
            raise ValueError("an '@' in the user or password must be written %40, or the password come from a variable: ${NAME}")
        whole = re.fullmatch("\ue000(\\d+)\ue001", found["password"] or "")
        password = None if found["password"] is None else Secret(fill(unquote(found["password"])), names[int(whole[1])] if whole else None)
        port = fill(found["port"] or "")
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("the port is not a number from 1 to 65535")
        query = ((k, fill(v)) for k, v in parse_qsl(found["query"] or "", keep_blank_values=True))
        return cls(
            scheme=found["scheme"],
            username=None if found["username"] is None else fill(unquote(found["username"])),
            password=password,
            host=fill(found["ipv6"] or found["host"] or "") or None,
            port=int(port) if port else None,
            database=None if found["database"] is None else fill(found["database"]),
            query=tuple((k, Secret(v) if SECRET_NAME.search(k) else v) for k, v in query),
        )

    def reveal(self) -> str:
        """The whole address, password included, as SQLAlchemy and HTTP clients read it."""
        return self._render(None if self.password is None else quote(self.password.reveal(), safe=""), reveal=True)

    def with_database(self, database: str) -> Url:
        return replace(self, database=database)

    def without_login(self) -> str:
        """The address alone, as text for somebody else."""
        return replace(self, username=None, password=None).reveal()

    def _render(self, password: str | None, *, reveal: bool) -> str:
        user = "" if self.username is None else quote(self.username, safe="")
        user += "" if password is None else f":{password}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or ""
        query = urlencode([(k, (v.reveal() if reveal else str(v)) if isinstance(v, Secret) else v) for k, v in self.query], safe="*/")
        return "".join(
            (
                f"{self.scheme}://{user}",
                "@" if user else "",
                host,
                f":{self.port}" if self.port else "",
                "" if self.database is None else f"/{self.database}",
                f"?{query}" if query else "",
            )
        )

    def __str__(self) -> str:
        return self._render(None if self.password is None else MASK, reveal=False)

    def __repr__(self) -> str:
        return f"Url({self})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> Url:
            if isinstance(value, Url):
                return value
            if not isinstance(value, str):
                raise ValueError("not a URL: write it as text")
            return cls.parse(value)

        return core_schema.no_info_plain_validator_function(check, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": r"(://|^\$\{)"}


class Options(Mapping[str, str | Secret]):
    """Options passed on under their own names. Values are text; one that came from a variable, or whose name says so, is a Secret."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, object] | None = None) -> None:
        self._items = {name: _option(name, value) for name, value in (items or {}).items()}

    def reveal(self) -> dict[str, str]:
        return {name: value.reveal() if isinstance(value, Secret) else value for name, value in self._items.items()}

    def __getitem__(self, name: str) -> str | Secret:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Options({self._items!r})"

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._items)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> Options:
            if isinstance(value, Options):
                return value
            if value is not None and not isinstance(value, Mapping):
                raise ValueError("not a mapping of option names to values")
            return cls(value)

        serialize = core_schema.plain_serializer_function_ser_schema(lambda options: {k: str(v) for k, v in options.items()})
        return core_schema.no_info_plain_validator_function(check, serialization=serialize)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean"]}, "default": {}}


def _option(name: str, value: object) -> str | Secret:
    if isinstance(value, Secret):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Template):
        return Secret(str(value), value.variable) if value.values else str(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"option {name} is not a text, a number or a boolean")
    text = str(value)
    passes_through = text.startswith("${") and text.endswith("}")  # a reference that Connect resolves is no secret itself
    return Secret(text) if SECRET_NAME.search(name) and not passes_through else text
