"""Which targets the clients of a proxy may reach."""

from __future__ import annotations

import errno
import ipaddress
import socket

import pytest

from freebsd_splice.proxies import _rules
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._rules import Rules, parse_rule


def rules(*texts: str) -> Rules:
    """``+`` before those that allow, ``-`` before those that deny."""
    return Rules([parse_rule(text[1:], text[0] == "+") for text in texts])


def at(address: str, port: int = 443) -> Resolved:
    if ":" in address:
        return Resolved(socket.AF_INET6, (address, port, 0, 0))
    return Resolved(socket.AF_INET, (address, port))


GLOBAL = ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]

NOT_GLOBAL = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.1.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.8",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::ffff:0:808:808",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:1::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "64:ff9b:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", GLOBAL)
def test_global_addresses_are_allowed_without_a_rule(address: str) -> None:
    assert Rules().refusal("a.example", at(address)) is None


@pytest.mark.parametrize("address", NOT_GLOBAL)
def test_other_addresses_need_a_rule_that_names_their_network(address: str) -> None:
    plain = address.partition("%")[0]
    expected = f"{plain} is not a global address; a rule that names its network would allow it"
    for without in (rules(), rules("+*"), rules("+a.example"), rules("+*:443")):
        assert without.refusal("a.example", at(address)) == expected
    everywhere = rules("+0.0.0.0/0", "+::/0")
    assert everywhere.refusal("a.example", at(address)) is None


@pytest.mark.parametrize(
    ("address", "judged"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("::%eth0", "::"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("64:ff9b::", "0.0.0.0"),
        ("2002::1", "0.0.0.0"),
    ],
)
def test_no_rule_allows_what_the_system_takes_for_itself(address: str, judged: str) -> None:
    """A rule for 127.0.0.0/8 would not keep anybody out of it."""
    everywhere = rules("-127.0.0.0/8", "-::1", "+0.0.0.0", "+::/128", "+0.0.0.0/0", "+::/0", "+*")
    expected = f"{judged} stands for this machine, which no rule allows"
    assert everywhere.refusal(address, at(address)) == expected


@pytest.mark.parametrize(
    "address",
    [
        "168.63.129.16",
        "192.0.0.8",
        "192.88.99.1",
        "224.0.0.1",
        "::1",
        "64:ff9b:1::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:1::1",
        "2002:808:808::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fe80::1",
        "fec0::1",
        "ff0e::1",
    ],
)
def test_what_ipaddress_takes_for_global(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is global by the tables of some version: here all are."""
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", True)
    monkeypatch.setattr(ipaddress.IPv6Address, "is_global", True)
    assert rules("+*").refusal("a.example", at(address)) is not None


@pytest.mark.parametrize(
    ("address", "judged"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::127.0.0.1", "127.0.0.1"),
        ("::2", "0.0.0.2"),
        ("64:ff9b::10.0.0.1", "10.0.0.1"),
        ("::ffff:0:10.0.0.1", "10.0.0.1"),
        ("2002:a00:1::1", "10.0.0.1"),
        ("2002:a00:1:ffff:ffff:ffff:ffff:ffff", "10.0.0.1"),
    ],
)
def test_ipv4_in_ipv6_is_judged_as_ipv4(address: str, judged: str) -> None:
    refusal = rules("+::/0").refusal("a.example", at(address))
    assert refusal is not None
    assert refusal.startswith(f"{judged} is not a global address")
    assert rules("+::/0", f"+{judged}").refusal("a.example", at(address)) is None
    denying = rules(f"-{judged}", "+::/0", "+0.0.0.0/0")
    assert denying.refusal("a.example", at(address)) == f"denied by the rule {judged}"


@pytest.mark.parametrize(
    ("address", "judged"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("::8.8.8.8", "8.8.8.8"),
        ("64:ff9b::8.8.8.8", "8.8.8.8"),
        ("2606:4700::1111", "2606:4700::1111"),
    ],
)
def test_the_machines_own_addresses_need_a_rule_as_well(
    address: str, judged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may serve there what the network around it can't reach."""
    own = {ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("2606:4700::1111")}
    monkeypatch.setattr(_rules, "is_of_this_machine", own.__contains__)
    expected = f"{judged} is an address of this machine; a rule that names its network would allow"
    for without in (rules(), rules("+*"), rules("+a.example")):
        assert without.refusal("a.example", at(address)) == f"{expected} it"
    assert rules(f"+{judged}").refusal("a.example", at(address)) is None


def test_an_address_that_cannot_be_looked_at_is_not_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller waits for a descriptor then, and asks again."""

    def fail(_: object) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_rules, "is_of_this_machine", fail)
    with pytest.raises(OSError, match="Too many open files"):
        Rules().refusal("a.example", at("8.8.8.8"))


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "::8.8.8.8"])
def test_another_spelling_of_ipv4_is_not_judged_as_ipv6(address: str) -> None:
    assert rules("-::/0").refusal("a.example", at(address)) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("64:ff9b::8.8.8.8", "64:ff9b::/96"),
        ("::ffff:0:8.8.8.8", "::ffff:0:0:0/96"),
        ("2002:808:808::1", "2002::/16"),
    ],
)
def test_a_way_to_ipv4_is_judged_as_both(address: str, network: str) -> None:
    both = rules("+8.8.8.8", f"+{network}", "-*")
    assert both.refusal("a.example", at(address)) is None
    for one in (rules("+8.8.8.8", "-*"), rules(f"+{network}", "-*")):
        assert one.refusal("a.example", at(address)) == "denied by the rule *"
    denied = rules(f"-{network}", "+8.8.8.8")
    assert denied.refusal("a.example", at(address)) == f"denied by the rule {network}"


@pytest.mark.parametrize(
    ("rule", "addresses", "others"),
    [
        ("10.1.0.0/16", ["10.1.0.0", "10.1.255.255"], ["10.0.255.255", "10.2.0.0", "::1"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.0", "10.0.0.2"]),
        ("10.0.0.1/32", ["10.0.0.1"], ["10.0.0.2"]),
        ("[2001:db8::]/32", ["2001:db8:ffff::1"], ["2001:db9::1", "10.0.0.1"]),
        ("[2001:db8::/32]", ["2001:db8:ffff::1"], ["2001:db9::1"]),
        ("[::1]", ["::1"], ["::2", "127.0.0.1"]),
        ("::1", ["::1"], ["::2"]),
        ("::/127", ["::1"], ["10.0.0.1"]),
        ("::/80", ["::1", "::1:0:0"], ["10.0.0.1", "::ffff:10.0.0.1", "::1:0:0:0"]),
        ("64:ff9b::/96", [], ["10.0.0.1", "64:ff9b::10.0.0.1"]),
        ("fe80::/10", ["fe80::1", "fe80::1%eth0", "febf::1"], ["fec0::1"]),
        ("2001:db8::443", ["2001:db8::443"], ["2001:db8::"]),
    ],
)
def test_networks(rule: str, addresses: list[str], others: list[str]) -> None:
    allowing = rules(f"+{rule}", "-*")
    for address in addresses:
        assert allowing.refusal(address, at(address, 1)) is None
    for address in others:
        assert allowing.refusal(address, at(address, 1)) == "denied by the rule *"


@pytest.mark.parametrize(
    ("rule", "ports", "others"),
    [
        ("10.0.0.1", [1, 65535], []),
        ("10.0.0.1:443", [443], [442, 444]),
        ("10.0.0.0/8:8000-8999", [8000, 8999], [7999, 9000]),
        ("10.0.0.1:1-65535", [1, 65535], []),
        ("10.0.0.1:7-7", [7], [6, 8]),
    ],
)
def test_ports(rule: str, ports: list[int], others: list[int]) -> None:
    for port in ports:
        assert rules(f"+{rule}").refusal("10.0.0.1", at("10.0.0.1", port)) is None
    for port in others:
        assert rules(f"+{rule}").refusal("10.0.0.1", at("10.0.0.1", port)) is not None


@pytest.mark.parametrize(
    "rule", ["[2001:db8::/32]:443", "[2001:db8::]/32:443", "[2001:db8::1]:443"]
)
def test_ports_of_ipv6(rule: str) -> None:
    assert rules(f"+{rule}").refusal("a.example", at("2001:db8::1", 443)) is None
    assert rules(f"+{rule}").refusal("a.example", at("2001:db8::1", 80)) is not None


@pytest.mark.parametrize(
    ("rule", "hosts", "others"),
    [
        (
            "example.org",
            ["example.org", "a.example.org", "b.a.example.org", "EXAMPLE.ORG.", "Example.org.."],
            ["badexample.org", "example.org.evil.net", "org", "", "8.8.8.8", "::1%.example.org"],
        ),
        (".example.org", ["a.example.org", "b.a.Example.Org."], ["example.org", "aexample.org"]),
        ("*.example.org", ["a.example.org", "b.a.example.org"], ["example.org", "aexample.org"]),
        ("Example.ORG.", ["example.org", "a.example.org"], ["example.com"]),
        ("org", ["example.org", "org"], ["borg"]),
        ("localhost", ["localhost", "LocalHost."], ["local"]),
        ("_dmarc.a-b.example", ["_dmarc.a-b.example"], ["dmarc.a-b.example"]),
        ("bücher.example", ["xn--bcher-kva.example", "BÜCHER.example"], ["bucher.example"]),
        ("xn--bcher-kva.example", ["bücher.example", "a.bücher。example"], ["xn--bcher.example"]),
        ("a1.2b.0y", ["a1.2b.0y"], ["0y"]),
        ("*", ["example.org", "8.8.8.8", "::1", "fe80::1%eth0", "", "a..b"], []),
    ],
)
def test_names(rule: str, hosts: list[str], others: list[str]) -> None:
    denied = f"denied by the rule {rule}"
    for host in hosts:
        assert rules(f"-{rule}").refusal(host, at("8.8.8.8")) == denied
        assert rules(f"-{rule}").rejects_name(host, 443) == denied
    for host in others:
        assert rules(f"-{rule}").refusal(host, at("8.8.8.8")) is None
        assert rules(f"-{rule}").rejects_name(host, 443) is None


def test_a_rule_for_a_name_is_for_its_ports() -> None:
    denying = rules("-example.org:80")
    assert denying.refusal("example.org", at("8.8.8.8", 80)) is not None
    assert denying.rejects_name("example.org", 80) is not None
    assert denying.refusal("example.org", at("8.8.8.8", 81)) is None
    assert denying.rejects_name("example.org", 81) is None


@pytest.mark.parametrize(
    ("texts", "address", "decided"),
    [
        # The first that decides.
        (["+10.0.0.1", "-10.0.0.0/8"], "10.0.0.1", None),
        (["-10.0.0.0/8", "+10.0.0.1"], "10.0.0.1", "10.0.0.0/8"),
        (["+10.0.0.0/8:80", "-10.0.0.0/8", "+10.0.0.0/8"], "10.0.0.1", "10.0.0.0/8"),
        (["-8.8.8.8", "+*"], "8.8.8.8", "8.8.8.8"),
        (["+*", "-8.8.8.8"], "8.8.8.8", None),
        (["+a.example", "-*"], "8.8.8.8", None),
        (["+b.example", "-*"], "8.8.8.8", "*"),
        (["-a.example", "+8.8.8.8"], "8.8.8.8", "a.example"),
        # A name decides nothing for an address that is not global: it goes on to the next.
        (["+a.example", "-*"], "10.0.0.1", "*"),
        (["+a.example", "+10.0.0.0/8"], "10.0.0.1", None),
        (["+*", "-10.0.0.0/8"], "10.0.0.1", "10.0.0.0/8"),
    ],
)
def test_the_order_of_rules(texts: list[str], address: str, decided: str | None) -> None:
    expected = decided and f"denied by the rule {decided}"
    assert rules(*texts).refusal("a.example", at(address)) == expected


@pytest.mark.parametrize(
    ("texts", "rejected"),
    [
        ([], None),
        (["-*"], "*"),
        (["-a.example"], "a.example"),
        (["-b.example", "-*:443"], "*:443"),
        (["-*:80"], None),
        # An allowed name decides where its address is global.
        (["+a.example", "-*"], None),
        (["+a.example:80", "-*"], "*"),
        (["+b.example", "-*"], "*"),
        # Its address may be in the network that is allowed; in one that is denied, it is refused.
        (["+10.0.0.0/8", "-*"], None),
        (["+10.0.0.0/8:80", "-*"], "*"),
        (["-10.0.0.0/8", "-*"], "*"),
        (["-10.0.0.0/8"], None),
    ],
)
def test_what_needs_no_looking_up(texts: list[str], rejected: str | None) -> None:
    expected = rejected and f"denied by the rule {rejected}"
    assert rules(*texts).rejects_name("a.example", 443) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither a host name nor a network"),
        (".", "neither a host name"),
        ("*.", "neither a host name"),
        ("**", "neither a host name"),
        ("*example.org", "neither a host name"),
        ("*.*.example.org", "neither a host name"),
        ("..example.org", "neither a host name"),
        ("a..b", "neither a host name"),
        ("-a.example", "neither a host name"),
        ("a-.example", "neither a host name"),
        (f"{64 * 'a'}.example", "neither a host name"),
        ("a b", "neither a host name"),
        ("a\n", "neither a host name"),
        ("\ud800", "neither a host name"),
        ("straße.example", "write it as xn--"),
        ("10.0.0", "'10.0.0' is not an IP address"),
        ("10.0.0.256", "is not an IP address"),
        ("10.0.0.01", "is not an IP address"),
        ("10.0.0.1.", "is not an IP address"),
        ("1.0x7f", "is not an IP address"),
        ("0x", "is not an IP address"),
        ("*.1", "is not an IP address"),
        ("\uff11.\uff11.\uff11.\uff11", "is not an IP address"),
        ("example.org/8", "'example.org' is not an IP address"),
        ("a:b:80", "'a:b:80' is not an IP address"),
        ("[g::]:80", "'g::' is not an IP address"),
        ("fe80::1%eth0", "for every zone"),
        ("10.0.0.0/", "the prefix length must be from 0 to 32$"),
        ("10.0.0.0/33", "the prefix length must be from 0 to 32$"),
        ("10.0.0.0/-1", "the prefix length"),
        ("10.0.0.0/255.0.0.0", "the prefix length"),
        ("10.0.0.0/\u0663", "the prefix length"),
        ("10.0.0.0/" + 5000 * "1", "the prefix length"),
        ("::/129", "the prefix length must be from 0 to 128$"),
        ("fe80::/10:443", "ports follow the brackets"),
        ("[::/10]/10", "the prefix length"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("[2001:db8::1]/32:443", "write 2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "write it as IPv4, 10.0.0.0/8"),
        ("::ffff:10.0.0.1", "write it as IPv4, 10.0.0.1/32"),
        ("::10.0.0.0/104", "write it as IPv4, 10.0.0.0/8"),
        ("::/96", "write it as IPv4, 0.0.0.0/0"),
        ("[::1", "is not a rule"),
        ("[::]1", "is not a rule"),
        ("[::1]443", "is not a rule"),
        ("[]", "no IPv6 address between the brackets"),
        ("[10.0.0.0/8]", "no IPv6 address between the brackets"),
        ("[example.org]:80", "no IPv6 address between the brackets"),
        ("*:", "the ports must be"),
        ("[::1]:", "the ports must be"),
        ("*:0", "the ports must be"),
        ("*:65536", "the ports must be"),
        ("*:" + 5000 * "1", "the ports must be"),
        ("*:80-", "the ports must be"),
        ("*:-80", "the ports must be"),
        ("*:90-80", "the ports must be"),
        ("*:80-65536", "the ports must be"),
        ("*:http", "the ports must be"),
        ("*:80,443", "the ports must be"),
        ("*:\u0663", "the ports must be"),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_what_is_no_rule(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        parse_rule(text, True)
    assert not isinstance(raised.value, UnicodeError)


@pytest.mark.parametrize("text", ["*", "Example.org:80", "10.0.0.0/8", "[::1]:1-2"])
def test_a_rule_knows_how_it_was_written(text: str) -> None:
    assert parse_rule(text, True).text == text
