"""How services are written, and the order in which their members are tried."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from freebsd_splice.proxies import Address, Service
from freebsd_splice.proxies._services import Member, in_order, parse_target_or_service


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("srv:_http._tcp.example.org", Service("_http._tcp.example.org")),
        ("SRV:_http._tcp.example.org.", Service("_http._tcp.example.org")),
        ("srv:web.service.consul", Service("web.service.consul")),
        ("srv:80", Service("80")),
        ("srv.example.org:80", Address("srv.example.org", 80)),
        ("8080", Address("127.0.0.1", 8080)),
    ],
)
def test_how_a_target_is_written(text: str, target: Address | Service) -> None:
    assert parse_target_or_service(text) == target


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("srv:", "is not a service: write srv:_http._tcp.example.org"),
        ("srv:.", "is not a service"),
        ("srv:a..b", "is not a service"),
        ("srv:exämple.org", "is not a service"),
        ("srv: a", "is not a service"),
        ("srv:" + "a" * 64, "is not a service"),
        ("srv:" + ".".join(["a" * 60] * 5), "is not a service"),
        ("srv:_http._tcp.example.org:80", "leave them out"),
        ("srv:[::1]:80", "leave them out"),
        ("example.org", "is not an address"),
    ],
)
def test_what_is_no_target(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_target_or_service(text)


def test_a_service_is_shown_as_it_is_written() -> None:
    assert str(Service("_http._tcp.example.org")) == "srv:_http._tcp.example.org"


def member(name: str, priority: int, weight: int) -> Member:
    return Member(Address(name, 80), priority, weight)


def names(members: list[Member]) -> str:
    return "".join(each.address.host for each in in_order(members))


def test_each_member_comes_once_by_priority() -> None:
    members = [member("c", 3, 65535), member("a", 0, 0), member("d", 65535, 1), member("b", 1, 0)]
    assert names(members) == "abcd"
    assert names([]) == ""


def test_members_that_are_the_same_come_both() -> None:
    assert names([member("a", 1, 1), member("a", 1, 1)]) == "aa"


def shares(weights: dict[str, int], count: int = 20_000) -> dict[str, float]:
    """Which share of the clients each of them gets first."""
    random.seed(1)
    members = [member(name, 1, weight) for name, weight in weights.items()]
    first = Counter(names(members)[0] for _ in range(count))
    return {name: first[name] / count for name in weights}


def test_the_weights_are_the_shares() -> None:
    """RFC 2782: 20,000 draws are within three of a hundred for sure."""
    found = shares({"a": 1, "b": 3, "c": 6})
    assert found == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6}, abs=0.03)


def test_without_weights_all_have_the_same_share() -> None:
    found = shares({"a": 0, "b": 0, "c": 0, "d": 0})
    assert found == pytest.approx(dict.fromkeys("abcd", 0.25), abs=0.03)


def test_no_weight_is_a_very_small_share_beside_others() -> None:
    """RFC 2782: "should have a very small chance of being selected"."""
    found = shares({"a": 0, "b": 99})
    assert 0 < found["a"] < 0.03


def test_the_second_choice_is_by_weight_too() -> None:
    random.seed(1)
    members = [member("a", 1, 1000), member("b", 1, 1000), member("c", 1, 1)]
    last = Counter(names(members)[-1] for _ in range(1_000))
    assert last["c"] > 950
