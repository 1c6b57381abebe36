"""HAProxy and nginx in front of the proxies and behind them, with PROXY headers in between."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from freebsd_splice.proxies._proxy_protocol import ProxyHeader
from programs.clients import ALLOW_LOOPBACK, Certificates, curl, no_accidents, read_to_eof
from programs.processes import (
    PATIENCE,
    Forwarder,
    Proxy,
    Server,
    exchange,
    free_port,
    needs,
    receive,
    until,
)
from programs.test_proxy_protocol import ACCEPT, Heard

StartForwarder = Callable[..., Forwarder]

HAPROXY = """
defaults
    mode {mode}
    timeout connect 30s
    timeout client 30s
    timeout server 30s
frontend all
    bind {listen} {bind}
    {frontend}
    default_backend one
backend one
    {backend}
"""

NGINX_MAIN = """
{module}
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 100; }}
"""

NGINX = """
stream {{
    access_log off;
    server {{
        listen {listen} {bind};
        {server}
    }}
}}
"""

#: Where the systems' packages put it: Debian, FreeBSD's ports, OpenBSD's.
NGINX_MODULES = [
    Path(folder) / "ngx_stream_module.so"
    for folder in ("/usr/lib/nginx/modules", "/usr/local/libexec/nginx", "/var/www/modules")
]

#: Says whom HAProxy or nginx takes for the client.
ANSWER = '"%ci:%cp %[fc_pp_authority] %[fc_pp_unique_id]\\n"'


class Neighbours:
    """Starts HAProxy and nginx on free ports, and ends them."""

    def __init__(self, directory: Path, opened: ExitStack) -> None:
        self._directory = directory
        self._opened = opened

    def haproxy(
        self,
        *,
        mode: str = "tcp",
        bind: str = "",
        frontend: str = "",
        backend: str = "",
        host: str = "127.0.0.1",
    ) -> tuple[str, int]:
        """Gives its address."""
        port = free_port()
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        text = HAPROXY.format(
            mode=mode, bind=bind, frontend=frontend, backend=backend, listen=listen
        )
        return self.run_haproxy(text, (host, port))

    def run_haproxy(self, text: str, address: tuple[str, int]) -> tuple[str, int]:
        """Run a configuration that listens at the address; gives the address."""
        needs("haproxy")
        path = self._write("haproxy.cfg", text)
        return self._start(["haproxy", "-db", "-f", str(path)], address)

    def nginx(self, server: str, *, bind: str = "", host: str = "127.0.0.1") -> tuple[str, int]:
        """Gives its address."""
        port = free_port()
        text = NGINX.format(
            listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            bind=bind,
            server=server,
        )
        return self.run_nginx(text, (host, port))

    def run_nginx(self, text: str, address: tuple[str, int]) -> tuple[str, int]:
        """Run the parts ``stream`` or ``http`` of a configuration; gives the address."""
        needs("nginx")
        module = next((path for path in NGINX_MODULES if path.exists()), None)
        if module is None:
            run = subprocess.run(["nginx", "-V"], capture_output=True, text=True)
            if not re.search(r"--with-stream(\s|$)", run.stderr):
                pytest.skip("nginx has no stream module here")
        main = NGINX_MAIN.format(
            module=f"load_module {module};" if module else "", directory=self._directory
        )
        path = self._write("nginx.conf", main + text)
        command = ["nginx", "-e", "stderr", "-p", str(self._directory), "-c", str(path)]
        return self._start(command, address)

    def _write(self, name: str, text: str) -> Path:
        path = self._directory / name
        path.write_text(text)
        return path

    def _start(self, command: list[str], address: tuple[str, int]) -> tuple[str, int]:
        self._opened.enter_context(_running(command, self._directory / f"{command[0]}.log"))
        until(lambda: _accepts(address))
        return address


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [shutil.which(command[0]) or command[0], *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        assert process.poll() is None, log.read_text()
        process.kill()
        process.wait()


def _accepts(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, PATIENCE):
        return True
    return False


@pytest.fixture
def neighbours(tmp_path: Path, opened: ExitStack) -> Neighbours:
    return Neighbours(tmp_path, opened)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def header_with(heard: Heard, client: socket.socket) -> ProxyHeader:
    """That of this client: what tries whether somebody listens has its own."""
    (found,) = (header for header in heard.headers if header.source == client.getsockname())
    return found


# In front


@pytest.mark.parametrize(
    "sending",
    [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "send-proxy-v2 proxy-v2-options crc32c",
    ],
)
def test_haproxy_in_front(
    sending: str,
    neighbours: Neighbours,
    heard: Heard,
    server: Callable[..., Server],
    forwarder: StartForwarder,
) -> None:
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v2")
    address = neighbours.haproxy(
        frontend="unique-id-format %[src]-%[src_port]",
        backend=f"server ours 127.0.0.1:{front.port} {sending}",
    )
    with socket.create_connection(address, PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
        host, port = client.getsockname()
        header = header_with(heard, client)
        assert header.destination == address
        if "unique-id" in sending:
            assert header.unique_id == f"{host}-{port}".encode()
    front.expect(rf"INFO {host}:{port} via 127.0.0.1:\d+ -> .*: 5 bytes up, 5 bytes down, eof,")
    no_accidents(front)


def test_haproxys_authority_is_sent_on(
    neighbours: Neighbours,
    heard: Heard,
    server: Callable[..., Server],
    forwarder: StartForwarder,
    tmp_path: Path,
) -> None:
    """It ends TLS, and says which name was asked for."""
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v2")
    pem = certificates.server_file("www.example.org")
    address = neighbours.haproxy(
        bind=f"ssl crt {pem}",
        backend=f"server ours 127.0.0.1:{front.port} send-proxy-v2 proxy-v2-options authority",
    )
    plain = socket.create_connection(address, PATIENCE)
    with certificates.client().wrap_socket(plain, server_hostname="www.example.org") as client:
        assert exchange(client, b"hello") == b"hello"
        assert header_with(heard, client).authority == "www.example.org"


def test_haproxys_checks_of_health(
    neighbours: Neighbours, heard: Heard, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    """Those of v2 are LOCAL.  It sends nobody to who has failed two of them."""
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v1")
    checked = "check inter 50ms fall 2 init-addr last"
    address = neighbours.haproxy(
        backend=f"server ours 127.0.0.1:{front.port} send-proxy-v2 {checked}"
    )
    front.expect(r"INFO 127.0.0.1:\d+ -> .*: 0 bytes up, 0 bytes down", 5)
    with socket.create_connection(address, PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
        assert header_with(heard, client).destination == address
    front.expect(r"INFO 127.0.0.1:\d+ via 127.0.0.1:\d+ -> .*: 5 bytes up")
    no_accidents(front)


def test_nginx_in_front(
    neighbours: Neighbours, heard: Heard, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v1")
    address = neighbours.nginx(f"proxy_pass 127.0.0.1:{front.port}; proxy_protocol on;")
    with socket.create_connection(address, PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
        host, port = client.getsockname()
        assert header_with(heard, client) == ProxyHeader("v1", (host, port), address)
    front.expect(rf"INFO {host}:{port} via 127.0.0.1:\d+ -> .*: 5 bytes up, 5 bytes down, eof,")
    no_accidents(front)


@pytest.mark.parametrize("by", ["haproxy", "nginx"])
def test_in_front_over_a_unix_socket(
    by: str,
    neighbours: Neighbours,
    heard: Heard,
    server: Callable[..., Server],
    forwarder: StartForwarder,
    tmp_path: Path,
) -> None:
    path = tmp_path / "front"
    senders = ("--accept-proxy", "unix:", "--send-proxy", "v2")
    # nginx, and HAProxy where it is started as root, may run as other users.
    front = forwarder(
        server(heard).address, *senders, "--socket-mode", "666", listen=f"unix:{path}"
    )
    front.expect("listening on unix:")
    if by == "haproxy":
        address = neighbours.haproxy(backend=f"server ours unix@{path} send-proxy-v2")
    else:
        address = neighbours.nginx(f"proxy_pass unix:{path}; proxy_protocol on;")
    with socket.create_connection(address, PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
        host, port = client.getsockname()
        assert header_with(heard, client).destination == address
    front.expect(rf"INFO {host}:{port} via unix:uid=\d+ -> .*: 5 bytes up, 5 bytes down,")
    no_accidents(front)


# Behind


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("by", ["haproxy", "nginx"])
def test_behind_with_a_client_at_a_unix_socket(
    by: str,
    version: str,
    neighbours: Neighbours,
    echo_server: Server,
    forwarder: StartForwarder,
    tmp_path: Path,
) -> None:
    """The header has no address for it: what is behind takes the connection as it is."""
    host, port = echo_server.address
    if by == "haproxy":
        address = neighbours.haproxy(bind="accept-proxy", backend=f"server echo {host}:{port}")
    else:
        address = neighbours.nginx(f"proxy_pass {host}:{port};", bind="proxy_protocol")
    path = tmp_path / "front"
    front = forwarder(address, "--send-proxy", version, listen=f"unix:{path}")
    front.expect("listening on unix:")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        assert exchange(client, b"hello") == b"hello"
    no_accidents(front)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_haproxy_behind(
    version: str, host: str, neighbours: Neighbours, forwarder: StartForwarder
) -> None:
    address = neighbours.haproxy(
        mode="http",
        bind="accept-proxy",
        frontend=f"http-request return status 200 content-type text/plain lf-string {ANSWER}",
        host=host,
    )
    listen, target = (
        ("[::1]:0", f"[::1]:{address[1]}") if host == "::1" else ("127.0.0.1:0", address)
    )
    front = forwarder(target, "--send-proxy", version, "--log-format", "json", listen=listen)
    (line,) = front.expect(r'"listening on .*:(\d+)"')
    with socket.create_connection((host, int(line[1])), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        said = read_to_eof(client).decode().splitlines()[-1].split(" ")
        name = "{}:{}".format(*client.getsockname())
    (line,) = front.expect(r'"client": .*"event": "connection"|"event": "connection".*"client": .*')
    unique_id = re.search(r'"unique_id": "(\w+)"', line.string)
    assert said == [name, "", unique_id[1] if unique_id else ""]
    assert bool(unique_id) == (version == "v2")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nginx_behind(
    version: str, host: str, neighbours: Neighbours, forwarder: StartForwarder
) -> None:
    says = "$proxy_protocol_addr $proxy_protocol_port"
    address = neighbours.nginx(f'return "{says}";', bind="proxy_protocol", host=host)
    listen, target = (
        ("[::1]:0", f"[::1]:{address[1]}") if host == "::1" else ("127.0.0.1:0", address)
    )
    front = forwarder(target, "--send-proxy", version, listen=listen)
    with front.connect(host) as client:
        assert read_to_eof(client).decode() == "{} {}".format(*client.getsockname())
    no_accidents(front)


@pytest.mark.parametrize("command", ["connect", "socks5"])
def test_the_host_that_was_asked_for_is_the_authority(
    command: str, neighbours: Neighbours, proxy: Callable[..., Proxy]
) -> None:
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    _, port = neighbours.haproxy(
        mode="http",
        bind="accept-proxy",
        frontend=f"http-request return status 200 content-type text/plain lf-string {ANSWER}",
    )
    front = proxy(command, *ALLOW_LOOPBACK, "--send-proxy", "v2", "127.0.0.1:0")
    scheme = "http" if command == "connect" else "socks5h"
    through = f"{scheme}://127.0.0.1:{front.port}"
    said = curl("--proxytunnel", "--proxy", through, f"http://localhost:{port}/")
    assert said.returncode == 0, said.stderr
    (name,) = front.expect(r"INFO (127.0.0.1:\d+)\b.* -> ")
    assert re.fullmatch(rf"{name[1]} localhost \w{{32}}\n", said.stdout.decode())
    no_accidents(front)


def test_the_server_name_is_the_authority(
    neighbours: Neighbours, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    """With a front that sends a header of its own, before TLS that nobody but the last ends."""
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    pem = certificates.server_file("www.example.org")
    address = neighbours.haproxy(
        mode="http",
        bind=f"accept-proxy ssl crt {pem}",
        frontend=f"http-request return status 200 content-type text/plain lf-string {ANSWER}",
    )
    routes = tmp_path / "routes.toml"
    routes.write_text('[[route]]\nname = "www.example.org"\ntarget = "{}:{}"\n'.format(*address))
    front = proxy("sni", *ACCEPT, "--send-proxy", "v2", str(routes), "127.0.0.1:0")
    plain = front.connect()
    plain.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n")
    with certificates.client().wrap_socket(plain, server_hostname="www.example.org") as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        said = read_to_eof(client).decode().splitlines()[-1]
    assert re.fullmatch(r"2001:db8::7:40000 www\.example\.org \w{32}", said)
    front.expect(r"INFO \[2001:db8::7\]:40000\b.* via 127.0.0.1:\d+")
    no_accidents(front)


@pytest.mark.parametrize("command", ["connect", "socks5"])
@pytest.mark.parametrize("sending", ["send-proxy", "send-proxy-v2"])
def test_haproxy_in_front_of_proxies_that_are_asked(
    command: str,
    sending: str,
    neighbours: Neighbours,
    echo_server: Server,
    proxy: Callable[..., Proxy],
) -> None:
    """Header and request can come in one segment, or not."""
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    front = proxy(command, *ALLOW_LOOPBACK, *ACCEPT, "127.0.0.1:0")
    address = neighbours.haproxy(backend=f"server ours 127.0.0.1:{front.port} {sending}")
    _, port = echo_server.address
    with socket.create_connection(address, PATIENCE) as client:
        if command == "connect":
            client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port)
            assert receive(client, 12) == b"HTTP/1.1 200"
            while receive(client, 1) != b"\n" or receive(client, 2) != b"\r\n":
                pass
        else:
            client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\1" + port.to_bytes(2, "big"))
            assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
        assert exchange(client, b"hello") == b"hello"
        name = "{}:{}".format(*client.getsockname())
    front.expect(rf"INFO {name}\b.* via 127.0.0.1:\d+.*: 5 bytes up, 5 bytes down, eof,")
    no_accidents(front)
