"""Two hosts, one link, and the link is cut while a sweep runs; no byte of the rows may change.

Each host is a network namespace of Linux with an address of its own; a veth pair is the link between them, and they
share the local disk. On the first one run a Ray head with one worker and the driver, on the second a Ray node with
one worker, which starts again when it has ended, as a service manager would do. The link is cut twice: for a few
seconds, which nobody may notice, and for longer than Ray waits for a node. The rows are then compared with those that
one process computes without Ray.

    sudo python benchmarks/two_hosts.py [--images 400] [--seconds 0.4] [--blink 4] [--cut 75]

Needs root, Linux and iproute2. Nothing outside the two namespaces is touched, and both are removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

TESTS = str(Path(__file__).parent.parent / "tests" / "workflows")
sys.path.insert(0, TESTS)

from heads import RAY, STORE_BYTES, below, end_all, head  # noqa: E402
from lab import SWEEP, Lab, calm, wait_for  # noqa: E402

ADDRESSES = ("10.77.0.1", "10.77.0.2")
WIRE = "wire0"
"""The device at each end of the link."""


def ip(*words: str) -> None:
    """Run ``ip``; its own words are the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces with a link between them."""
    names = [f"puregrid{number}-{os.getpid()}" for number in (1, 2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", WIRE, "netns", names[0], "type", "veth", "peer", "name", WIRE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", WIRE)
            for device in ("lo", WIRE):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


class Node:
    """A Ray node in a namespace that is started again whenever it ends."""

    def __init__(self, host: str, address: str, log: Path) -> None:
        self._command = [
            *("ip", "netns", "exec", host, RAY, "start", "--block", f"--address={address}"),
            *(f"--node-ip-address={ADDRESSES[1]}", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"),
        ]
        self._log = log
        log.touch()
        self._ends = threading.Event()
        self.starts = 0
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _keep(self) -> None:
        with self._log.open("ab") as log:
            while not self._ends.is_set():
                self.starts += 1
                self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
                while self._process.poll() is None and not self._ends.wait(0.2):
                    pass
                end_all(below(self._process.pid))
                self._process.wait()

    def joined(self) -> int:
        """How often it has come so far that it was a node of the cluster."""
        return self._log.read_text().count("Ray runtime started")

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


class Timeline:
    """What happened when, with the units that were committed by then."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {len(self._lab.commits()):4d} units  {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.4, help="That each draw of the defence takes.")
    parser.add_argument("--blink", type=float, default=4, help="Seconds of the short cut.")
    parser.add_argument("--cut", type=float, default=75, help="Seconds of the long cut; Ray waits 60 at most.")
    options = parser.parse_args()
    sweep = (
        SWEEP.replace("first: 120", f"first: {options.images}")
        .replace("0.15", str(options.seconds))
        .replace("chunk: 10", "chunk: 5")
    )
    with tempfile.TemporaryDirectory() as folder, hosts() as (first, second):
        inside = ("ip", "netns", "exec", first)
        lab = Lab(Path(folder), "store", sweep=sweep, inside=inside)
        with patch.dict(os.environ, lab.environment), head(1, ip=ADDRESSES[0], inside=inside) as cluster:
            node = Node(second, cluster.address, Path(folder) / "node.log")
            try:
                same, status, notes = play(lab, cluster.address, first, node, options)
            finally:
                node.end()
        expected = calm(Path(folder) / "calm", sweep)
        found = lab.data()
        print(
            f"driver ended with {status}, the node started {node.starts} times; {len(set(lab.attempts().values()))} "
            f"commits, {len(found)} files {'equal byte for byte' if found == expected else 'DIFFER'}"
        )
        if status or found != expected or not same:
            raise SystemExit(notes[-3000:])


def play(lab: Lab, address: str, host: str, node: Node, options: argparse.Namespace) -> tuple[bool, int, str]:
    """Run the sweep and cut the link; whether all happened in time, the driver's status, and what it said."""
    wait_for(lambda: node.joined() > 0)
    driver = lab.start(None, "--address", address)
    told = Timeline(lab)
    told.say("the driver starts on the first host")

    def wait(condition: Callable[[], bool]) -> bool:
        wait_for(lambda: condition() or driver.poll() is not None, 300)
        return driver.poll() is None

    def processes() -> set[str]:
        return {line.split()[0] for line in lab.log.read_text().splitlines()}

    def cut(seconds: float) -> None:
        ip("-n", host, "link", "set", WIRE, "down")
        told.say("the link is cut")
        time.sleep(seconds)
        ip("-n", host, "link", "set", WIRE, "up")
        told.say(f"the link is back, after {seconds:g} s")

    done = wait(lambda: len(processes()) == 2)
    told.say("both hosts compute")
    cut(options.blink)
    at = len(lab.commits())
    done &= wait(lambda: len(lab.commits()) >= at + 10)
    done &= node.starts == 1 and len(processes()) == 2
    told.say("nobody has noticed" if done else "SOMEBODY HAS NOTICED")
    cut(options.cut)
    done &= wait(lambda: node.joined() >= 2)
    told.say("the node on the second host was given up, has found out, and is back")
    done &= wait(lambda: len(processes()) >= 3)
    told.say("both hosts compute again" if done else "THE SWEEP WAS TOO SHORT: give more --images")
    _, notes = driver.communicate(timeout=600)
    told.say("the sweep is complete")
    return done, driver.returncode, notes


if __name__ == "__main__":
    main()
