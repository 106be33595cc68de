#!/usr/bin/env python3
"""Peers that send to a server as fast as it takes their bytes, until SIGTERM; for `scripts/neighbours`.

`scripts/attackers.py ATTACK PORT` prints a line when all of them are connected, and at its end how many bytes they
sent and received. Sixteen of them discard the echoes, a hundred never read. They spend little CPU time of their own:
what they send lies in one file in memory and leaves by sendfile(2), which does not copy it, and what they receive is
discarded in the kernel (`MSG_TRUNC`, tcp(7)). They do not look at the echoes. An attack that is answered at its end,
such as a refusal, fails.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import zlib

PEERS = 16
PEERS_UNREAD = 100
KIB, MIB = 1 << 10, 1 << 20
# How much of the file a peer sends before the next one has its turn, and discards of what it received.
PART = 64 * KIB
# The socket buffers of peers that never read.
BUFFER_BYTES = 128 * KIB

TEXT, BINARY, RSV1 = 0x81, 0x82, 0x40
KEY = bytes(4)
# What a peer offers decides how its messages are echoed: by the first they are mirrored, by the second they are
# recompressed even by default (docs/internals/compression.md).
MIRRORED = "permessage-deflate; client_max_window_bits"
RECOMPRESSED = "permessage-deflate; server_max_window_bits=9"


def frame(first, payload):
    size = len(payload)
    if size < 126:
        return bytes([first, 0x80 | size]) + KEY + payload
    if size < 1 << 16:
        return bytes([first, 0xFE]) + size.to_bytes(2, "big") + KEY + payload
    return bytes([first, 0xFF]) + size.to_bytes(8, "big") + KEY + payload


def deflated(data):
    """A message of permessage-deflate that refers to nothing before it, so that it can be sent again and again."""
    compress = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (compress.compress(data) + compress.flush(zlib.Z_FULL_FLUSH))[:-4]


def words(size):
    """Text that compresses about as well as prose."""
    state, text = 1, bytearray()
    while len(text) < size:
        state = (state * 1103515245 + 12345) % (1 << 31)
        text += b"%x " % (state >> 8 & 0xFFF)
    return bytes(text[:size])


# What each peer offers, and what it sends again and again.
ATTACKS = {
    "recompressed": lambda: (RECOMPRESSED, frame(TEXT | RSV1, deflated(words(64 * KIB)))),
    "bombs": lambda: (MIRRORED, frame(BINARY | RSV1, deflated(bytes(16 * MIB)))),
    "empty-frames": lambda: (None, frame(BINARY, b"")),
    "large": lambda: (None, frame(BINARY, bytes(16 * MIB))),
    "large-text": lambda: (None, frame(TEXT, b"a" * 16 * MIB)),
    "handshakes": lambda: (None, b""),
    "unread": lambda: (None, frame(BINARY, bytes(64 * KIB))),
}


def request(offer):
    lines = [
        "GET / HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    if offer:
        lines.append(f"Sec-WebSocket-Extensions: {offer}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def connected(port, offer):
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    peer.sendall(request(offer))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += peer.recv(1) or sys.exit("the server closed a connection")
    if not head.startswith(b"HTTP/1.1 101 ") or (offer is not None) != (b"permessage-deflate" in head):
        sys.exit(f"the opening handshake was answered with {head!r}")
    peer.setblocking(False)
    return peer


def stream(port, offer, unit, count, interest):
    """Sends `unit` on `count` connections, as far as they take it, and discards what comes if that is of interest."""
    data = unit * max(1, MIB // len(unit))
    memory = os.memfd_create("attack")
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    peers = [connected(port, offer) for _ in range(count)]
    offsets = dict.fromkeys((peer.fileno() for peer in peers), 0)
    by_number = {peer.fileno(): peer for peer in peers}
    poll = select.epoll()
    for peer in peers:
        if not interest & select.EPOLLIN:
            # Left alone, the kernel's buffers would take gigabytes before the server has to wait.
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                peer.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        poll.register(peer, interest)
    nothing = bytearray(PART)
    print("ready", flush=True)
    while not over:
        for number, events in poll.poll(0.1):
            with contextlib.suppress(BlockingIOError):
                if events & select.EPOLLIN:
                    count = by_number[number].recv_into(nothing, PART, socket.MSG_TRUNC)
                    if count == 0:
                        sys.exit("the server closed a connection")
                    counts["received"] += count
                if events & select.EPOLLOUT:
                    offset = offsets[number]
                    count = os.sendfile(number, memory, offset, min(PART, len(data) - offset))
                    counts["sent"] += count
                    offsets[number] = (offset + count) % len(data)


def reconnect(port):
    """Opens connections, sends a request on each, reads the answer, and resets it."""
    head = request(None)
    linger = struct.pack("ii", 1, 0)
    poll = select.epoll()
    peers = {}

    def begin():
        peer = socket.socket()
        peer.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with contextlib.suppress(BlockingIOError):
            peer.connect(("127.0.0.1", port))
        peers[peer.fileno()] = peer
        poll.register(peer, select.EPOLLOUT)

    for _ in range(PEERS):
        begin()
    print("ready", flush=True)
    while not over:
        for number, events in poll.poll(0.1):
            if events & select.EPOLLIN:
                counts["received"] += len(peers[number].recv(4096))
                poll.unregister(number)
                peers.pop(number).close()
                begin()
            elif events & select.EPOLLOUT:
                counts["sent"] += peers[number].send(head)
                poll.modify(number, select.EPOLLIN)
            else:
                sys.exit("the server refused a connection")


over = False
counts = {"sent": 0, "received": 0}


def main():
    global over
    attack, port = sys.argv[1], int(sys.argv[2])

    def end(*_):
        global over
        over = True

    signal.signal(signal.SIGTERM, end)
    offer, unit = ATTACKS[attack]()
    if attack == "unread":
        stream(port, offer, unit, PEERS_UNREAD, select.EPOLLOUT)
    elif unit:
        stream(port, offer, unit, PEERS, select.EPOLLIN | select.EPOLLOUT)
    else:
        reconnect(port)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
