"""Stands in for QEMU where the guest doesn't matter: its sockets, and a script of what happens.

FAKE_QEMU names a JSON file: ["console", TEXT], ["qmp", EVENT, DATA], ["stderr", TEXT],
["exit"].  After the last one it waits for "quit".
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path


def main() -> None:
    line = " ".join(sys.argv)
    (console_path,) = re.findall(r"id=console,path=([^, ]+)", line)
    (qmp_path,) = re.findall(r"-qmp unix:([^, ]+)", line)
    script = json.loads(Path(os.environ["FAKE_QEMU"]).read_text())
    if script and script[0][0] == "stderr":
        print(script[0][1], file=sys.stderr, flush=True)
        script.pop(0)
        if not script:
            sys.exit(1)
    console, qmp = _accepted(console_path), _accepted(qmp_path)
    orders = qmp.makefile("rb")
    qmp.sendall(b'{"QMP": {"version": {}}}\n')
    assert json.loads(orders.readline()) == {"execute": "qmp_capabilities"}
    qmp.sendall(b'{"return": {}}\n')
    for kind, *about in script:
        if kind == "console":
            console.sendall(about[0].encode())
        elif kind == "qmp":
            qmp.sendall(json.dumps({"event": about[0], "data": about[1]}).encode() + b"\n")
        else:
            assert kind == "exit"
            sys.exit(0)
    assert json.loads(orders.readline()) == {"execute": "quit"}


def _accepted(path: str) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        return listener.accept()[0]


if __name__ == "__main__":
    main()
