"""Two hosts, one link, and the link is cut while a sweep runs; no byte of the rows may change.

Each host is a network namespace of Linux with an address of its own; a veth pair is the link between them, and they
share the local disk. On the first one run a Ray head with one worker and the driver, on the second a Ray node with
one worker, which starts again when it has ended, as a service manager would do. The link is cut several times: for a
few seconds, which nobody may notice, for as long as a connection bears it or not, and for longer than Ray waits for a
node. After each cut both hosts must compute again. The rows are then compared with those that one process computes
without Ray.

    sudo python benchmarks/two_hosts.py [--images 590] [--seconds 0.8] [--cuts 4 45 75]

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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

TESTS = str(Path(__file__).parent.parent / "tests" / "workflows")
sys.path.insert(0, TESTS)

from heads import RAY, STORE_BYTES, below, end_all, head  # noqa: E402
from lab import SWEEP, Lab, calm, wait_for  # noqa: E402

ADDRESSES = ("10.77.0.1", "10.77.0.2")
WIRE = "wire0"
"""The device at each end of the link."""


def ip(*words: str) -> str:
    """Run ``ip`` and return what it says; its own words are the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


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
    parser.add_argument("--images", type=int, default=590)
    parser.add_argument("--seconds", type=float, default=0.8, help="That each draw of the defence takes.")
    parser.add_argument("--cuts", type=float, nargs="+", default=[4, 45, 75], help="Seconds; Ray waits 60 at most.")
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
                same, status, notes = play(lab, cluster.address, (first, second), node, options.cuts)
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


def play(lab: Lab, address: str, names: tuple[str, str], node: Node, cuts: Sequence[float]) -> tuple[bool, int, str]:
    """Run the sweep and cut the link; whether all happened in time, the driver's status, and what it said."""
    wait_for(lambda: node.joined() > 0)
    driver = lab.start(None, "--address", address)
    told = Timeline(lab)
    told.say("the driver starts on the first host")
    there: set[str] = set()
    """Processes that were ever seen on the second host."""

    def draws() -> Counter[str]:
        """How many draws each process on the second host has begun."""
        there.update(ip("netns", "pids", names[1]).split())
        began = Counter(line.split()[0] for line in lab.log.read_text().splitlines())
        return Counter({process: count for process, count in began.items() if process in there})

    def wait(condition: Callable[[], bool]) -> bool:
        wait_for(lambda: condition() or driver.poll() is not None)
        return driver.poll() is None

    done = wait(lambda: draws().total() > 5)
    told.say("both hosts compute" if done else "THE SWEEP WAS TOO SHORT: give more --images")
    for seconds in cuts:
        ip("-n", names[0], "link", "set", WIRE, "down")
        told.say("the link is cut")
        time.sleep(seconds)
        ip("-n", names[0], "link", "set", WIRE, "up")
        told.say(f"the link is back, after {seconds:g} s")
        before, starts, settled = draws(), node.starts, len(lab.commits())
        # What was under way when the link was cut ends in any case; what counts is work that was given out since.
        done &= wait(lambda: len(lab.commits()) >= settled + 10 and (draws() - before).total() > 10)  # noqa: B023
        if not done:
            told.say("THE SWEEP WAS TOO SHORT: give more --images")
        elif node.starts > starts:
            told.say("both hosts compute again: the node was given up, has found out, and came back")
        elif len(draws()) > len(before):
            told.say("both hosts compute again: the worker was given up and replaced, the node was not")
        else:
            told.say("both hosts compute: nobody has noticed")
    _, notes = driver.communicate(timeout=600)
    told.say("the sweep is complete")
    return done, driver.returncode, notes


if __name__ == "__main__":
    main()
