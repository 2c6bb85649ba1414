"""Every option and field that names a file, given everything that is none: status 2, a message, nothing computed.

One process for the whole matrix, with a bound on its time: a pipe that is opened waits for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loops import every
from typer.testing import CliRunner, Result

from workflows.cli import app

BASE = """\
sweep: named
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none]
"""
LONG, DEEP = "x" * 300, "y/" * 2500
NO_NAMES = ["", "a\0b", "a\udc80b", LONG, DEEP, "ring"]
NO_FILES = [*NO_NAMES, "folder", "pipe", "socket", "/dev/zero", "/dev/full", "dangling"]
NO_FOLDERS = [*NO_NAMES, "file", "pipe", "socket", "/dev/zero", "dangling"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("n")
    (folder / "file").write_text("text\n")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "socket", 0o600 | 0o140000)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "ring").symlink_to("round")
    (folder / "round").symlink_to("ring")
    (folder / "s.yaml").write_text(BASE)
    return folder


@pytest.fixture(autouse=True)
def bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the folder, with an end to each test and no cluster."""
    monkeypatch.chdir(place)

    def late(*_: object) -> None:
        raise AssertionError("it takes too long: was something opened that has no end?")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a wrong name must be found before any compute")

    monkeypatch.setattr("workflows.engine.execution.Execution.run", never)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr and result.stdout == ""
    message = result.stderr.rstrip("\n")
    assert message.isprintable() and 40 < len(message) < 1500, message
    for words in said:
        assert words in message, message


OPTIONS: dict[str, tuple[Callable[[str], tuple[str, ...]], list[str]]] = {
    "sweep": (lambda name: ("plan", name), NO_FILES),
    "sweep of status": (lambda name: ("status", name), NO_FILES),
    "config": (lambda name: ("train", name), NO_FILES),
    "--store": (lambda name: ("tables", "s.yaml", "--store", name), NO_FOLDERS),
    "--store of run": (lambda name: ("run", "s.yaml", "--store", name), [*NO_FOLDERS, "file/below", "/proc/new"]),
    "--out of report": (lambda name: ("report", "s.yaml", "--out", name), [*NO_FILES, "none/r.html", "file/r.html"]),
    "--out of md": (lambda name: ("report", "s.yaml", "--format", "md", "--out", name), [*NO_FOLDERS, "file/below"]),
    "--out of csv": (
        lambda name: ("tables", "s.yaml", "--format", "csv", "--out", name),
        [*NO_FOLDERS, "file/below"],
    ),
    "--log": (lambda name: ("run", "s.yaml", "--store", "new", "--log", name), [*NO_FILES, "none/log"]),
    "--junit": (lambda name: ("check", "s.yaml", "--baseline", "folder", "--junit", name), [*NO_FILES, "none/j.xml"]),
    "--to": (lambda name: ("promote", "s.yaml", "--to", name), [*NO_FILES, "none/b.json"]),
    "--baseline": (
        lambda name: ("check", "s.yaml", "--baseline", name),
        [*NO_NAMES, "file", "pipe", "socket", "/dev/zero", "dangling", "nowhere"],
    ),
    "RUN": (
        lambda name: ("compare", name, "folder"),
        [*NO_NAMES, "file", "pipe", "socket", "/dev/zero", "dangling", "nowhere"],
    ),
    "--mlflow": (
        lambda name: ("run", "s.yaml", "--store", "new", "--mlflow", f"sqlite:///{name}"),
        [name for name in NO_FILES if name],
    ),
    "--mlflow of train": (
        lambda name: ("train", "t.yaml", "--mlflow", f"sqlite:///{name}"),
        [name for name in NO_FILES if name],
    ),
    "--root": (lambda name: ("data", "verify", "cifar10", "--root", name), NO_FOLDERS),
    "--root of fetch": (lambda name: ("data", "fetch", "cifar10", "--root", name), NO_FOLDERS),
    "--root of lpips": (lambda name: ("data", "fetch", "lpips", "--root", name), NO_FOLDERS),
}


@every("option", OPTIONS)
def test_an_option_that_names_no_file(option: str, place: Path) -> None:
    command, names = OPTIONS[option]
    (place / "t.yaml").write_text(Path(_configs(), "digits-cnn.yaml").read_text().replace("out:", "out: out #"))
    before = sorted(os.listdir(place))
    for name in names:
        refused(call(*command(name)))
    assert sorted(os.listdir(place)) == before, "something was made"


def _configs() -> Path:
    return Path(__file__).parents[2] / "workflows" / "configs"


def quoted(name: str) -> str:
    return '"' + name.encode("unicode_escape", "surrogatepass").decode().replace("\\x00", "\\0") + '"'


FIELDS: dict[str, tuple[str, list[str]]] = {
    "classifiers.0.weights": ("classifiers: [{classifier: resnet20, weights: NAME}]", NO_FILES),
    "defences.0": (
        "defences: [{purifier: diffpure, t_star: 10, steps: 2, denoiser: "
        "{format: diffusers, path: NAME, schedule: ddpm-linear}}]",
        NO_FOLDERS,
    ),
    "defences.0.denoiser": (
        "defences: [{purifier: diffpure, t_star: 10, steps: 2, denoiser: "
        "{format: song-unet, weights: NAME, schedule: ddpm-linear}}]",
        NO_FILES,
    ),
    "energy": ("defences: [{purifier: ebm, energy: {energy: digits-energy, weights: NAME}}]", NO_FILES),
    "datasets.0.root": ("datasets: [{dataset: cifar10, root: NAME, images: {first: 4}}]", NO_FOLDERS),
    "folder.root": ("datasets: [{dataset: folder, root: NAME, images: {first: 4}}]", NO_FOLDERS),
    "folder.classes": ("datasets: [{dataset: folder, root: folder, classes: NAME}]", NO_FILES),
    "corruptions.0.path": (
        "corruptions: [{corruption: fog, severity: 1, origin: official, path: NAME}]",
        [*NO_NAMES, "pipe", "/dev/zero", "dangling"],
    ),
    "corruptions.0.photographs": ("corruptions: [{corruption: frost, severity: 1, photographs: NAME}]", NO_FOLDERS),
    "quality.lpips": ("quality: {lpips: NAME}", NO_FILES),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_names_no_file(field: str, place: Path) -> None:
    line, names = FIELDS[field]
    section = line.partition(":")[0]
    kept = "".join(each for each in BASE.splitlines(keepends=True) if not each.startswith(section))
    (place / "folder" / "test").mkdir(exist_ok=True)
    for name in names:
        (place / "f.yaml").write_text(kept + line.replace("NAME", quoted(name)) + "\n")
        number = len(kept.splitlines()) + 1
        in_yaml = "\0" not in name and "\udc80" not in name  # else the file itself is no text
        refused(call("plan", "f.yaml"), f"f.yaml:{number}: {section if in_yaml else 'not valid YAML'}")


def test_the_folder_of_a_training(place: Path) -> None:
    text = Path(_configs(), "digits-cnn.yaml").read_text()
    for out in NO_FOLDERS:
        lines = [line for line in text.splitlines() if not line.startswith("out:")]
        (place / "o.yaml").write_text("\n".join([*lines, f"out: {quoted(out)}"]))
        refused(call("train", "o.yaml"), "error: o.yaml:")


PLUGINS = {
    "raises": (
        "raise ValueError('of mine\\nsecond line')",
        "its code raises ValueError: of mine, at ",
        "raises.py:1",
    ),
    "leaves": ("import sys\nsys.exit(0)", "its code raises SystemExit: 0, at ", "leaves.py:2"),
    "interrupts": ("\nraise KeyboardInterrupt", "its code raises KeyboardInterrupt", "interrupts.py:2"),
    "base": ("class Odd(BaseException): pass\nraise Odd('no')", "its code raises Odd: no", "base.py:2"),
    "mute": (
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
        "its code raises Mute: (and cannot say why)",
        "mute.py:3",
    ),
    "syntax": ("def f(:\n", "its code raises SyntaxError: ", "syntax.py, line 1"),
    "needs": ("import nobody_has_this", "No module named 'nobody_has_this'", "needs.py:1"),
    "lacks": ("x = 1", "has no attribute 'Part'", ""),
    "odd": (
        "class Odd:\n    def __repr__(self): raise RuntimeError\nPart = Odd()",
        "is an object of Odd; what is named here must be",
        "",
    ),
    "escapes": ("raise ValueError('\\x1b[31mred')", "ValueError: \\x1b[31mred", ""),
}


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_whose_code_fails(module: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, *said = PLUGINS[module]
    folder = place / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    (place / "p.yaml").write_text(BASE.replace("defences: [none]", f"defences: [none, '{module}:Part']"))
    refused(call("plan", "p.yaml"), "p.yaml:4: defences.1", *said)
    sys.modules.pop(module, None)


def test_a_plugin_prints_to_stderr_and_a_slow_one_is_said_to_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "talks.py").write_text(
        textwrap.dedent(
            """
            import threading
            from defense.purifiers.bit_depth import BitDepthConfig

            print("chatter " * 1000)
            [each.join() for each in threading.enumerate() if getattr(each, "interval", 9) < 1]  # what says so


            class Part(BitDepthConfig):
                purifier: str = "talks:Part"
            """
        )
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("defense.registry._SLOW", 0.2)
    (place / "p.yaml").write_text(BASE.replace("defences: [none]", "defences: [{purifier: 'talks:Part', bits: 4}]"))
    result = call("plan", "p.yaml", "--json", "--no-preflight")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("{") and "chatter" not in result.stdout and "chatter" in result.stderr
    assert "note: 'talks:Part' has been importing for 0.2 s; Ctrl-C ends it." in result.stderr


def test_without_plugins_no_module_is_imported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "trap.py").write_text("from pathlib import Path\nPath('sprung').touch()\nraise SystemExit\n")
    monkeypatch.syspath_prepend(str(folder))
    entries = {
        "defences: [none]": "defences: [none, 'trap:Part']",
        "classifiers: [digits-cnn]": "classifiers: ['trap:Part']",
        "attacks: [none]": "attacks: [{attack: ladder, norm: linf, eps: 0.1, rungs: [{attack: 'trap:Part'}]}]",
        "datasets: [{dataset: digits, images: {first: 4}}]": "datasets: [{dataset: 'trap:Part'}]",
    }
    forms = [("plan",), ("run",), ("status",), ("tables",), ("report",), ("compact",), ("track",), ("promote",)]
    commands = [*forms, ("check", "--baseline", "folder")]
    for number, (old, new) in enumerate(entries.items()):
        (place / "t.yaml").write_text(BASE.replace(old, new))
        line = BASE.replace(old, new)[: BASE.replace(old, new).index("trap")].count("\n") + 1
        for name, *options in commands if number == 0 else commands[:1]:
            result = call(name, "t.yaml", "--store", "new", "--no-plugins", *options)
            refused(
                result, f"t.yaml:{line}: ", "'trap' would be imported and run as you, and --no-plugins forbids that"
            )
    refused(call("compare", "t.yaml", "folder", "--no-plugins"), "--no-plugins forbids that")
    config = Path(_configs(), "digits-cnn.yaml").read_text().replace("dataset: digits", "dataset: 'trap:Part'")
    (place / "c.yaml").write_text(config)
    refused(call("train", "c.yaml", "--no-plugins"), "--no-plugins forbids that")
    refused(call("tables", "s.yaml", "--table", "trap:Part", "--no-plugins"), "--no-plugins forbids that")
    assert not (place / "sprung").exists() and "trap" not in sys.modules
    result = call("plan", "s.yaml", "--no-plugins", "--no-preflight")  # one without is as before
    assert result.exit_code == 0, result.stderr


def test_a_name_that_no_terminal_shows(place: Path) -> None:
    (place / "n.yaml").write_text(BASE.replace("sweep: named", 'sweep: "na\\x1b[31mmed"'))
    refused(call("plan", "n.yaml"), "n.yaml:1: not valid YAML: the character U+001B")
    (place / "n.yaml").write_text(BASE.replace("sweep: named", 'sweep: "na\\uD800med"'))
    refused(call("plan", "n.yaml"), "n.yaml:1: ")
    refused(call("plan", "s.yaml", "--set", "sweep=a\udc80"), "--set sweep=a\\udc80: ", "has other bytes")
