"""The server under test, for the scripts beside this file: started on a free port, and ended.

A server started here is always ended, by its own process id, even if a signal ends the script. This
module does not know what is sent to the server.
"""

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from tools import Failure

START_SECONDS = 20
# More than the server may take to drain its connections.
STOP_SECONDS = 30
# The first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
PASSED_FIRST = 3

LISTENING = re.compile(r"ringecho listening on (\S.*) \(engine ")
PORT = re.compile(r"wss?://127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def running(binary, arguments=(), stats_file=None, wrapper=(), log=None, scheme="ws"):
    """Runs `binary` on a free port and yields the port and the process id; ends it with SIGTERM and checks
    its status. It may be told to listen elsewhere too, by `arguments`.

    `wrapper` is a command that precedes the binary and becomes it (`nice`, `strace -D`), `log` a file
    that takes standard error.
    """
    command = [*wrapper, str(binary), "--listen", f"{scheme}://127.0.0.1:0"]
    if scheme == "wss":
        command.append("--tls-self-signed")
    if stats_file is not None:
        command += ["--stats-file", str(stats_file)]
    command += arguments
    with _started(command, log) as process:
        address, *_ = _addresses(process, command)
        yield int(PORT.fullmatch(address)[1]), process.pid


@contextlib.contextmanager
def started(binary, arguments, stats_file):
    """Runs `binary` on a free port and yields the port and its first line; ends it like `running`."""
    command = [str(binary), "--listen", "127.0.0.1:0", "--stats-file", str(stats_file), *arguments]
    with _started(command, None) as process:
        line = _first_line(process, command)
        address, *_ = LISTENING.match(line)[1].split()
        yield int(PORT.fullmatch(address)[1]), line


@contextlib.contextmanager
def listening(binary, addresses, arguments=(), sockets=(), log=None):
    """Runs `binary` on `addresses`, and on listening `sockets` that are passed to it as a service manager
    passes them; yields all that it listens on, as it prints them; ends it like `running`."""
    command = [str(binary), *(word for address in addresses for word in ("--listen", address)), *arguments]
    with contextlib.ExitStack() as stack:
        numbers = []
        for each in sockets:
            # Beyond those into which they are moved.
            numbers.append(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, PASSED_FIRST + len(sockets)))
            stack.callback(os.close, numbers[-1])
        process = stack.enter_context(_started([*_passing(numbers), *command], log, pass_fds=numbers))
        yield _addresses(process, command)


def _passing(numbers):
    """A command that becomes the one behind it, with these descriptors as in sd_listen_fds(3)."""
    if not numbers:
        return []
    moves = " ".join(f"{to}<&{number}-" for to, number in enumerate(numbers, PASSED_FIRST))
    variables = f"LISTEN_PID=$$ LISTEN_FDS={len(numbers)}"
    return ["bash", "-c", f'exec {moves}; {variables} exec "$@"', "bash"]


@contextlib.contextmanager
def _started(command, log, **options):
    """Starts a server, and ends it."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(open(log, "wb")) if log else None
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0, **options
        )
        try:
            yield process
        finally:
            ended_before = _is_over(process)
            _end(process)
            # If the server has ended, that explains any other failure.
            if ended_before:
                said = Path(log).read_text(errors="replace")[-2000:] if log else ""
                raise Failure(
                    f"the server ended by itself, with status {process.returncode}\n{said}".rstrip()
                )
    if process.returncode != 0:
        raise Failure(f"the server ended with status {process.returncode} after SIGTERM, not 0")


@contextlib.contextmanager
def stopped(process):
    """Stops the server by its process id, so that it sees all at once what is sent meanwhile."""
    os.kill(process, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + STOP_SECONDS
        while any(_state(thread) not in "Tt" for thread in Path(f"/proc/{process}/task").iterdir()):
            if time.monotonic() > deadline:
                raise Failure(f"the server was not stopped {STOP_SECONDS} s after SIGSTOP")
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def _state(thread):
    """The letter after the name, which is in parentheses, in proc_pid_stat(5)."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def _addresses(process, command):
    """Where it listens, from its first line."""
    return LISTENING.match(_first_line(process, command))[1].split()


def _first_line(process, command):
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    if not readable:
        raise Failure(f"the server printed nothing within {START_SECONDS} s: {' '.join(command)}")
    line = process.stdout.readline().decode(errors="replace").strip()
    if LISTENING.match(line) is None:
        raise Failure(f"the server's first line was {line!r}: {' '.join(command)}")
    return line


def _is_over(process):
    # A server that aborts resets its connections a moment before it can be waited for.
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process):
    process.terminate()
    try:
        # Also reads what the server prints at its end, so that a full pipe does not block it.
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failure(f"the server was still running {STOP_SECONDS} s after SIGTERM") from None


def stats(path):
    """The counters that the server wrote at its end, summed over its workers."""
    return json.loads(Path(path).read_text())["total"]
