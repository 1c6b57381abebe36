"""Every type in a public signature can be imported from a public module."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

PUBLIC = ["freebsd_splice", "freebsd_splice.aio", "freebsd_splice.proxies"]


def public_values() -> dict[str, Any]:
    """What the public modules export, by its path."""
    modules = {name: importlib.import_module(name) for name in PUBLIC}
    return {
        f"{name}.{exported}": getattr(module, exported)
        for name, module in modules.items()
        for exported in module.__all__
    }


VALUES = public_values()


def is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "freebsd_splice"


def hints(value: Any) -> list[Any]:
    """The annotations of a function, or of a class's fields, resolved."""
    if isinstance(value, FunctionType):
        return list(typing.get_type_hints(value).values())
    # ``__module__`` says the public module, which doesn't have the private names.
    names: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        is_of_package = name.partition(".")[0] == "freebsd_splice"
        if is_of_package and getattr(module, value.__qualname__, None) is value:
            names |= vars(module)
    return [
        hint
        for annotation in inspect.get_annotations(value).values()
        for hint in [eval(annotation, names) if isinstance(annotation, str) else annotation]
    ]


def signatures(value: Any) -> Iterator[Any]:
    """A function itself; of a class its fields, and its public methods and properties."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, type) and is_ours(value):
        yield from (kind for kind in value.__mro__ if is_ours(kind))
        for name in dir(value):
            member = inspect.getattr_static(value, name)
            if isinstance(member, property):
                member = member.fget
            member = getattr(member, "__func__", member)  # a class method's
            member = inspect.unwrap(member) if callable(member) else member
            is_public = not name.startswith("_") or name.startswith("__")
            if isinstance(member, FunctionType) and is_public and is_ours(member):
                yield member


def leaves(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    if isinstance(hint, list):
        parts: tuple[Any, ...] = tuple(hint)
    else:
        parts = typing.get_args(hint)
        yield typing.get_origin(hint) or hint
    for part in parts:
        yield from leaves(part)


@pytest.mark.parametrize("path", VALUES)
def test_each_type_in_a_signature_is_public(path: str) -> None:
    value = VALUES[path]
    found = [hint for signature in signatures(value) for hint in hints(signature)]
    if not found and not isinstance(value, type):
        found = [value]  # an alias, or a constant
    private = {
        leaf
        for hint in found
        for leaf in leaves(hint)
        if isinstance(leaf, type) and is_ours(leaf) and leaf not in VALUES.values()
    }
    assert not private


def test_types_are_found_wherever_they_stand() -> None:
    """In methods, fields, parameters of a call, and aliases."""
    for path, type_path in (
        ("freebsd_splice.proxies.Rules", "freebsd_splice.proxies.Resolved"),
        ("freebsd_splice.RelayOutcome", "freebsd_splice.Outcome"),
        ("freebsd_splice.proxies.OpenTarget", "freebsd_splice.proxies.Client"),
        ("freebsd_splice.proxies.parse_rule", "freebsd_splice.proxies.Rule"),
    ):
        value = VALUES[path]
        found = [hint for signature in signatures(value) for hint in hints(signature)] or [value]
        assert VALUES[type_path] in {leaf for hint in found for leaf in leaves(hint)}, path
