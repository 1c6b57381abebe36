"""A TCP forwarder of threads, with a log: python examples/threaded_relay.py LISTEN_PORT HOST:PORT

A thread serves each client until its target is connected to.  From then on a ``Relay`` runs by
itself, on no thread of the client's, and logs its end.
"""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import socket
import threading
import time

import freebsd_splice
from freebsd_splice import Relay

logger = logging.getLogger("threaded_relay")

#: What accept(2) fails with for lack of something: there is more once a connection has ended.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def accept_clients(listener: socket.socket, target: tuple[str, int]) -> None:
    while True:
        try:
            client, address = listener.accept()
        except ConnectionAbortedError:  # it has gone away again
            continue
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            logger.warning("accepting pauses: %s", error)
            time.sleep(0.1)
            continue
        name = f"{address[0]}:{address[1]}"
        threading.Thread(target=join, args=(client, name, target), daemon=True).start()


def join(client: socket.socket, name: str, target: tuple[str, int]) -> None:
    """Relay between the client and the target, if that can be reached within 10 seconds."""
    try:
        connection = socket.create_connection(target, timeout=10)
    except OSError as error:
        logger.warning("%s: can't connect to %s:%d: %s", name, *target, error)
        client.close()
        return
    try:
        relay = Relay(client, connection, idle_timeout=300, close=True)
    except OSError as error:  # then nothing has been closed
        logger.warning("%s: %s", name, error)
        client.close()
        connection.close()
        return
    relay.add_done_callback(lambda relay: report(name, relay))


def report(name: str, relay: Relay) -> None:
    """What ended it, and how much went each way."""
    outcome = relay.wait()  # it is over: this doesn't wait
    there, back = outcome.left_to_right, outcome.right_to_left
    why = (
        outcome.reason.value
        if outcome.error is None
        else f"{outcome.reason.value}: {outcome.error}"
    )
    logger.info(
        "%s: %d bytes there, %d back: %s, %s", name, there.bytes, back.bytes, why, there.backend
    )


def main(port: int, target: tuple[str, int]) -> None:
    """Forward until SIGINT or SIGTERM, which cut what is under way."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with socket.create_server(("127.0.0.1", port)) as listener:
        logger.info("listening on 127.0.0.1:%d", listener.getsockname()[1])
        accepting = threading.Thread(target=accept_clients, args=(listener, target), daemon=True)
        accepting.start()
        stopped.wait()
        freebsd_splice.shutdown()


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP forwarder of threads")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(given.port, given.target)
