"""YAML and JSON that would exhaust a machine, or mean one thing to its author and another to us, are refused."""

from __future__ import annotations

import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from loops import every

from defense.errors import InvalidInput
from defense.reading import LARGEST_JSON, parse_json, read_object
from workflows.documents import parse as parser
from workflows.documents.document import document_of, read_document, written
from workflows.documents.parse import LARGEST, NotReadable, decode, parse
from workflows.regression.baselines import from_text


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C parser, and the one of Python that is taken where that is not installed."""
    if request.param == "libyaml" and not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML is installed without libyaml")
    monkeypatch.setattr(parser, "_PARSER", yaml.SafeLoader if request.param == "pure" else yaml.CSafeLoader)


def refused(text: str) -> NotReadable:
    with pytest.raises(NotReadable) as caught:
        parse(text)
    return caught.value


def laughs(first: str, more: str, levels: int) -> str:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {more.replace('*', ', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@every(
    ("text", "line"),
    [
        (laughs("[x, x, x, x, x, x, x, x, x]", "[*]", 9), 6),
        (laughs("x", "[*]", 9), 6),
        (laughs("{x: 1}", "{<<: [*]}", 12), 6),
        ("a0: &a0 {x: y}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}}}\n" for n in range(1, 60)), 51),
        ("[" * 100_000, 1),
        ("a:\n" + "- " * 5_000 + "\n", 2),
        ("{a: " * 5_000, 1),
        ("\n".join("  " * n + f"k{n}:" for n in range(200)), 51),
    ],
)
def test_bombs_are_noticed_before_they_go_off(text: str, line: int) -> None:
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refused(text)
    assert error.line in (line, line + 1, line - 1)
    assert "more than" in error.problem
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_many_values_are_too_many_without_aliases_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "MOST_VALUES", 1_000)
    assert parse("b: [" + "1," * 990 + "]\n").data["b"] == [1] * 990
    assert "more than 1,000 values" in refused("a: 1\nb: [" + "1," * 1_200 + "]\n").problem


def test_aliases_within_the_bound_are_copies_with_lines() -> None:
    found = parse("a: &a [1, 2]\nb: *a\nc: &c 8\nd:\n  e: *c\n")
    assert found.data == {"a": [1, 2], "b": [1, 2], "c": 8, "d": {"e": 8}}
    assert found.data["a"] is not found.data["b"]
    assert (found.lines["b",], found.lines["d", "e"], found.lines["b", 0]) == (2, 5, 1)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n" + "#" * LARGEST)
    with pytest.raises(InvalidInput, match=r"large\.yaml: the sweep file cannot be read: it is larger than 1 MB"):
        read_document(path)


@every(
    "tagged",
    ["!!python/object/apply:os.system [x]", "!!binary aGk=", "!!timestamp 2001-01-01", "!!set {a}", "!foo x"],
)
def test_tags_are_refused_at_their_place(tagged: str) -> None:
    error = refused(f"a: 1\nb:\n  - {tagged}\n")
    assert (error.line, error.column) == (3, 5)
    assert error.problem.startswith(f"the tag {tagged.split()[0]!r} is refused")


@every(
    ("written", "meant"),
    [
        ("no", 'Write `false`, `none` where a name is meant, or "no" in quotes'),
        ("off", "`false`"),
        ("Yes", "`true`"),
        ("ON", "`true`"),
        ("010", "Write 10 (or 8, if octal was meant)"),
        ("08", "Write 8, or"),
        ("00112233", "in quotes if it is text, such as a hash"),
        ("0o17", "write 15"),
        ("0x1F", "write 31"),
        ("0b101", "write 5"),
        ("1:30", "number to base 60"),
        ("1:30:00.5", "number to base 60"),
        ("1_0", "without `_`"),
        (".inf", "give a finite one"),
        ("-.INF", "give a finite one"),
        (".nan", "give a finite one"),
        ("1e999", "beyond all that can be stored"),
        ("12e45678", "text is put in quotes"),
        ("9" * 100_000, "more than 18 digits"),
        ("-" + "9" * 19, "more than 18 digits"),
    ],
)
def test_what_yaml_1_1_and_1_2_read_differently_is_refused(written: str, meant: str) -> None:
    error = refused(f"x: 1\nattacks:\n  - attack: {written}\n")
    assert (error.line, error.column, error.keys) == (3, 13, ("attacks", 0, "attack"))
    assert meant in error.problem
    assert len(error.problem) < 300
    assert parse(f"x: '{written}'").data == {"x": written}


@every(
    ("text", "value"),
    [
        ("2026-11-29", "2026-11-29"),
        ("2001-01-01 10:00:00", "2001-01-01 10:00:00"),
        ("~", None),
        ("null", None),
        ("", None),
        ("True", True),
        ("1_000_000", 1_000_000),
        ("+5", 5),
        ("-0", 0),
        (".5", 0.5),
        ("=", "="),
        ("y", "y"),
        ("4bfd9763", "4bfd9763"),
        ("1.2.3", "1.2.3"),
        ("module:attribute", "module:attribute"),
    ],
)
def test_what_they_agree_on_is_read(text: str, value: Any) -> None:
    found = parse(f"x: {text}").data["x"]
    assert found == value and type(found) is type(value)


@every(
    ("text", "line", "says"),
    [
        ("a: 1\n1: 2\n", 2, "'1' is none; put it in quotes"),
        ("a: 1\n~: 2\n", 2, "a key is a name"),
        ("a: 1\ntrue: 2\n", 2, "a key is a name"),
        ("a: 1\n1.5: 2\n", 2, "a key is a name"),
        ("a: 1\n? [b]\n: 2\n", 2, "not a list or mapping"),
        ("a: 1\n'a': 2\n", 2, "given twice (first in line 1)"),
        ("a: 1\r\nb: 2\r\na: 3\r\n", 3, "given twice"),
        ("&x a: 1\n*x : 2\n", 2, "given twice"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: &x 1\nb: &x 2\n", 2, "is given twice"),
        ("a: 1\nb: *x\n", 2, "there is no anchor `&x`"),
        ("a: 1\nb: &x [1, *x]\n", 2, "hold itself"),
        ("a: 1\nb: {<<: 3}\n", 2, "`<<` takes an alias of a mapping"),
        ("a: 1\nb:\n\tc: 2\n", 3, "begins with a tab: indent by spaces"),
        ("a: 1\nb: 'x\nc: 2\nd: 3\n", 2, "the quote was opened in line 2"),
        ("a: 1\nb: [1,\n  2,\n  3\nc: 2\nd: 3\n", 2, "the bracket was opened in line 2"),
        ("a: 1\nb: x\x00\n", 2, "U+0000"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("a: 1\nb: x # \u2028c: 3\n", 2, "U+2028"),
        ("a: 1\nb: \u202ex\n", 2, "U+202E"),
        ('a: 1\nb: "\\x00"\n', 2, "U+0000"),
        ('a: 1\nb: "\\ud800"\n', 2, ""),
    ],
)
def test_other_traps_have_their_line(text: str, line: int, says: str) -> None:
    error = refused(text)
    assert error.line == line
    assert says in error.problem


def test_encodings() -> None:
    assert decode(b"\xef\xbb\xbfa: 1") == "a: 1"
    for coding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(NotReadable, match="UTF-16 or UTF-32: save it as UTF-8"):
            decode("a: 1\n".encode(coding))
    with pytest.raises(NotReadable, match="byte 0xfc") as caught:
        decode("a: 1\nb: ü\n".encode("latin-1"))
    assert (caught.value.line, caught.value.column) == (2, 4)


class TestOptions:
    """What ``--set`` takes is YAML too."""

    @pytest.mark.parametrize(
        ("setting", "says"),
        [
            ("a=no", "a: the unquoted word 'no'"),
            ("a=[1, {b: 010}]", "a.1.b: the number 010"),
            ("a=" + "[" * 200, "nested too deeply"),
            ("a=!!python/name:os.system", "the tag"),
            (".".join("a" * 100) + "=1", "at most 50 parts"),
            ("a.\u00b2=1", "there is no"),
            ("a." + "9" * 5000 + "=1", "there is no"),
            ("\udc80=1", "UTF-8 text"),
            ("a=\udc80", "UTF-8 text"),
        ],
    )
    def test_refused(self, tmp_path: Path, setting: str, says: str) -> None:
        (tmp_path / "s.yaml").write_text("a: [1, 2]\n")
        with pytest.raises(InvalidInput) as caught:
            read_document(tmp_path / "s.yaml", [setting])
        assert str(caught.value.where).startswith("--set ")
        assert says in caught.value.message

    def test_a_line_break_stays_in_the_comment_of_the_record(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text("a: 1\n")
        document = read_document(tmp_path / "s.yaml", ["a='x\ny: 2'"])
        assert parse(document.text).data == {"a": 1}


class TestPython:
    """Values from Python have the bounds of a file."""

    def test_refused(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        for value, says in (
            (endless, "nested too deeply, more than 50 levels, or holds itself"),
            (range(10**9), "more than 100,000 values"),
            (float("nan"), "give a finite one"),
            (10**30, "more than 18 digits"),
            ("a\x00b", "U+0000"),
            ({1: 2}, "a key is a name, and 1 is none"),
        ):
            with pytest.raises(InvalidInput, match=re.escape(says)):
                document_of({"a": value})

    def test_what_python_writes_is_read_as_the_same(self) -> None:
        values = {
            "texts": [
                "no",
                "010",
                "0o17",
                "0x1f",
                "1:30",
                "1e5",
                "12e45678",
                "2001-01-01",
                "~",
                "",
                "1_0",
                ".inf",
                "é",
            ],
            "numbers": [1, -2, 1e-05, 1e300, 0.1],
            "others": [None, True, {"on": 1}],
        }
        assert parse(written(values)).data == values


def test_variables_bring_a_bounded_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_LONG", "x" * 20_000)
    (tmp_path / "s.yaml").write_text("a: 1\nb: '" + "${PG_LONG}" * 600 + "'\n")
    with pytest.raises(InvalidInput, match="bring more than 10,000,000 characters") as caught:
        read_document(tmp_path / "s.yaml")
    assert caught.value.where == f"{tmp_path / 's.yaml'}:2"


@every(
    ("text", "says"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "beyond all that can be stored"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 100_000 + "}", "digits"),
        ('{"a": 1,}', "line 1 column"),
        (" " * (LARGEST_JSON + 1), "larger than 32 MB"),
    ],
)
def test_json_of_users_is_read_strictly(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
    with pytest.raises(InvalidInput, match=says):
        from_text(text, "--baseline b.json")
    (tmp_path / "config.json").write_text(text)
    if "Infinity" in text:  # as diffusers writes it
        assert read_object(tmp_path / "config.json", "denoiser config") == {"a": float("-inf")}
        return
    with pytest.raises(InvalidInput, match=rf"config\.json.*{says}"):
        read_object(tmp_path / "config.json", "denoiser config")


def test_json_that_is_right_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {}}
    assert parse_json(json.dumps(value)) == value
