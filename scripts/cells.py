"""The matrix that `scripts/performance` measures: every cell, the servers in it, and its command.

A cell is one comparison of `ringbench`, or one count of memory. This module runs nothing.
"""

import collections

KIB, MIB = 1024, 1024 * 1024

RINGECHO = "target/release/ringecho --listen 127.0.0.1:{port} --workers 1 --cpus 0"
RINGECHO_TCP = "target/release/ringecho --listen 127.0.0.1:{tcp-port} --workers 1 --cpus 0 --protocol tcp"

# The servers of this repository, by the names that the tables show. The first is what a new user runs.
OURS = {
    "ringecho": RINGECHO,
    "block": f"{RINGECHO} --wait block",
    "spin": f"{RINGECHO} --wait spin",
    "epoll": f"{RINGECHO} --engine epoll",
    "epoll-block": f"{RINGECHO} --engine epoll --wait block",
    "epoll-spin": f"{RINGECHO} --engine epoll --wait spin",
    "tokio-uring": f"{RINGECHO} --engine tokio-uring",
    "offload-on": f"{RINGECHO} --wait block --offload on",
    "offload-auto": f"{RINGECHO} --wait block --offload auto",
    "deflate": f"{RINGECHO} --wait block --compression deflate",
    "ringecho-tcp": f"{RINGECHO_TCP} --wait block",
    "epoll-tcp": f"{RINGECHO_TCP} --engine epoll --wait block",
}
# The libraries that are fastest somewhere, for `--quick`.
QUICK_PEERS = ("uwebsockets", "fastwebsockets", "tokio-tungstenite")
# Those that `docs/offload.md` compares with an echo in the kernel.
OFFLOAD_PEERS = ("uwebsockets", "fastwebsockets", "tungstenite", "ws")

# `reference` is the server that ratios are to. `quick` says whether `--quick` measures the cell too.
Cell = collections.namedtuple("Cell", "name title group figure reference servers options quick")


def written(size):
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def load(connections, pipeline, size, quick=False, **options):
    """A closed loop: as fast as echoes come back."""
    words = {"connections": connections, "pipeline": pipeline, "mix": size, **options}
    if size >= 64 * KIB:
        # The client compares bytes more slowly than a server echoes them; it still checks every length.
        words["verify-every"] = 64
    title = f"{connections:,} × {pipeline} in flight, {written(size)}"
    ours = ("block", "ringecho-tcp")
    name = f"load-{connections}x{pipeline}-{size}"
    return Cell(name, title, "load", "CPU time", "block", ours, words, quick)


def round_trip(size, quick=False):
    title = f"round trip, {written(size)}"
    ours = ("ringecho", "block", "spin")
    return Cell(f"rtt-{size}", title, "rtt", "p50", "ringecho", ours, {"size": size}, quick)


def sparse(name, title, default, blocking):
    """An open loop in which spinning never pays. Only what ringecho's own ways to wait cost is compared."""
    words = {"connections": 1, "mix": 16, "rate": 100}
    return Cell(name, f"100 messages a second, 16 B{title}", "sparse", "CPU time", blocking, (default,), words, True)


def deflated(size, pipeline=1, quick=True):
    words = {"connections": 1, "pipeline": pipeline, "mix": size, "compress": True}
    several = f", {pipeline} in flight" if pipeline > 1 else ""
    title = f"permessage-deflate, {written(size)}{several}"
    name = f"deflate-1x{pipeline}-{size}" if pipeline > 1 else f"deflate-{size}"
    return Cell(name, title, "deflate", "CPU time", "block", ("block", "deflate"), words, quick)


def engines(connections):
    """The engines against each other, and what their plain echoes cost."""
    title = "one connection, 16 B" if connections == 1 else f"{connections:,} × 1 in flight, 16 B"
    words = {"size": 16} if connections == 1 else {"connections": connections, "mix": 16}
    ours = ("tokio-uring", "epoll-block", "ringecho-tcp", "epoll-tcp", "ringecho", "epoll")
    return Cell(f"engines-{connections}", title, "engines", "CPU time", "block", ours, words, False)


def offloading(name, title, **options):
    """When it pays that the kernel echoes by itself."""
    return Cell(f"offload-{name}", title, "offload", "p50", "block", ("offload-on", "offload-auto"), options, False)


CELLS = (
    round_trip(16, quick=True),
    Cell("rtt-16-epoll", "round trip, 16 B, epoll engine", "epoll", "p50", "epoll", ("epoll", "epoll-block", "epoll-spin"), {"size": 16}, True),
    round_trip(KIB),
    round_trip(4 * KIB),
    round_trip(64 * KIB),
    load(1, 16, 16, quick=True),
    load(64, 1, 16, quick=True),
    load(64, 4, 16),
    load(64, 16, 16, quick=True),
    load(1000, 1, 16, quick=True),
    load(1000, 4, 16),
    load(10_000, 1, 16, quick=True),
    load(100, 1, 16, quick=True),
    load(64, 1, KIB, quick=True),
    load(64, 16, KIB),
    load(1000, 1, KIB),
    load(8, 4, 4 * KIB, quick=True),
    load(64, 1, 4 * KIB),
    load(1000, 1, 4 * KIB),
    load(8, 1, 16 * KIB, quick=True),
    load(64, 1, 16 * KIB),
    load(8, 1, 64 * KIB, quick=True),
    load(64, 1, 64 * KIB),
    load(4, 1, MIB, quick=True),
    load(64, 1, MIB),
    load(1, 1, 16 * MIB, quick=True),
    # The rate comes from the closed loop of the same connections: half of the slowest server's.
    Cell("open-64-16", "64 connections, 16 B, at a fixed rate", "open", "p50", "ringecho", ("ringecho", "block"), {"connections": 64, "mix": 16}, True),
    sparse("sparse-16", "", "ringecho", "block"),
    sparse("sparse-16-epoll", ", epoll engine", "epoll", "epoll-block"),
    deflated(16),
    deflated(KIB),
    deflated(KIB, pipeline=16),
    deflated(64 * KIB),
    # Each message has a connection of its own: its handshake and its close cost more than the echo.
    Cell("handshakes", "handshakes, a message each, 16 at a time", "handshakes", "CPU time", "block", ("block",), {"connections": 16, "mix": 16, "reconnect-every": 1}, True),
    engines(1),
    engines(64),
    engines(1000),
    Cell("offloaded-16", "round trip, 16 B", "offloaded", "p50", "offload-on", ("block", "spin"), {"size": 16}, False),
    offloading("16", "round trip, 16 B", size=16),
    offloading("4096", "round trip, 4 KiB", size=4 * KIB),
    offloading("16384", "round trip, 16 KiB", size=16 * KIB),
    offloading("20000", "round trip, 20,000 B, too large for the program", size=20_000),
    offloading("4x1", "4 × 1 in flight, 16 B", connections=4, mix=16),
    offloading("64x1", "64 × 1 in flight, 16 B", connections=64, mix=16),
    offloading("1x2", "1 × 2 in flight, 16 B", connections=1, pipeline=2, mix=16),
    offloading("1x16", "1 × 16 in flight, 16 B", connections=1, pipeline=16, mix=16),
    offloading("fragments", "1 × 1, one message in ten in fragments", connections=1, mix="16*9,1024:fragments=4"),
    offloading("large", "1 × 1, one message in 31 too large", connections=1, mix="16*30,20000"),
    Cell("idle-memory", "memory per idle connection", "memory", "bytes", "block", ("block",), {"connections": 2000}, True),
)

# The cell whose rates set that of the open loop.
CAPACITY = "load-64x1-16"


def servers(cell, peers, floors, compressing):
    """The servers of a cell as `NAME=COMMAND`, the reference first."""
    ours = {name: OURS[name] for name in (cell.reference, *cell.servers)}
    if cell.group in ("sparse", "engines", "offload"):
        peers = []
    if cell.group == "offloaded":
        peers = [name for name in peers if name in OFFLOAD_PEERS]
    if cell.group == "deflate":
        peers = [name for name in peers if name in compressing]
    others = {name: f"target/peers/{name} {{port}}" for name in peers}
    if cell.group == "rtt":
        others |= {name: f"target/peers/{name} {{tcp-port}}" for name in floors}
    elif cell.group == "load":
        others |= {name: f"target/peers/{name} {{tcp-port}}" for name in floors if name == "tcp-epoll"}
    if cell.options.get("connections", 1) >= 1000:
        # A thread for each connection measures the scheduler.
        others.pop("tungstenite", None)
    if cell.options.get("connections", 1) >= 10_000:
        # Opening and closing the connections takes most of a turn.
        ours.pop("ringecho-tcp", None)
        others = {name: command for name, command in others.items() if name == "uwebsockets"}
    return {**ours, **others}


def command(cell, peers, rounds, seconds, output):
    """The words of `ringbench compare` for a cell."""
    options = dict(cell.options)
    if "size" in options:
        words = ["--messages", 3000 if options["size"] <= 20_000 else 500]
    else:
        words = ["--load", f"{int(seconds * 1000)}ms"]
        options.setdefault("rate", "max")
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", value]
    words += ["--rounds", rounds, "--server-cpus", "0", "-o", output]
    targets = [f"{name}={command}" for name, command in peers.items()]
    return ["target/release/ringbench", "compare", *map(str, words), *targets]
