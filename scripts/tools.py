#!/usr/bin/env python3
"""What the scripts share: building the programs, and installing tools that are missing.

For scripts that are not in Python, `scripts/tools.py TOOL...` installs the Debian packages of the named
tools, and `scripts/tools.py --build` builds the programs.
"""

import fcntl
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = (ROOT / os.environ.get("CARGO_TARGET_DIR", "target")).resolve()

INSTALL_SECONDS = 600
BUILD_SECONDS = 1200

# The Debian package of a command, or of a file.
PACKAGES = {
    "clang": "clang",
    "dpkg-deb": "dpkg",
    "g++": "g++",
    "gcc": "gcc",
    "llvm-strip": "llvm",
    "/usr/include/bpf/bpf_helpers.h": "libbpf-dev",
    "jq": "jq",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "strace": "strace",
    "valgrind": "valgrind",
    "/usr/bin/chromium": "chromium",
    "/usr/bin/firefox-esr": "firefox-esr",
    "/usr/include/boost/beast.hpp": "libboost-dev",
    "/usr/include/libwebsockets.h": "libwebsockets-dev",
    "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/zlib.h": "zlib1g-dev",
}


class Failure(Exception):
    """What went wrong, in words for the person who ran the script."""


def execute(command, seconds=INSTALL_SECONDS, **options):
    """Runs a command without input to its end and returns what is known of it; a status other than 0 is a failure."""
    name = " ".join(map(str, command))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=seconds, **options)
    except subprocess.TimeoutExpired:
        raise Failure(f"{name} was not done after {seconds} s") from None
    if done.returncode != 0:
        raise Failure(f"{name} failed")
    return done


def output(command, seconds=INSTALL_SECONDS):
    """What a command without input prints."""
    return execute(command, seconds, stdout=subprocess.PIPE, text=True).stdout


def built():
    """Builds the programs that the scripts run and returns their directory.

    All scripts use this one command: the features of a dependency depend on what else is built, so another
    command would rebuild everything.
    """
    programs = [word for name in ("ringecho", "ringbench") for word in ("--bin", name)]
    command = ["cargo", "build", "--release", "--locked", "--workspace", *programs]
    execute(command, seconds=BUILD_SECONDS, cwd=ROOT)
    return TARGET / "release"


def install(*tools):
    """Installs the packages of those of the tools that are missing."""
    packages = sorted({PACKAGES[tool] for tool in tools if not is_there(tool)})
    if not packages:
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    # Two installations at once would fail on apt's lock.
    with open(TARGET / "packages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(is_there(tool) for tool in tools):
            return
        print(f"installing {', '.join(packages)}", flush=True)
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", *packages]):
            execute([*root, "env", "DEBIAN_FRONTEND=noninteractive", *command], stdout=subprocess.DEVNULL)


def is_there(tool):
    return Path(tool).exists() if tool.startswith("/") else shutil.which(tool) is not None


def extracted(directory, package, program):
    """Takes a Debian package apart in a directory, unless that is done, and returns the path of the program. Nothing
    is installed, and no service is started."""
    path = directory / program
    if not path.exists():
        install("dpkg-deb")
        print(f"taking {path.name} from the package {package}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        with open(TARGET / "packages.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            execute([*root, "apt-get", "update"], stdout=subprocess.DEVNULL)
            execute(["apt-get", "download", package], cwd=directory, stdout=subprocess.DEVNULL)
        for archive in directory.glob("*.deb"):
            execute(["dpkg-deb", "--extract", archive, directory])
    return path


def node_package(directory, name, version):
    """Installs a package of npm in a directory, unless it is there and works."""
    install("node", "npm")
    question = f"require('{name}'); console.log(require('{name}/package.json').version)"
    command = ["node", "-e", question]
    if _answer(command, directory) == version:
        return
    print(f"installing {name} {version}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    flags = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]
    execute(["npm", "install", *flags, "--prefix", directory, f"{name}@{version}"])
    if _answer(command, directory) != version:
        raise Failure(f"{name} {version} was installed but does not start")


def python_package(directory, name, version, module=None):
    """Installs a package of PyPI in a virtual environment, unless it is there and works; returns the
    directory of its programs."""
    programs = directory / "bin"
    question = f"import importlib.metadata, {module or name}; print(importlib.metadata.version('{name}'))"
    command = [programs / "python", "-c", question]
    if _answer(command, ROOT) == version:
        return programs
    print(f"installing {name} {version}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    execute([sys.executable, "-m", "venv", directory])
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    execute([*pip, f"{name}=={version}"])
    if _answer(command, ROOT) != version:
        raise Failure(f"{name} {version} was installed but does not start")
    return programs


def python_program(directory, package, version, program):
    """Installs a package of PyPI that consists of a program in a virtual environment, unless it is there and
    works; returns the path of the program."""
    path = directory / "bin" / program
    if (_answer([path, "--version"], ROOT) or "").split()[-1:] == [version]:
        return path
    print(f"installing {program} {version}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    execute([sys.executable, "-m", "venv", directory])
    pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    execute([*pip, f"{package}=={version}"])
    if (_answer([path, "--version"], ROOT) or "").split()[-1:] != [version]:
        raise Failure(f"{program} {version} was installed but does not start")
    return path


def _answer(command, directory):
    try:
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def script(name):
    """A script beside this one, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(Path(__file__).with_name(name)))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def split_arguments(words):
    """The words before `--` and those after it, which are for the server."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def run(main):
    """Runs a script's `main` and turns its outcome into the exit status."""
    # Otherwise SIGTERM would end Python at once, and the server would stay.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except (Failure, OSError) as failure:
        sys.exit(f"{Path(sys.argv[0]).name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def main():
    if sys.argv[1:] == ["--build"]:
        built()
        return
    unknown = [tool for tool in sys.argv[1:] if tool not in PACKAGES]
    if unknown:
        raise Failure(f"{', '.join(unknown)}: not one of {', '.join(PACKAGES)}")
    install(*sys.argv[1:])


if __name__ == "__main__":
    run(main)
