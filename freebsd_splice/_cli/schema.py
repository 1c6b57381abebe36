"""The JSON schema of a configuration file, for editors: made of the same keys as its reader."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .configuration import Kinds, process_keys, proxy_keys, shared_keys
from .keys import Key
from .options import count, positive, seconds


def schema(kinds: Kinds) -> str:
    """Return the schema as JSON text."""
    top = {**shared_keys(kinds), **process_keys()}
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "freebsd-splice serve",
        "type": "object",
        "properties": {
            **_properties(top.values()),
            **{
                name: {
                    "description": f"[[{name}]]: {kind.description.split('.')[0]}".replace(
                        "\n", " "
                    ),
                    "type": "array",
                    "items": _table(proxy_keys(kind).values()),
                }
                for name, kind in kinds.items()
                if kind.description
            },
        },
        "anyOf": [{"required": [name]} for name in kinds],
        "additionalProperties": False,
    }
    return json.dumps(document, indent=2)


def _table(keys: Iterable[Key]) -> dict[str, object]:
    keys = list(keys)
    needed = [key for key in keys if key.is_required]
    table: dict[str, Any] = {
        "type": "object",
        "properties": _properties(keys),
        "required": [key.name for key in needed if not key.tables],
        "additionalProperties": False,
    }
    for key in keys:
        table["properties"] |= key.tables
        if key.tables:
            within = [{"required": [name]} for name in key.tables]
            table["oneOf"] = [{"required": [key.name]}, {"anyOf": within}]
    return table


def _properties(keys: Iterable[Key]) -> dict[str, object]:
    return {key.name: _property(key) for key in keys}


def _property(key: Key) -> dict[str, object]:
    item: dict[str, object] = {"type": key.json_type}
    if key.action.type is count:
        item["minimum"] = 1
    elif key.action.type is seconds:
        item["minimum"] = 0
    elif key.action.type is positive:
        item["exclusiveMinimum"] = 0
    if key.action.choices is not None:
        item["enum"] = list(key.action.choices)
    if "" not in key.actions:
        item["pattern"] = f"^({'|'.join(key.actions)}) "
    described = {"description": "; ".join(str(action.help) for action in key.actions.values())}
    if not key.is_list:
        return {**described, **item}
    several: dict[str, object] = {"type": "array", "items": item}
    if key.is_required:
        several["minItems"] = 1
    return {**described, "oneOf": [item, several]}
