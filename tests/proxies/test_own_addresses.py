"""Which addresses are this machine's own."""

from __future__ import annotations

import errno
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from freebsd_splice.proxies import _own_addresses
from freebsd_splice.proxies._own_addresses import is_of_this_machine


def test_what_this_machine_has_is_its_own() -> None:
    assert is_of_this_machine(ipaddress.ip_address("127.0.0.1"))


def test_an_ipv6_address_that_it_has_is_its_own() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error.strerror}")
    assert is_of_this_machine(ipaddress.ip_address("::1"))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "8.8.8.8"])
def test_what_others_have_is_not(address: str) -> None:
    assert not is_of_this_machine(ipaddress.ip_address(address))


@pytest.mark.skipif(sys.platform == "win32", reason="it has no limit of sockets to run into")
def test_without_a_descriptor_nobody_knows() -> None:
    from programs.processes import descriptors_left

    with descriptors_left(0), pytest.raises(OSError) as raised:
        is_of_this_machine(ipaddress.ip_address("8.8.8.8"))
    assert raised.value.errno == errno.EMFILE


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's")


@on_linux
@pytest.mark.parametrize("setting", ["1\n", None], ids=["set", "not to be read"])
def test_where_any_address_may_be_bound_routes_decide(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        (tmp_path / "4").write_text(setting)
    monkeypatch.setattr(_own_addresses, "_NONLOCAL_BIND", f"{tmp_path}/{{}}")
    assert is_of_this_machine(ipaddress.ip_address("127.0.0.1"))


@on_linux
def test_a_setting_that_may_not_be_read_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a security module that hides it; a folder in its place is not to be read either."""
    (tmp_path / "4").mkdir()
    monkeypatch.setattr(_own_addresses, "_NONLOCAL_BIND", f"{tmp_path}/{{}}")
    assert is_of_this_machine(ipaddress.ip_address("127.0.0.1"))


#: Addresses of everybody's, one of which this network's machine has.
IN_A_NETWORK_OF_ITS_OWN = """
ip link set lo up
ip address add 8.8.4.4/32 dev lo
ip route add default dev lo
echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind
exec "$0" -c '
import ipaddress
from freebsd_splice.proxies._own_addresses import is_of_this_machine
print([is_of_this_machine(ipaddress.ip_address(text)) for text in ("8.8.4.4", "8.8.8.8")])'
"""


@on_linux
@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root's alone")
def test_what_may_be_bound_is_not_taken_for_ones_own() -> None:
    """net.ipv4.ip_nonlocal_bind is set where two machines share an address (keepalived)."""
    if not all(map(shutil.which, ("unshare", "ip"))):
        pytest.skip("it takes unshare and ip")
    script = ["unshare", "--net", "sh", "-euc", IN_A_NETWORK_OF_ITS_OWN, sys.executable]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this root may have no network of its own")
    ran = subprocess.run(script, capture_output=True, text=True)
    assert ran.stdout == "[True, False]\n", ran.stderr
