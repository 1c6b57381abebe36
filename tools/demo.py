"""Serve a file, forward to the server, fetch the file through the forwarder with curl."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

MEGABYTES = 200


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


def main() -> int:
    subprocess.run([sys.executable, "-m", "freebsd_splice", "info"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "file")
        block = os.urandom(1 << 20)
        original.write_bytes(block * MEGABYTES)
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Quiet, directory=folder)
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = f"127.0.0.1:{server.server_port}"
        forwarder = subprocess.Popen(
            [sys.executable, "-m", "freebsd_splice", "forward", "127.0.0.1:0", target],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert forwarder.stderr is not None
        try:
            for line in forwarder.stderr:
                print(line, end="", flush=True)
                if "listening on" in line:
                    return _fetch(line.split("listening on ")[1].split()[0], original)
            return 1
        finally:
            forwarder.send_signal(signal.SIGTERM)
            print(forwarder.stderr.read(), end="")
            forwarder.wait()
            server.shutdown()
            server.server_close()


def _fetch(address: str, original: Path) -> int:
    copy = original.with_name("copy")
    command = ["curl", "--fail", "--silent", "--show-error", "--output", str(copy)]
    print(f"curl http://{address}/file", flush=True)
    subprocess.run([*command, f"http://{address}/file"], check=True)
    same = _sum(original) == _sum(copy)
    print(f"{copy.stat().st_size} bytes came through, {'all right' if same else 'DAMAGED'}")
    return 0 if same else 1


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
