"""The file of ``serve``: what its keys are, what they mean, and what is said of wrong ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice import _cli
from freebsd_splice._cli.configuration import kinds_among, parse, process_keys, proxy_keys
from freebsd_splice._cli.keys import Key, keys_of
from freebsd_splice._cli.options import UsageError
from freebsd_splice._cli.plan import Plan
from freebsd_splice._cli.schema import schema

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands."""
    (found,) = (
        action
        for action in _cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(found.choices)


KINDS = kinds_among(commands())

#: What their arguments are, on the command line and in a file.
ARGUMENTS = {
    "forward": (["127.0.0.1:1", "a:1"], 'listen = "127.0.0.1:1"\ntarget = "a:1"\n'),
    "connect": (["127.0.0.1:1"], 'listen = "127.0.0.1:1"\n'),
    "socks5": (["127.0.0.1:1"], 'listen = "127.0.0.1:1"\n'),
    "sni": (["r.toml", "127.0.0.1:1"], 'routes = "r.toml"\nlisten = "127.0.0.1:1"\n'),
}

#: Values for options, of which each takes one.
SAMPLES = ["7", "10.0.0.0/8", "example.org:443", "root", "127.0.0.1:9", "660"]


def read(text: str) -> tuple[Plan, list[str]]:
    return parse(text.encode(), "p.toml", KINDS, argparse.Namespace())


def mistakes(text: str) -> list[str]:
    return [mistake.removeprefix("p.toml: ") for mistake in read(text)[1]]


def options_of(plan: Plan, number: int = 0) -> dict[str, Any]:
    return vars(plan.proxies[number].options)


# The keys


def test_the_proxies_are_the_commands_that_serve() -> None:
    assert (
        set(KINDS)
        == set(ARGUMENTS)
        == set(commands()) - {*("serve", "password", "selftest", "info")}
    )


def actions() -> Iterator[tuple[str, argparse.Action]]:
    for kind, parser in KINDS.items():
        for action in parser._actions:
            if action.default is not argparse.SUPPRESS:  # as --help and --check have it
                yield kind, action


def sample_for(action: argparse.Action) -> str:
    if action.choices is not None:
        return str(next(iter(action.choices)))
    for sample in SAMPLES:
        try:
            action.type(sample) if callable(action.type) else None
        except (argparse.ArgumentTypeError, ValueError, UsageError):
            continue
        return sample
    raise AssertionError(f"{action.option_strings} takes none of {SAMPLES}: add one")


def toml_for(key: Key, action: argparse.Action, sample: str) -> str:
    """As docs/serve.md says."""
    option = action.option_strings[0].removeprefix("--")
    if action.nargs == 0:
        name = option.removeprefix("no-")
        return f"{name} = {str(name == option).lower()}\n"
    if len(key.actions) > 1:
        return f'{key.name} = ["{option} {sample}"]\n'
    is_number = key.json_type in ("integer", "number")
    return f"{option} = {sample}\n" if is_number else f'{option} = "{sample}"\n'


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        pytest.param(kind, action, id=f"{kind} {'/'.join(action.option_strings) or action.dest}")
        for kind, action in actions()
    ],
)
def test_each_option_has_a_key_that_means_the_same(kind: str, action: argparse.Action) -> None:
    (key,) = (key for key in keys_of(KINDS[kind]).values() if action in key.actions.values())
    if sys.platform == "win32" and action.dest == "user":
        pytest.skip("Windows has no such users")
    words, table = ARGUMENTS[kind]
    top = ""
    if action.option_strings:
        sample = sample_for(action)
        given = [action.option_strings[0], *([] if action.nargs == 0 else [sample])]
        line = toml_for(key, action, sample)
        words = [*given, *words]
        if key.name in process_keys():
            top = line
        else:
            table += line
    plan, wrong = read(f"{top}[[{kind}]]\n{table}")
    assert wrong == []
    said = vars(_cli._parser().parse_args([kind, *words]))
    for name in ("command", "run", "make"):
        del said[name]
    assert options_of(plan) == said
    if action.option_strings:  # what says nothing is what the command line is without it
        plain = vars(_cli._parser().parse_args([kind, *ARGUMENTS[kind][0]]))
        assert (
            options_of(read(f"[[{kind}]]\n{ARGUMENTS[kind][1]}")[0])[action.dest]
            == (plain[action.dest])
        )
        assert said[action.dest] != plain[action.dest] or action.choices


def test_a_switch_can_be_said_to_be_as_it_is() -> None:
    plan, wrong = read(
        "[[forward]]\nlisten = '1'\ntarget = 'a:1'\nkeepalive = true\ntransparent = false\n"
    )
    assert wrong == []
    assert options_of(plan)["keepalive"] is True
    assert options_of(plan)["transparent"] is False


def test_rules_keep_their_order() -> None:
    plan, _ = read('[[socks5]]\nrules = ["deny a.example", " allow  *:80", "deny *"]')
    rules = [(rule.allow, rule.text) for rule in options_of(plan)["rules"]]
    assert rules == [(False, "a.example"), (True, "*:80"), (False, "*")]


def test_lists_and_single_values() -> None:
    plan, wrong = read(
        'accept-proxy = ["10.0.0.2,10.0.0.3", "::1"]\n'
        '[[forward]]\nlisten = "1"\ntarget = ["a:1", "b:2"]\n'
        '[[forward]]\nlisten = "2"\ntarget = "a:1"\naccept-proxy = "10.0.0.4"\n'
        '[[forward]]\nlisten = "3"\ntarget = "a:1"\naccept-proxy = []\n'
    )
    assert wrong == []
    assert options_of(plan)["target"] == [("a", 1), ("b", 2)]
    networks = [[str(each) for each in options_of(plan, n)["accept_proxy"]] for n in range(3)]
    assert networks == [["10.0.0.2/32", "10.0.0.3/32", "::1/128"], ["10.0.0.4/32"], []]


def test_the_top_is_for_all_and_a_table_for_its_own() -> None:
    plan, wrong = read(
        "idle-timeout = 5\nretry-after = 6\nworkers = 2\n"
        "[[forward]]\nlisten = '1'\ntarget = 'a:1'\nidle-timeout = 7\n"
        "[[socks5]]\n[[sni]]\nroutes = 'r.toml'\n"
    )
    assert wrong == []
    found = [options_of(plan, number) for number in range(3)]
    assert [each["idle_timeout"] for each in found] == [7.0, 5.0, 5.0]
    assert [each.get("retry_after") for each in found] == [6.0, None, 6.0]
    assert [each["workers"] for each in found] == [2, 2, 2]
    assert plan.options.workers == 2


def test_files_are_in_the_files_folder() -> None:
    text = '[[sni]]\nroutes = "r.toml"\n[[socks5]]\npasswords = "/etc/p"\n'
    plan, _ = parse(text.encode(), "/some/p.toml", KINDS, argparse.Namespace())
    by_kind = {each.place: each.options for each in plan.proxies}
    assert by_kind["/some/p.toml: [[sni]] 1"].routes == "/some/r.toml"
    assert by_kind["/some/p.toml: [[socks5]] 1"].passwords == "/etc/p"


# What is wrong

FORWARD = '[[forward]]\nlisten = "1"\ntarget = "a:1"\n'


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "there is no proxy: [[forward]], [[connect]], [[socks5]], [[sni]]"),
        ("workers = 2", "there is no proxy: [[forward]], [[connect]], [[socks5]], [[sni]]"),
        ("forward = []", "there is no proxy: [[forward]], [[connect]], [[socks5]], [[sni]]"),
        ("[forward]", "forward: write it as [[forward]]"),
        ("forward = [1]", "forward: write it as [[forward]]"),
        ("[[Forward]]", "unknown key 'Forward'; did you mean 'forward'?"),
        ("idle_timeout = 3\n", "unknown key 'idle_timeout'; did you mean 'idle-timeout'?"),
        ("zzz = 3\n", "unknown key 'zzz'"),
        ("'' = 3\n", "unknown key ''"),
        ("listen = '3'\n", "unknown key 'listen'"),
        ("no-keepalive = true\n", "unknown key 'no-keepalive'; did you mean 'keepalive'?"),
        ("allow = 'x'\n", "unknown key 'allow'; write rules = [\"allow ...\"]"),
        ("workers = '2'\n", "workers: must be a whole number, not the string '2'"),
        ("workers = true\n", "workers: must be a whole number, not true"),
        ("workers = 2.0\n", "workers: must be a whole number, not the number 2.0"),
        ("workers = [2]\n", "workers: must be a whole number, not a list"),
        ("workers = 0\n", "workers: it must be at least 1"),
        ("grace = 1979-05-27\n", "grace: must be a number, not a date or a time"),
        ("grace = inf\n", "grace: 'inf' is not a number of seconds"),
        ("grace = {}\n", "grace: must be a number, not a table"),
        ("keepalive = 'no'\n", "keepalive: must be true or false, not the string 'no'"),
        ("send-proxy = 'v3'\n", "send-proxy: 'v3' is none of v1, v2"),
        ("log-level = 'Debg'\n", "log-level: 'Debg' is none of debug, info, warning, error; "
         "did you mean 'debug'?"),
        ("send-proxy = 2\n", "send-proxy: must be a string, not the number 2"),
        ("passwords = ''\n", "passwords: '' is not the name of a file"),
        ('passwords = "\\u0000"\n', "passwords: '\\x00' is not the name of a file"),
        ("user = 'no-such-user'\n", "user: there is no user 'no-such-user'"),
        (f"grace = 0x{'f' * 5000}\n", "grace: the number has too many digits"),
        (f"send-proxy = '{'x' * 99}'\n", f"send-proxy: '{'x' * 99}' is none of v1, v2"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, wrong: str) -> None:
    if sys.platform == "win32" and text.startswith("user"):
        wrong = "user: not on Windows"
    more = "" if "no proxy" in wrong or "forward" in text.lower() else FORWARD
    assert mistakes(text + more)[0] == wrong


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ("[[forward]]\nlisten = '1'", ["[[forward]] 1: target is missing"]),
        ("[[sni]]", ["[[sni]] 1: routes or route or default is missing"]),
        (
            "[[sni]]\nroutes = 'r'\ndefault = 'a:1'",
            ["[[sni]] 1: routes: default can't be there as well"],
        ),
        ("[[forward]]\nlisten = '1'\ntarget = []", ["[[forward]] 1: target: the list is empty"]),
        (
            "[[forward]]\nlisten = 80\ntarget = ['a', 5]",
            [
                "[[forward]] 1: listen: must be a string, not the number 80",
                "[[forward]] 1: target: 'a' is not an address: write host:port or [v6]:port",
                "[[forward]] 1: target: must be a string, not the number 5",
            ],
        ),
        (
            "[[socks5]]\nrules = 'alow a'\n[[connect]]\nrules = ['deny', 3, 'allow ..']",
            [
                "[[connect]] 1: rules: '': '' is neither a host name nor a network",
                "[[connect]] 1: rules: must be a string, not the number 3",
                "[[connect]] 1: rules: '..': '..' is neither a host name nor a network",
                "[[socks5]] 1: rules: 'alow a' must begin with allow or deny; "
                "did you mean 'allow'?",
            ],
        ),
        (
            "[[socks5]]\nretry-after = 3\n[[socks5]]\nworkers = 3\nlisten = '5'",
            [
                "[[socks5]] 1: unknown key 'retry-after'",
                "[[socks5]] 2: unknown key 'workers'; it stands at the top, before the first table",
            ],
        ),
        (
            "[[forward]]\nlisten = '1080'\ntarget = 'a:1'\n[[socks5]]\n",
            ["[[socks5]] 1: listen: [[forward]] 1 listens on 127.0.0.1:1080 as well"],
        ),
    ],
)  # fmt: skip
def test_mistakes_in_a_table_are_named(table: str, wrong: list[str]) -> None:
    assert mistakes(table) == wrong


def test_port_0_is_another_one_for_each() -> None:
    assert mistakes("[[socks5]]\nlisten = '0'\n[[socks5]]\nlisten = '0'\n") == []


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"a = 1\nb = \xff\n", "p.toml: line 2: not UTF-8"),
        (b"a = [\n", "p.toml: "),
        (b"a = 1\na = 2\n", "p.toml: Cannot overwrite a value"),
        (b"a = " + b"[" * 5000, "p.toml: "),
        (b"a = " + b"9" * 5000, "p.toml: "),
    ],
)
def test_what_is_not_toml_is_one_mistake(data: bytes, wrong: str) -> None:
    plan, (found,) = parse(data, "p.toml", KINDS, argparse.Namespace())
    assert found.startswith(wrong)
    assert plan.proxies == []


# The schema


def test_the_schema_in_the_repository_is_this_one() -> None:
    """freebsd-splice serve --schema >docs/serve.schema.json"""
    assert (ROOT / "docs" / "serve.schema.json").read_text() == schema(KINDS) + "\n"


def test_the_schema_has_every_key() -> None:
    document = json.loads(schema(KINDS))
    for kind, parser in KINDS.items():
        table = document["properties"][kind]["items"]["properties"]
        assert set(proxy_keys(parser)) <= set(table)
        assert all("description" in value for value in table.values())
    assert set(process_keys()) < set(document["properties"])


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (FORWARD, True),
        (f"workers = 2\nidle-timeout = 0\ngrace = 0.5\nkeepalive = false\n{FORWARD}", True),
        ('[[socks5]]\nrules = ["allow x", "deny *"]\naccept-proxy = "::1"\n', True),
        ('[[sni]]\nroutes = "r.toml"', True),
        ('[[sni]]\ndefault = "a:1"\n[[sni.route]]\nname = "a"\ntarget = ["b:1"]', True),
        ("", False),
        ("[forward]", False),
        ("[[forward]]\nlisten = '1'", False),
        ("[[sni]]", False),
        ("[[sni]]\nroutes = 'r'\ndefault = 'a:1'", False),
        (f"workers = 0\n{FORWARD}", False),
        (f"workers = 2.5\n{FORWARD}", False),
        (f"workers = '2'\n{FORWARD}", False),
        (f"grace = -1\n{FORWARD}", False),
        (f"connect-timeout = 0\n{FORWARD}", False),
        (f"log-level = 'all'\n{FORWARD}", False),
        (f"wokers = 2\n{FORWARD}", False),
        ("[[socks5]]\nrules = ['allo x']", False),
        ("[[socks5]]\nworkers = 2", False),
    ],
)
def test_the_schema_says_what_the_reader_says(text: str, is_right: bool) -> None:
    fastjsonschema = pytest.importorskip("fastjsonschema")
    from freebsd_splice.proxies._routes import toml_parser

    assert (mistakes(text) == []) is is_right
    try:
        fastjsonschema.validate(json.loads(schema(KINDS)), toml_parser().loads(text))
    except fastjsonschema.JsonSchemaValueException:
        assert not is_right
    else:
        assert is_right
