"""What users import says where it is imported from."""

from __future__ import annotations

import importlib
import pickle
import pydoc

import pytest

import freebsd_splice
from freebsd_splice import Outcome, Reason

PUBLIC = ["freebsd_splice", "freebsd_splice.aio", "freebsd_splice.proxies"]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_have_public_modules(module: str) -> None:
    names = importlib.import_module(module)
    for name in names.__all__:
        of = getattr(getattr(names, name), "__module__", "")
        assert "._" not in of, f"{module}.{name} says it is of {of}"


def test_help_shows_the_public_path() -> None:
    shown = pydoc.plain(pydoc.render_doc(freebsd_splice.Splice))
    assert "class Splice in module freebsd_splice\n" in shown


def test_pickles_name_the_public_path() -> None:
    stored = pickle.dumps(Reason.EOF), pickle.dumps(Outcome)
    assert not any(b"._" in data for data in stored)
    assert pickle.loads(stored[0]) is Reason.EOF
    assert pickle.loads(stored[1]) is Outcome
