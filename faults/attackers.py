"""Clients that mean harm: raw HTTP/2 in a process of its own, a few hundred acts a second until it is ended.

python -m faults.attackers KIND HOST:PORT SEED        prints "begun", and its number of acts when standard input ends
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/twinbert.v1.ScorerService/Score"),
    (":authority", "attacker"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
# More would measure how the cores are shared with the attacker, and not what the server makes of it.
_ACTS_A_SECOND = 300
_HELD = 300  # connections and calls that are kept open
_PER_CONNECTION = 90  # calls


class _Attacker:
    def __init__(self, address: str, seed: int) -> None:
        host, _, port = address.rpartition(":")
        self._address, self.chance = (host, int(port)), random.Random(seed)
        self.held: list[socket.socket] = []
        self._http = H2Connection(H2Configuration(client_side=True))
        self._socket: socket.socket | None = None
        self._calls = 0

    def connect(self) -> socket.socket:
        """A connection that is held; an old one is let go for it."""
        one = socket.create_connection(self._address, timeout=10)
        one.setblocking(False)
        self.held.append(one)
        if len(self.held) > _HELD:
            self.held.pop(0).close()
        return one

    def call(self) -> tuple[socket.socket, H2Connection, int]:
        """The headers of a call, on a connection with others."""
        if self._socket is None or self._calls % _PER_CONNECTION == 0:
            self._socket = self.connect()
            self._http = H2Connection(H2Configuration(client_side=True))
            self._http.initiate_connection()
        self._calls += 1
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, _HEADERS)
        return self._socket, self._http, stream

    def flush(self, one: socket.socket, http: H2Connection) -> None:
        """Sends, and reads as little as it must; who has thrown it out is visited again."""
        try:
            one.sendall(http.data_to_send())
            with contextlib.suppress(BlockingIOError):
                if not one.recv(1 << 16):
                    self._socket = None
        except OSError:
            self._socket = None


def _silent(attacker: _Attacker) -> None:
    attacker.connect()


def _headers(attacker: _Attacker) -> None:
    one, http, _ = attacker.call()
    attacker.flush(one, http)


def _reset(attacker: _Attacker) -> None:
    one, http, stream = attacker.call()
    http.reset_stream(stream, ErrorCodes.CANCEL)
    attacker.flush(one, http)


def _oversize(attacker: _Attacker) -> None:
    """A message that says it has 2 GiB, and the first bytes of it."""
    one, http, stream = attacker.call()
    content = b"\0\x7f\xff\xff\xff" + attacker.chance.randbytes(1000)
    with contextlib.suppress(ProtocolError):  # the window is full
        http.send_data(stream, content)
    attacker.flush(one, http)


def _malformed(attacker: _Attacker) -> None:
    """A frame of random type, flags, stream and length, with what belongs to none."""
    chance, one = attacker.chance, attacker.connect()
    length = chance.choice((0, 4, 8, 100, 1 << 14, (1 << 24) - 1))
    head = length.to_bytes(3, "big") + bytes((chance.randrange(16), chance.randrange(256)))
    stream = chance.randrange(1 << 32).to_bytes(4, "big")
    with contextlib.suppress(OSError):
        one.sendall(_PREFACE + b"\0\0\0\4\0\0\0\0\0" + head + stream + chance.randbytes(min(length, 200)))


KINDS: Mapping[str, Callable[[_Attacker], None]] = {
    "silent connections": _silent,
    "header-only calls": _headers,
    "resets": _reset,
    "oversize messages": _oversize,
    "malformed frames": _malformed,
}


def _main(kind: str, address: str, seed: str) -> None:
    os.nice(19)  # an attacker brings its own machine; here it may have what the server and the honest client leave
    print("begun", flush=True)
    attacker, acts, began = _Attacker(address, int(seed)), 0, time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, began + acts / _ACTS_A_SECOND - time.monotonic()))[0]:
        with contextlib.suppress(ConnectionError, TimeoutError):
            KINDS[kind](attacker)
        acts += 1
    print(acts)


if __name__ == "__main__":
    _main(*sys.argv[1:])
