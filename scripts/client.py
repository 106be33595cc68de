"""A plain WebSocket client, for the scripts that count what a message costs the server.

Sends one message of text on each connection, then reads every echo and compares it. This module does not
know which server it talks to, nor what is counted.
"""

import contextlib
import itertools
import socket
import ssl

from tools import Failure

MASK = bytes.fromhex("37fa213d")
REPLY_SECONDS = 20
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Peers:
    """Open connections that all exchange messages of `payload_bytes` bytes, at least 10; over TLS if `scheme` is `wss`."""

    def __init__(self, address, connections, payload_bytes, scheme="ws"):
        self.payload_bytes = payload_bytes
        self.numbers = itertools.count()
        self.sockets = [_connect(address, scheme) for _ in range(connections)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for peer in self.sockets:
            peer.close()

    def exchange(self, rounds, sending=contextlib.nullcontext):
        """Sends a message on every connection, then reads every echo and compares it; `rounds` times. Enters
        a context of `sending` to send."""
        for _ in range(rounds):
            payloads = [self._payload() for _ in self.sockets]
            with sending():
                for peer, payload in zip(self.sockets, payloads):
                    peer.sendall(_header(payload, 0x80) + MASK + _masked(payload))
            for peer, payload in zip(self.sockets, payloads):
                expected = _header(payload, 0) + payload
                echo = _received(peer, len(expected))
                if echo != expected:
                    raise Failure(f"sent {_begin(expected)}, got {_begin(echo)}")

    def _payload(self):
        """Text that differs from message to message."""
        return (b"%010d" % next(self.numbers)).ljust(self.payload_bytes, b".")


def _connect(address, scheme):
    """`address` is the path of a Unix socket, or a port on this machine."""
    if isinstance(address, int):
        peer = socket.create_connection(("127.0.0.1", address), timeout=REPLY_SECONDS)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(REPLY_SECONDS)
        peer.connect(str(address))
    if scheme == "wss":
        # The certificate is made for this run, and nobody has signed it.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        peer = context.wrap_socket(peer)
    peer.sendall(REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _received(peer, 1)
    if not head.startswith(b"HTTP/1.1 101 "):
        raise Failure(f"the opening handshake was answered with {head!r}")
    return peer


def _header(payload, mask_bit):
    """The first bytes of a text frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes([0x81, mask_bit | size])
    if size < 1 << 16:
        return bytes([0x81, mask_bit | 126]) + size.to_bytes(2)
    return bytes([0x81, mask_bit | 127]) + size.to_bytes(8)


def _masked(payload):
    size = len(payload)
    key = (MASK * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


def _received(peer, size):
    data = bytearray(size)
    place = memoryview(data)
    while place:
        count = peer.recv_into(place)
        if count == 0:
            raise Failure("the server closed the connection")
        place = place[count:]
    return bytes(data)


def _begin(data):
    return f"{len(data)} bytes that begin with {data[:40]!r}"
