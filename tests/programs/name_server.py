"""A name server for tests: it answers what the test says, over UDP and TCP on one port."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from programs.processes import PATIENCE

#: What is sent for a question; None: nothing.
Answering = Callable[[dns.message.Message], bytes | None]


class NameServer:
    """Has the records of ``say``, and no others; ``answering`` may be replaced."""

    def __init__(self) -> None:
        self.answering: Answering = self.answer
        #: How often each name and type was asked for.
        self.asked: Counter[tuple[str, str]] = Counter()
        self._records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._udp, self._tcp = _bound_to_one_port()
        self.address: str = "{}:{}".format(*self._udp.getsockname())
        self._threads = [threading.Thread(target=run) for run in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def say(self, name: str, kind: str, *records: str, ttl: int = 0) -> None:
        """Answer with these from now on, written as in a zone file."""
        self._records[f"{name}.", kind] = ttl, list(records)

    def answer(self, question: dns.message.Message) -> bytes:
        """The records that there are; of a name without any, that it does not exist."""
        response = dns.message.make_response(question)
        asked = question.question[0]
        name, kind = asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype)
        while (name, "CNAME") in self._records and kind != "CNAME":
            ttl, records = self._records[name, "CNAME"]
            response.answer.append(dns.rrset.from_text(name, ttl, "IN", "CNAME", *records))
            name = records[0]
        ttl, records = self._records.get((name, kind), (0, []))
        if records:
            response.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *records))
        elif not any(known == name for known, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire(max_size=65535)

    def fail(self, question: dns.message.Message) -> bytes:
        """SERVFAIL, as from a server that can't reach others."""
        response = dns.message.make_response(question)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire()

    def close(self) -> None:
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                data, client = self._udp.recvfrom(65535)
            except OSError:
                return
            if not client:  # shut down
                return
            answer = self._answer_to(data)
            if answer is None:
                continue
            if len(answer) > 1232:  # too long for UDP: the client is to come back over TCP
                question = dns.message.from_wire(data)
                response = dns.message.make_response(question)
                response.flags |= dns.flags.TC
                answer = response.to_wire()
            with contextlib.suppress(OSError):
                self._udp.sendto(answer, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE)
                length = connection.recv(2, socket.MSG_WAITALL)
                data = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
                answer = self._answer_to(data)
                if answer is not None:
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer_to(self, data: bytes) -> bytes | None:
        question = dns.message.from_wire(data)
        asked = question.question[0]
        self.asked[asked.name.to_text()[:-1], dns.rdatatype.to_text(asked.rdtype)] += 1
        return self.answering(question)


def _bound_to_one_port() -> tuple[socket.socket, socket.socket]:
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:  # somebody has the other one
            udp.close()
