"""The file of ``freebsd-splice serve``: TOML, with a table for each proxy.

::

    workers = 2                        # at the top: what the process has once
    idle-timeout = 300                 # and what all proxies below have that have such an option

    [[forward]]
    listen = ":80"
    target = ["10.0.0.5:8000", "10.0.0.6:8000"]

    [[connect]]
    listen = "127.0.0.1:3128"
    idle-timeout = 60                  # this one's own
    rules = ["allow example.org:443", "deny *"]

``keys`` says which keys there are. Reading a file resolves no name and opens no socket, and finds
all mistakes at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..proxies import Address, UnixAddress
from ..proxies._mistakes import Found, did_you_mean
from ..proxies._routes import toml_parser
from .keys import Key, keys_of
from .options import MistakesError, add_process
from .plan import Plan, Planned, complaint, make_all

#: The parsers of the proxies' commands, by the commands' names.
Kinds = Mapping[str, argparse.ArgumentParser]


def kinds_among(commands: Mapping[str, argparse.ArgumentParser]) -> Kinds:
    """Return the commands that are proxies: those that a plan can be made of."""
    return {name: parser for name, parser in commands.items() if parser.get_default("make")}


def process_keys() -> dict[str, Key]:
    """Return the keys of what a process has once."""
    parser = argparse.ArgumentParser(add_help=False)
    add_process(parser)
    return keys_of(parser)


def proxy_keys(kind: argparse.ArgumentParser) -> dict[str, Key]:
    """Return the keys that a proxy's own table may have."""
    process = process_keys()
    return {name: key for name, key in keys_of(kind).items() if name not in process}


def shared_keys(kinds: Kinds) -> dict[str, Key]:
    """Return the keys that all proxies of a file can have together, at its top: all options."""
    keys = (key for kind in kinds.values() for key in proxy_keys(kind).values())
    return {key.name: key for key in keys if not key.is_argument}


def read(path: str, kinds: Kinds, given: argparse.Namespace) -> Plan:
    """Return what a file says.

    Args:
        path: the file.
        kinds: the proxies that there are.
        given: options of the process that the command line has: they win.

    Raises:
        MistakesError: all that is wrong with the file, and with the files that it names.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise MistakesError([complaint(error)]) from error
    plan, mistakes = parse(data, path, kinds, given)
    if mistakes:
        try:
            make_all(plan)  # the files of the proxies without a mistake can have some as well
        except MistakesError as error:
            mistakes += error.mistakes
        raise MistakesError(mistakes)
    return plan


def parse(
    data: bytes, path: str, kinds: Kinds, given: argparse.Namespace
) -> tuple[Plan, list[str]]:
    """Return the plan in a file's bytes, without the proxies that have mistakes, and all mistakes.

    Args:
        data: the bytes.
        path: the file, for messages and for the names of other files.
        kinds: the proxies that there are.
        given: options of the process that the command line has.
    """
    file = _File(path, kinds)
    found = Found()
    with found.at(path):
        document = _load(data)
        plan = file.read(document, given)
        return plan, file.mistakes
    return Plan(given, []), found.mistakes


def _load(data: bytes) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = toml_parser().loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8") from None
    except RecursionError:
        raise ValueError("too deeply nested") from None
    return loaded


class _File:
    """Makes a plan of a document, and collects its mistakes."""

    def __init__(self, path: str, kinds: Kinds) -> None:
        self._path = path
        self._folder = os.path.dirname(path)
        self._kinds = kinds
        self._process = process_keys()
        self._shared = shared_keys(kinds)
        self._found = Found()

    @property
    def mistakes(self) -> list[str]:
        return self._found.mistakes

    def read(self, document: dict[str, Any], given: argparse.Namespace) -> Plan:
        process = argparse.Namespace()
        for key in self._process.values():
            key.set_default(process)
        shared = self._top(document, process)
        vars(process).update(vars(given))
        proxies = [
            planned
            for kind, parser in self._kinds.items()
            for planned in self._tables(kind, parser, document.get(kind, []), shared, process)
        ]
        if not any(document.get(kind) for kind in self._kinds):
            named = ", ".join(f"[[{kind}]]" for kind in self._kinds)
            self._found.mistakes.append(f"{self._path}: there is no proxy: {named}")
        self._check_addresses(proxies)
        return Plan(process, proxies)

    def _top(self, document: dict[str, Any], process: argparse.Namespace) -> dict[str, Any]:
        """Set what the process has, and return the values that the proxies share."""
        known = {**self._shared, **self._process}
        shared = {}
        for name, value in document.items():
            if name in self._kinds:
                continue
            place = f"{self._path}: {name}"
            if name not in known:
                self._unknown(self._path, name, [*known, *self._kinds])
            elif name in self._process:
                self._set(self._process[name], process, value, place)
            elif self._set(self._shared[name], argparse.Namespace(), value, place):
                shared[name] = value
        return shared

    def _tables(
        self,
        kind: str,
        parser: argparse.ArgumentParser,
        tables: object,
        shared: dict[str, Any],
        process: argparse.Namespace,
    ) -> Iterator[Planned]:
        """Yield the proxies of one kind that have no mistake."""
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._found.mistakes.append(f"{self._path}: {kind}: write it as [[{kind}]]")
            return
        keys = proxy_keys(parser)
        common = {name: value for name, value in shared.items() if name in keys}
        for number, table in enumerate(tables, 1):
            place = f"{self._path}: [[{kind}]] {number}"
            before = len(self.mistakes)
            options = argparse.Namespace(**vars(process))
            self._read_table(keys, {**common, **table}, options, place)
            if len(self.mistakes) == before:
                yield Planned(options, parser.get_default("make"), place)

    def _read_table(
        self, keys: dict[str, Key], table: dict[str, Any], options: argparse.Namespace, place: str
    ) -> None:
        for key in keys.values():
            key.set_default(options)
        in_place_of = {name: key for key in keys.values() for name in key.tables}
        for name, value in table.items():
            if name in keys:
                self._set(keys[name], options, value, f"{place}: {name}")
            elif name not in in_place_of:
                self._unknown(place, name, [*keys, *in_place_of])
        for key in keys.values():
            within = {name: table[name] for name in key.tables if name in table}
            if within and key.name in table:
                either = " and ".join(within)
                self._found.mistakes.append(f"{place}: {key.name}: {either} can't be there as well")
            elif within:
                setattr(options, key.action.dest, within)
            elif key.is_required and key.name not in table:
                others = "".join(f" or {name}" for name in reversed(key.tables))
                self._found.mistakes.append(f"{place}: {key.name}{others} is missing")

    def _set(self, key: Key, options: argparse.Namespace, value: object, place: str) -> bool:
        with self._found.at(place):
            key.set(options, value, self._folder)
            return True
        return False

    def _unknown(self, place: str, name: str, known: Iterable[str]) -> None:
        self._found.mistakes.append(f"{place}: unknown key {name!r}{self._hint(name, known)}")

    def _hint(self, name: str, known: Iterable[str]) -> str:
        """Return what may have been meant by a key: another place, another form, another key."""
        if name in self._process:
            return "; it stands at the top, before the first table"
        for key in self._shared.values():
            if name and name in key.actions:
                return f'; write {key.name} = ["{name} ..."]'
        return did_you_mean(name, known)

    def _check_addresses(self, proxies: list[Planned]) -> None:
        """Find those that listen where another does; port 0 is another one for each."""
        places: dict[Address, str] = {}
        for planned in proxies:
            address: Address = planned.options.listen
            if (address.port or isinstance(address, UnixAddress)) and address in places:
                other = places[address].removeprefix(f"{self._path}: ")
                self._found.mistakes.append(
                    f"{planned.place}: listen: {other} listens on {address} as well"
                )
            places.setdefault(address, planned.place)
