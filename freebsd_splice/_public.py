"""Public names say where they are to be imported from."""

from __future__ import annotations

from typing import Any


def set_public_module(namespace: dict[str, Any]) -> None:
    """Set ``__module__`` of what a public module exports to that module's name.

    ``help``, tracebacks, pickles and documentation then say ``freebsd_splice.Splice``, whatever
    private file the class lies in, and pickles outlive a move of that file.

    Args:
        namespace: the ``globals()`` of the public module, with its ``__all__``.
    """
    package = __name__.partition(".")[0]
    for name in namespace["__all__"]:
        value = namespace[name]
        if str(getattr(value, "__module__", "")).partition(".")[0] == package:
            value.__module__ = namespace["__name__"]
