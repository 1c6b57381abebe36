"""The file of routes: who goes where by it, and what it may not say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from freebsd_splice.proxies._client_hello import ClientHello
from freebsd_splice.proxies._routes import Routes, RoutesError


def load(path: Path, text: str) -> Routes:
    file = path / "routes.toml"
    file.write_text(text, encoding="utf-8")
    return Routes.load(file)


def targets(routes: Routes, name: str | None, *protocols: str) -> list[str] | None:
    found = routes.find(ClientHello(name, protocols))
    return None if found is None else [str(address) for address in found]


#: Each target's port tells which route it was.
ROUTES = """
default = "[::1]:9"
[[route]]
name = "*.example.org"
target = "wild:1"
[[route]]
name = "*.deep.example.org"
target = "wild:2"
[[route]]
name = "www.example.org"
target = "exact:3"
[[route]]
name = "www.example.org"
alpn = ["h2", "h3"]
target = ["exact:4", "exact:5"]
[[route]]
name = "www.example.org"
alpn = ["acme-tls/1", "h3"]
target = "exact:6"
[[route]]
name = "only.example.org"
alpn = ["h2"]
target = "exact:7"
[[route]]
name = "*.wild.example.org"
alpn = ["h2"]
target = "wild:8"
[[route]]
name = "h2.example.net"
alpn = ["h2"]
target = "exact:10"
"""


@pytest.mark.parametrize(
    ("name", "protocols", "expected"),
    [
        ("www.example.org", [], ["exact:3"]),
        ("www.example.org", ["http/1.1"], ["exact:3"]),
        ("www.example.org", ["http/1.1", "h2"], ["exact:4", "exact:5"]),
        ("www.example.org", ["acme-tls/1"], ["exact:6"]),
        # Several fit: the file's order, not the client's.
        ("www.example.org", ["acme-tls/1", "h2"], ["exact:4", "exact:5"]),
        ("www.example.org", ["h3"], ["exact:4", "exact:5"]),
        # Protocols are the same in the same case alone.
        ("www.example.org", ["H2"], ["exact:3"]),
        ("a.example.org", [], ["wild:1"]),
        ("a.b.example.org", [], ["wild:1"]),
        ("deep.example.org", [], ["wild:1"]),
        ("a.deep.example.org", [], ["wild:2"]),
        ("a.b.deep.example.org", ["h2"], ["wild:2"]),
        ("b.www.example.org", [], ["wild:1"]),
        # A route for other protocols leaves the client to the next name.
        ("only.example.org", ["h2"], ["exact:7"]),
        ("only.example.org", ["http/1.1"], ["wild:1"]),
        ("a.wild.example.org", ["h2"], ["wild:8"]),
        ("a.wild.example.org", [], ["wild:1"]),
        ("h2.example.net", ["h2"], ["exact:10"]),
        ("h2.example.net", [], ["[::1]:9"]),
        # No route's name.
        ("example.org", [], ["[::1]:9"]),
        ("badexample.org", [], ["[::1]:9"]),
        ("www.example.org.evil", [], ["[::1]:9"]),
        ("org", [], ["[::1]:9"]),
        (None, ["h2"], ["[::1]:9"]),
    ],
)
def test_who_goes_where(
    tmp_path: Path, name: str | None, protocols: list[str], expected: list[str]
) -> None:
    assert targets(load(tmp_path, ROUTES), name, *protocols) == expected


@pytest.mark.parametrize("name", ["other", None])
def test_without_a_default_others_go_nowhere(tmp_path: Path, name: str | None) -> None:
    routes = load(tmp_path, '[[route]]\nname = "a.b"\ntarget = "a:1"')
    assert targets(routes, "a.b") == ["a:1"]
    assert targets(routes, name) is None


def test_a_default_may_be_all(tmp_path: Path) -> None:
    routes = load(tmp_path, 'default = ["a:1", "b:2"]')
    assert targets(routes, "any") == targets(routes, None) == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("WWW.Example.ORG", "www.example.org"),
        ("www.example.org.", "www.example.org"),
        ("localhost", "localhost"),
        ("_dns.a-b.example", "_dns.a-b.example"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("例え。テスト。", "xn--r8jz45g.xn--zckzah"),
        ("XN--bcher-kva.example", "xn--bcher-kva.example"),
        ("*.Bücher.example.", "a.xn--bcher-kva.example"),
        ("*.com", "a.b.com"),
    ],
)
def test_ways_to_write_a_name(tmp_path: Path, written: str, asked: str) -> None:
    routes = load(tmp_path, f'[[route]]\nname = "{written}"\ntarget = "a:1"')
    assert targets(routes, asked) == ["a:1"]


def route(name: str = '"a.b"', target: str = '"a:1"', more: str = "") -> str:
    return f"[[route]]\nname = {name}\ntarget = {target}\n{more}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "there is neither a route nor a default"),
        ("route = []", "there is neither a route nor a default"),
        ("default = ", "Invalid value"),
        ('defaults = "a:1"', "unknown key 'defaults'"),
        ("default = 1", "default: a target must be an address or a list of addresses"),
        ("default = []", "default: a target must be"),
        ('default = "a"', "default: 'a' is not an address: write host:port"),
        ('[route]\nname = "a.b"\ntarget = "a:1"', r"routes must be written as \[\[route\]\]"),
        ("route = 1", r"routes must be written as \[\[route\]\]"),
        ("route = [1]", r"routes must be written as \[\[route\]\]"),
        ('[[route]]\ntarget = "a:1"', "route 1: name is missing"),
        ('[[route]]\nname = "a.b"', r"route 1 \('a\.b'\): target is missing"),
        (route() + "[[route]]", "route 2: name is missing"),
        (route(more="weight = 2"), r"route 1 \('a\.b'\): unknown key 'weight'"),
        (route(name="1"), r"route 1 \(1\): name must be a string"),
        (route(name='["a.b"]'), "name must be a string"),
        *(
            (route(name=f'"{name}"'), "not a valid host name")
            for name in (
                *("", ".", "..", "a..b", ".a", "a..", "*", "*.", "a.*", "*.*.a", "a*.b", "**.b"),
                *("a b", "a:443", "::1", "a/b", "a\\n", f"{'a' * 64}.b", f"{'ü' * 64}.b", "ü..b"),
            )
        ),
        (route(target="1"), r"route 1 \('a\.b'\): a target must be"),
        (route(target="[]"), "a target must be"),
        (route(target='["a:1", 2]'), "a target must be"),
        (route(target='"a:0"'), "nothing can be connected to at port 0"),
        (route(target='":1"'), "has no host"),
        (route(target='["a:1", "b"]'), "'b' is not an address"),
        *(
            (route(more=f"alpn = {alpn}"), r"route 1 \('a\.b'\): alpn must be a list of protocols")
            for alpn in ('"h2"', "[]", "[2]", '["h2", ""]', '["ü"]', "true")
        ),
        (route() + route(), r"route 2 \('a\.b'\): another route has the same name and alpn"),
        (route() + route('"A.b."'), r"route 2 \('A\.b\.'\): another route"),
        (
            route(more='alpn = ["h2", "h3"]') + route() + route(more='alpn = ["h3", "h2"]'),
            r"route 3 \('a\.b'\): another route",
        ),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(RoutesError, match=rf"routes\.toml: .*{complaint}") as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path))


def test_all_mistakes_of_a_file_are_known(tmp_path: Path) -> None:
    wrong = [
        'defualt = "a:1"\n',
        route(name='"a..b"', target='["a", "b:1", "c"]', more="alpn = 1"),
        route(),
        '[[route]]\nnmae = "c"\ntarget = "a:1"\n',
    ]
    with pytest.raises(RoutesError) as caught:
        load(tmp_path, "".join(wrong))
    address = "is not an address: write host:port or [v6]:port"
    protocols = 'alpn must be a list of protocols, as in ["h2", "http/1.1"]'
    assert [each.split("routes.toml: ")[1] for each in caught.value.mistakes] == [
        "unknown key 'defualt'; did you mean 'default'?",
        "route 1 ('a..b'): 'a..b' is not a valid host name: encoding with 'idna' codec failed "
        "(UnicodeError: label empty or too long)",
        f"route 1 ('a..b'): {protocols}",
        f"route 1 ('a..b'): 'a' {address}",
        f"route 1 ('a..b'): 'c' {address}",
        "route 3: unknown key 'nmae'; did you mean 'name'?",
        "route 3: name is missing",
    ]
    assert str(caught.value) == caught.value.mistakes[0]


def test_a_file_that_is_too_deep(tmp_path: Path) -> None:
    with pytest.raises(RoutesError, match=r"routes\.toml: "):
        load(tmp_path, "default = " + "[" * 5000)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_bytes(b'default = "\xff:1"')
    with pytest.raises(RoutesError, match=r"routes\.toml: .*can't decode"):
        Routes.load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Routes.load(tmp_path / "routes.toml")


def test_without_a_parser_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    monkeypatch.setitem(sys.modules, parser, None)
    with pytest.raises(RoutesError, match=rf'{parser}: pip install "freebsd-splice\[proxy\]"'):
        load(tmp_path, 'default = "a:1"')
