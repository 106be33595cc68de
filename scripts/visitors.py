#!/usr/bin/env python3
"""Peers that come and go in every way that a peer may, for `scripts/soak`.

`scripts/visitors.py PORT SECONDS SEED` keeps 24 connections to a server on this machine. Each follows one of the scripts
below, chosen at random, and compares every byte that it receives. After SECONDS no more begin, and when the last has
ended, it prints what was counted as JSON:

- `visits`: the connections by script;
- `frames_min`, `frames_max`: whole frames whose answer was received, and that were sent; they differ only because of
  connections that were reset;
- `messages_min`, `messages_max`: the same for messages;
- `violations`, `rejected`: broken rules that the server has answered, and refused handshakes;
- `given_up`: connections that the server has reset although they only sent without reading.

An answer that differs, or that does not come within 30 s, ends it with status 1 and one line. Epoll and
generators do the waiting: a script yields the events or the time that it waits for.
"""

import collections
import contextlib
import ctypes
import heapq
import itertools
import json
import random
import select
import socket
import struct
import sys
import time

PEERS = 24
WAIT_SECONDS = 30
KIB = 1 << 10

TEXT, BINARY, CLOSE, PING, PONG, FIN = 0x81, 0x82, 0x88, 0x89, 0x8A, 0x80
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
GOODBYE = (1000).to_bytes(2, "big")
PROTOCOL_ERROR = (1002).to_bytes(2, "big")

# Of a socket (socket(7)), which Python does not name.
SO_ATTACH_FILTER = 26
# Programs of classic BPF (linux/filter.h) that say how much of a packet the socket gets: nothing; or nothing of one in
# sixteen, at random.
DEAF = [(0x06, 0, 0, 0)]
LOSSY = [(0x20, 0, 0, 0xFFFFF038), (0x35, 1, 0, 0xFFFFFFFF // 16), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]


class Wrong(Exception):
    """The server's answer is not what it must be."""


def header(first, size, mask_bit):
    if size < 126:
        return bytes([first, mask_bit | size])
    if size < 1 << 16:
        return bytes([first, mask_bit | 126]) + size.to_bytes(2, "big")
    return bytes([first, mask_bit | 127]) + size.to_bytes(8, "big")


def frame(first, payload):
    """A client's frame, with a random key."""
    size, key = len(payload), random.randbytes(4)
    keys = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")
    return header(first, size, 0x80) + key + masked


def reply(first, payload):
    return header(first, len(payload), 0) + payload


def payload(first, size):
    if first & 0xF == TEXT & 0xF:
        return (b"%016x" % random.getrandbits(64) * (size // 16 + 1))[:size]
    return random.randbytes(size)


def begin(data):
    return f"{len(data)} bytes that begin with {bytes(data[:24])!r}"


class Peer:
    """One connection, and what is known of its frames: how many were sent whole, and how many are answered."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.sent = collections.Counter()
        self.answered = collections.Counter()
        self.events = collections.Counter()

    def send(self, data):
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                yield select.EPOLLOUT

    def receive(self, size):
        data = bytearray()
        while len(data) < size:
            try:
                part = self.socket.recv(min(size - len(data), 256 * KIB))
            except BlockingIOError:
                yield select.EPOLLIN
                continue
            if not part:
                raise Wrong(f"the server ended after {begin(data)}, not {size} bytes")
            data += part
        return bytes(data)

    def expect(self, expected):
        data = yield from self.receive(len(expected))
        if data != expected:
            raise Wrong(f"got {begin(data)} instead of {begin(expected)}")

    def expect_end(self):
        while True:
            try:
                rest = self.socket.recv(256 * KIB)
            except BlockingIOError:
                yield select.EPOLLIN
                continue
            if rest:
                raise Wrong(f"after the end came {begin(rest)}")
            return

    def handshake(self):
        yield from self.send(REQUEST)
        yield from self.expect(RESPONSE)

    def say(self, first, data):
        """Sends a frame; it counts as sent when its last byte is."""
        yield from self.send(frame(first, data))
        self.sent += counts(first)

    def hear(self, first, data):
        """Receives the answer to a frame."""
        yield from self.expect(reply(PONG if first == PING else first, data))
        self.answered += counts(first)

    def echo(self, first, data):
        yield from self.say(first, data)
        yield from self.hear(first, data)

    def close(self):
        yield from self.echo(CLOSE, GOODBYE)
        yield from self.expect_end()

    def reset(self):
        """Ends with a reset instead of FIN, which also drops what has not left."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def filter(self, program):
        """Has the socket get only some packets."""
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *it) for it in program))
        described = struct.pack("HP", len(program), ctypes.addressof(code))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def counts(first):
    """What the server counts for a frame: also a message, if it ends one."""
    ends_message = first & FIN and first & 0xF < 0x8
    return collections.Counter(frames=1, messages=1 if ends_message else 0)


def any_message():
    first = random.choice((TEXT, BINARY))
    size = random.choice((0, 1, 16, 16, 16, 125, 126, 1000, 1000, 5000, 16384, 65535, 70_000, 300_000))
    return first, payload(first, size)


def talks(peer):
    """Messages of all sizes, one at a time, some in fragments."""
    yield from peer.handshake()
    for _ in range(random.randrange(1, 30)):
        first, data = any_message()
        pieces = random.choice((1, 1, 1, 2, 5))
        if pieces > 1:
            cuts = sorted(random.randint(0, len(data)) for _ in range(pieces - 1))
            parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
            frames = [(first if n == 0 else 0, part) for n, part in enumerate(parts)]
            frames = [(kind & ~FIN, part) for kind, part in frames]
            frames[-1] = (frames[-1][0] | FIN, frames[-1][1])
        else:
            frames = [(first, data)]
        for each in frames:
            yield from peer.say(*each)
        for each in frames:
            yield from peer.hear(*each)
    yield from peer.close()


def chats(peer):
    """Short messages one by one, which the kernel echoes by itself if it may, and a few at a time."""
    yield from peer.handshake()
    for _ in range(random.randrange(300)):
        kinds = [(random.choice((TEXT, BINARY)), random.choice((0, 5, 16, 100))) for _ in range(random.choice((1, 1, 1, 3)))]
        messages = [(first, payload(first, size)) for first, size in kinds]
        for each in messages:
            yield from peer.say(*each)
        for each in messages:
            yield from peer.hear(*each)
    yield from peer.close()


def pings(peer):
    """Pings between messages and between fragments, no more than a patient client would send."""
    yield from peer.handshake()
    for _ in range(random.randrange(1, 15)):
        yield from peer.say(BINARY & ~FIN, b"before")
        ping = random.randbytes(random.randrange(126))
        yield from peer.say(PING, ping)
        yield from peer.hear(BINARY & ~FIN, b"before")
        yield from peer.hear(PING, ping)
        yield from peer.echo(FIN, b"after")
        yield 0.03
    yield from peer.close()


def dawdles(peer):
    """Sends a byte at a time."""
    data = payload(TEXT, 40)
    for byte in REQUEST + frame(TEXT, data):
        yield from peer.send(bytes([byte]))
        yield 0.002
    peer.sent += counts(TEXT)
    yield from peer.expect(RESPONSE)
    yield from peer.hear(TEXT, data)
    yield from peer.close()


def reads_slowly(peer):
    """Reads so slowly that the server has to wait, and gets every byte in the end."""
    # With much less, the server's kernel would wait for timers instead of the peer.
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
    yield from peer.handshake()
    messages = [(BINARY, payload(BINARY, 32 * KIB)) for _ in range(80)]
    data = b"".join(frame(*each) for each in messages)
    expected = b"".join(reply(*each) for each in messages)
    sent = got = 0
    while got < len(expected):
        moved = 0
        with contextlib.suppress(BlockingIOError):
            moved = peer.socket.send(memoryview(data)[sent : sent + 64 * KIB]) if sent < len(data) else 0
            sent += moved
        with contextlib.suppress(BlockingIOError):
            part = peer.socket.recv(8 * KIB)
            if part != expected[got : got + len(part)] or not part:
                raise Wrong(f"after {got} bytes came {begin(part)} instead of {begin(expected[got:])}")
            got += len(part)
            moved += len(part)
        yield 0.005 if moved else select.EPOLLIN | (select.EPOLLOUT if sent < len(data) else 0)
    for first, _ in messages:
        peer.sent += counts(first)
        peer.answered += counts(first)
    yield from peer.close()


def never_reads(peer):
    """Sends until nothing more is taken, stays for a while, and resets."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.socket.setsockopt(socket.SOL_SOCKET, option, 64 * KIB)
    yield from peer.handshake()
    first, size = random.choice(((BINARY, 300_000), (BINARY, 100_000), (TEXT, 100_000)))
    message = frame(first, payload(first, size))
    data = message * max(1, 64 * KIB // len(message))
    sent, refusals = 0, 0
    try:
        while refusals < 20 and sent < 16 << 20:
            try:
                sent += peer.socket.send(data[sent % len(message) :])
                refusals = 0
            except BlockingIOError:
                refusals += 1
                yield 0.02
    except (ConnectionResetError, BrokenPipeError):
        peer.events["given_up"] += 1
    whole = sent // len(message)
    peer.sent += collections.Counter(frames=whole, messages=whole)
    yield random.uniform(0.1, 1)
    peer.reset()


def vanishes(peer):
    """Gets no packet any more and so acknowledges nothing, for a while; then it resets."""
    yield from peer.handshake()
    yield from peer.echo(TEXT, b"still here")
    peer.filter(DEAF)
    for _ in range(random.randrange(3)):
        yield from peer.say(BINARY, b"unheard")
    yield random.uniform(0.2, 2)
    peer.reset()


def loses_packets(peer):
    """Loses one packet in sixteen."""
    yield from peer.handshake()
    peer.filter(LOSSY)
    for _ in range(random.randrange(1, 20)):
        messages = [(BINARY, payload(BINARY, random.choice((5, 16, 100)))) for _ in range(random.randrange(1, 6))]
        for each in messages:
            yield from peer.say(*each)
        for each in messages:
            yield from peer.hear(*each)
    yield from peer.close()


def resets(peer):
    """Resets in one state or another."""
    peer.reset()
    state = random.randrange(8)
    if state == 0:
        return
    if state <= 2:
        return (yield from peer.send(REQUEST[: random.randrange(1, len(REQUEST))] if state == 1 else REQUEST))
    yield from peer.handshake()
    for _ in range(random.randrange(4)):
        yield from peer.echo(TEXT, b"hello")
    if state == 3:
        yield from peer.send(frame(TEXT, b"half of this")[: random.randrange(1, 17)])
    elif state == 4:
        yield from peer.send(frame(BINARY, bytes(100_000))[: random.randrange(1, 100_000)])
    elif state == 5:
        for _ in range(random.randrange(1, 6)):
            yield from peer.say(BINARY, b"unread")
    elif state == 6:
        yield from peer.say(CLOSE, GOODBYE)
    elif state == 7:
        yield from peer.say(BINARY, bytes(300_000))


def leaves(peer):
    """Ends without a close frame."""
    yield from peer.handshake()
    yield from peer.echo(BINARY, b"hello")
    if random.randrange(2):
        peer.socket.shutdown(socket.SHUT_WR)
        yield from peer.expect_end()


def breaks_a_rule(peer):
    """Sends a frame without a mask, and is told so."""
    yield from peer.handshake()
    yield from peer.echo(TEXT, b"hello")
    yield from peer.send(reply(TEXT, b"not masked"))
    head = yield from peer.receive(4)
    if head[0] != CLOSE or head[2:] != PROTOCOL_ERROR:
        raise Wrong(f"a broken rule was answered with {head!r}")
    yield from peer.receive(head[1] - 2)
    yield from peer.expect_end()
    peer.events["violations"] += 1


def is_refused(peer):
    """Asks for something else than WebSocket."""
    yield from peer.send(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = yield from peer.receive(12)
    if not head.startswith(b"HTTP/1.1 4"):
        raise Wrong(f"a plain request was answered with {head!r}")
    while True:
        try:
            if not peer.socket.recv(KIB):
                break
        except BlockingIOError:
            yield select.EPOLLIN
    peer.events["rejected"] += 1


SCRIPTS = {
    talks: 8,
    chats: 8,
    pings: 2,
    dawdles: 1,
    reads_slowly: 1,
    never_reads: 1,
    vanishes: 1,
    loses_packets: 1,
    resets: 8,
    leaves: 2,
    breaks_a_rule: 1,
    is_refused: 1,
}


class Visit:
    """A peer that follows a script."""

    def __init__(self, port):
        self.peer = Peer(port)
        script = random.choices(list(SCRIPTS), list(SCRIPTS.values()))[0]
        self.name = script.__name__
        self.steps = script(self.peer)
        self.since = time.monotonic()

    def step(self):
        """Goes on as far as possible; returns what it waits for, or nothing at its end."""
        self.since = time.monotonic()
        try:
            return next(self.steps, None)
        except (Wrong, OSError) as problem:
            raise Wrong(f"{self.name}: {problem}") from problem


class Visits:
    """All visits, and what was counted of those that are over."""

    def __init__(self, port):
        self.port = port
        self.poll = select.epoll()
        self.waiting = {}
        self.timers = []
        self.numbers = itertools.count()
        self.names = collections.Counter()
        self.totals = collections.Counter()

    def begin(self):
        visit = Visit(self.port)
        self.names[visit.name] += 1
        self.poll.register(visit.peer.socket, 0)
        self.go_on(visit)

    def go_on(self, visit):
        number = visit.peer.socket.fileno()
        want = visit.step()
        if want is None:
            self.poll.unregister(number)
            self.waiting.pop(number, None)
            self.end(visit.peer)
        elif isinstance(want, float):
            self.waiting[number] = visit
            # A peer that is reset is reported whatever it waits for, so it is not asked about.
            self.poll.modify(number, select.EPOLLONESHOT)
            heapq.heappush(self.timers, (time.monotonic() + want, next(self.numbers), visit))
        else:
            self.waiting[number] = visit
            self.poll.modify(number, want | select.EPOLLONESHOT)

    def end(self, peer):
        peer.socket.close()
        self.totals += peer.events
        for kind in ("frames", "messages"):
            self.totals[f"{kind}_min"] += peer.answered[kind]
            self.totals[f"{kind}_max"] += peer.sent[kind]

    def wait(self):
        """Waits for something to happen, and goes on with whom it happened to."""
        now = time.monotonic()
        timeout = min(0.1, max(0, self.timers[0][0] - now)) if self.timers else 0.1
        resting = {visit for _, _, visit in self.timers}
        for number, _ in self.poll.poll(timeout):
            visit = self.waiting[number]
            if visit not in resting:
                self.go_on(visit)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            self.go_on(heapq.heappop(self.timers)[2])
        for visit in self.waiting.values():
            if now - visit.since > WAIT_SECONDS:
                raise Wrong(f"{visit.name}: nothing came for {WAIT_SECONDS} s")


def main():
    port, seconds, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    random.seed(seed)
    visits = Visits(port)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or visits.waiting:
            while len(visits.waiting) < PEERS and time.monotonic() < end:
                visits.begin()
            visits.wait()
    except (Wrong, OSError) as problem:
        sys.exit(f"visitors: seed {seed}: {problem}")
    keys = ("frames_min", "frames_max", "messages_min", "messages_max", "violations", "rejected", "given_up")
    print(json.dumps({"visits": visits.names, **{key: visits.totals[key] for key in keys}}))


if __name__ == "__main__":
    main()
