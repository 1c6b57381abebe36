"""What tc netem does where the kernel has no sch_netem: packets lost, doubled, delayed, reordered.

A program for a network namespace of its own, on Linux: ``weather.py DEVICE DEVICE [...]`` passes
what arrives at each device on to the other of the pair, and at SIGTERM it prints how many it has
lost, doubled and delayed. A packet that is delayed arrives behind others.
"""

from __future__ import annotations

import heapq
import random
import select
import signal
import socket
import sys
import time

#: Parts of all packets.
LOST, DOUBLED, DELAYED = 0.003, 0.003, 0.02
#: Seconds of delay, at most.
DELAY = 0.004

#: linux/socket.h, linux/if_packet.h, linux/if_ether.h: no other system has such sockets. With the
#: virtio header the sums that the kernel leaves to the device are passed on as "still to be made".
_AF_PACKET, _SOL_PACKET, _PACKET_VNET_HDR, _PACKET_OUTGOING, _ETH_P_ALL = 17, 263, 15, 4, 3
_BUFFER = 1 << 23
_MOST_BYTES = 1 << 17


def main(*devices: str) -> None:
    ends = [_open(device) for device in devices]
    other = {end.fileno(): ends[number ^ 1] for number, end in enumerate(ends)}
    dice = random.Random(1)
    late: list[tuple[float, int, socket.socket, bytes]] = []
    counts = {"lost": 0, "doubled": 0, "delayed": 0}
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda *signal: stops.append(1))
    print("ready", flush=True)
    while not stops:
        left = max(0.0, late[0][0] - time.monotonic()) if late else 0.1
        readable, _, _ = select.select(ends, [], [], left)
        while late and late[0][0] <= time.monotonic():
            _, _, out, packet = heapq.heappop(late)
            _send(out, packet)
        for end in readable:
            out = other[end.fileno()]
            for packet in _packets(end):
                chance = dice.random()
                if chance < LOST:
                    counts["lost"] += 1
                    continue
                if chance < LOST + DELAYED:
                    counts["delayed"] += 1
                    due = time.monotonic() + dice.random() * DELAY
                    heapq.heappush(late, (due, counts["delayed"], out, packet))
                    continue
                _send(out, packet)
                if chance > 1 - DOUBLED:
                    counts["doubled"] += 1
                    _send(out, packet)
    print(" ".join(f"{count} {name}" for name, count in counts.items()), flush=True)


def _open(device: str) -> socket.socket:
    end = socket.socket(_AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    end.bind((device, _ETH_P_ALL))
    end.setblocking(False)
    return end


def _packets(end: socket.socket) -> list[bytes]:
    """What has arrived there, without what was sent from there."""
    found: list[bytes] = []
    try:
        while len(found) < 64:
            packet, address = end.recvfrom(_MOST_BYTES)
            if address[2] != _PACKET_OUTGOING:
                found.append(packet)
    except BlockingIOError:
        pass
    return found


def _send(out: socket.socket, packet: bytes) -> None:
    try:
        out.send(packet)
    except OSError:
        pass  # no room: as good as lost


if __name__ == "__main__":
    main(*sys.argv[1:])
