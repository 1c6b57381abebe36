"""The keys of a configuration file: each is an option or an argument of a command line.

The keys are made of what argparse knows of a command. A value goes through the option's own type,
choices and action, so that a file can't mean something else than the command line.

- The key of an option is its long name: ``idle-timeout`` for ``--idle-timeout``. That of an
  argument is its name: ``listen``.
- A switch is true or false. That of ``--no-keepalive`` is ``keepalive``.
- An option that can be given several times, and an argument of several values, is a list, or one
  value alone.
- Options that share an order are one list, each item of which begins with the option's name:
  ``rules = ["allow example.org", "deny *"]`` for ``--allow example.org --deny '*'``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..proxies._log import cut
from ..proxies._mistakes import Found, did_you_mean
from .options import FileName, count, positive, seconds

#: The most characters of a wrong value that a message shows.
_MOST_SHOWN = 60

#: What a TOML value of a JSON type is called in a message.
_CALLED = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
}


class Key(NamedTuple):
    """One key.

    Attributes:
        name: how it is written.
        actions: what sets it: by the word that an item begins with where several options share the
            key, else one alone, by "".
    """

    name: str
    actions: dict[str, argparse.Action]

    @property
    def action(self) -> argparse.Action:
        return next(iter(self.actions.values()))

    @property
    def is_argument(self) -> bool:
        """Whether it has no option: then it is for one proxy alone."""
        return not self.action.option_strings

    @property
    def is_required(self) -> bool:
        return self.action.required

    @property
    def is_list(self) -> bool:
        is_repeated = isinstance(self.action, argparse._AppendAction)  # "extend" is one as well
        return is_repeated or self.action.nargs in ("+", "*")

    @property
    def tables(self) -> dict[str, object]:
        """The keys that may stand in place of this one, and their JSON schemas."""
        return dict(self.action.type.tables) if isinstance(self.action.type, FileName) else {}

    @property
    def json_type(self) -> str:
        """The type of a value, or of an item of a list, as JSON schemas name it."""
        if self.action.nargs == 0:
            return "boolean"
        if self.action.type in (count, int):
            return "integer"
        return "number" if self.action.type in (seconds, positive, float) else "string"

    def set_default(self, options: argparse.Namespace) -> None:
        """Set what the command has without the option."""
        default = self.action.default
        is_text = isinstance(default, str)
        setattr(options, self.action.dest, _parse(self.action, default, "") if is_text else default)

    def set(self, options: argparse.Namespace, value: object, folder: str) -> None:
        """Set it, as the command line would.

        Args:
            options: what is set.
            value: that of the file.
            folder: the one that the file is in.

        Raises:
            ValueError: the value can't be that of the option (``Mistakes``: items of it can't be).
        """
        if self.json_type == "boolean":
            _check_type("boolean", value)
            # The switch of --no-keepalive is thrown by false.
            if value is self.action.const:
                _throw(self.action, options, [])
        elif not self.is_list:
            _check_type(self.json_type, value)
            _throw(self.action, options, _parse(self.action, _text(value), folder))
        else:
            self._set_items(options, value if isinstance(value, list) else [value], folder)

    def _set_items(self, options: argparse.Namespace, items: list[Any], folder: str) -> None:
        found = Found()
        parsed = []
        for item in items:
            with found.at():
                _check_type(self.json_type, item)
                action, text = self._choose(_text(item))
                parsed.append((action, _parse(action, text, folder)))
        if not items and self.is_required:
            raise ValueError("the list is empty")
        found.check()
        if self.action.nargs is not None:  # several values at once
            _throw(self.action, options, [value for _, value in parsed])
            return
        for action, value in parsed:
            _throw(action, options, value)

    def _choose(self, item: str) -> tuple[argparse.Action, str]:
        """Return the option that an item is for, and the option's text."""
        if "" in self.actions:
            return self.actions[""], item
        word, _, text = item.strip().partition(" ")
        if word not in self.actions:
            words = " or ".join(self.actions)
            raise ValueError(f"{item!r} must begin with {words}{did_you_mean(word, self.actions)}")
        return self.actions[word], text.strip()


def keys_of(parser: argparse.ArgumentParser) -> dict[str, Key]:
    """Return the keys of a command, by their names."""
    by_destination: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:  # as --help and --check have it
            by_destination.setdefault(action.dest, []).append(action)
    keys = [
        Key(_name(actions[0]), {"": actions[0]})
        if len(actions) == 1
        else Key(_plain(destination), {_name(action): action for action in actions})
        for destination, actions in by_destination.items()
    ]
    return {key.name: key for key in keys}


def _name(action: argparse.Action) -> str:
    for option in action.option_strings:
        if option.startswith("--"):
            name = option[2:]
            return name.removeprefix("no-") if action.const is False else name
    return _plain(action.dest)


def _plain(destination: str) -> str:
    return destination.replace("_", "-")


def _parse(action: argparse.Action, text: str, folder: str) -> Any:
    """Return what the option makes of a text."""
    try:
        value = text if action.type is None else _type_of(action)(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if action.choices is not None and value not in action.choices:
        known = [str(choice) for choice in action.choices]
        raise ValueError(f"{text!r} is none of {', '.join(known)}{did_you_mean(text, known)}")
    return os.path.join(folder, value) if isinstance(action.type, FileName) else value


def _type_of(action: argparse.Action) -> Callable[[str], Any]:
    assert callable(action.type)  # argparse's registry has no other types
    return action.type


def _throw(action: argparse.Action, options: argparse.Namespace, value: Any) -> None:
    """Have the option change the options, as argparse does where it finds the option."""
    action(_PARSER, options, value, next(iter(action.option_strings), None))


#: An action is given the parser that found it; those of proxies have no use for it.
_PARSER = argparse.ArgumentParser(add_help=False)


def _check_type(wanted: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "boolean": isinstance(value, bool),
        "integer": is_number and not isinstance(value, float),
        "number": is_number,
        "string": isinstance(value, str),
    }
    if not fits[wanted]:
        raise ValueError(f"must be {_CALLED[wanted]}, not {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"the string {cut(value, _MOST_SHOWN)!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {_text(value)}"
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else "a date or a time"


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # CPython's limit for numbers of thousands of digits
        raise ValueError("the number has too many digits") from None
