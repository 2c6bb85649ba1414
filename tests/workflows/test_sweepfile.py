"""Reading YAML so that every value knows its line, with overrides and environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from defense.errors import InvalidInput
from workflows.documents.document import Document, read_document


def _read(folder: Path, text: str, *overrides: str) -> Document:
    path = folder / "some.yaml"
    path.write_text(text)
    return read_document(path, overrides)


def _refused(folder: Path, text: str, *overrides: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        _read(folder, text, *overrides)
    return caught.value


NESTED = """\
# a comment
sweep: lines
datasets:
  - dataset: digits
    images: {first: 5}
  - digits

attacks:
  - attack: pgd
    eps:
      - 0.1
      - 0.2
"""


class TestValues:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1e-3", 1e-3),
            ("1E-3", 1e-3),
            ("1e3", 1000.0),
            ("-2e-1", -0.2),
            ("1.5e3", 1500.0),
            ("2.e-2", 0.02),
            ("0.031", 0.031),
        ],
    )
    def test_exponents_without_a_point_are_floats(self, tmp_path: Path, written: str, value: float) -> None:
        read = _read(tmp_path, f"lr: {written}\nlist: [{written}]").data
        assert read == {"lr": value, "list": [value]}
        assert type(read["lr"]) is float

    @pytest.mark.parametrize(
        ("written", "value"),
        [("8/255", "8/255"), ("'1e-3'", "1e-3"), ("e-3", "e-3"), ("12fca82f", "12fca82f"), ("8", 8), ("true", True)],
    )
    def test_what_is_no_number_stays_what_it_is(self, tmp_path: Path, written: str, value: Any) -> None:
        read = _read(tmp_path, f"x: {written}").data["x"]
        assert read == value
        assert type(read) is type(value)

    def test_the_file_is_read_as_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "u.yaml").write_bytes("sweep: Prüfung ε\n".encode())
        assert read_document(tmp_path / "u.yaml").data == {"sweep": "Prüfung ε"}

    def test_the_text_is_kept_as_it_was_written_and_overrides_are_added_as_comments(self, tmp_path: Path) -> None:
        assert _read(tmp_path, NESTED).text == NESTED
        text = _read(tmp_path, NESTED, "sweep=other").text
        assert text == NESTED.rstrip() + "\n# overridden by: --set sweep=other\n"


class TestMergeKeys:
    def test_merge_key_brings_in_fields_that_own_ones_override(self, tmp_path: Path) -> None:
        document = _read(tmp_path, "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n  z: 4\n")
        assert document.data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3, "z": 4}}

    def test_own_field_keeps_its_own_line_and_a_merged_one_that_of_its_source(self, tmp_path: Path) -> None:
        document = _read(tmp_path, "a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n")
        assert document.where(("b", "y")).endswith("some.yaml:6")
        assert document.where(("b", "x")).endswith("some.yaml:2")

    def test_an_alias_of_a_mapping_that_overrides_a_merged_field_is_no_duplicate(self, tmp_path: Path) -> None:
        document = _read(
            tmp_path, "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: *b\nd: [*b, *b]\ne: {<<: *b, x: 5}\n"
        )
        b = {"x": 1, "y": 3}
        assert document.data == {"a": {"x": 1, "y": 2}, "b": b, "c": b, "d": [b, b], "e": {"x": 5, "y": 3}}


class TestLines:
    @pytest.mark.parametrize(
        ("keys", "line"),
        [
            ((), 2),
            (("sweep",), 2),
            (("datasets",), 3),
            (("datasets", 0), 4),
            (("datasets", 0, "dataset"), 4),
            (("datasets", 0, "images"), 5),
            (("datasets", 0, "images", "first"), 5),
            (("datasets", 1), 6),
            (("attacks", 0, "eps"), 10),
            (("attacks", 0, "eps", 1), 12),
        ],
    )
    def test_every_value_knows_its_line(self, tmp_path: Path, keys: tuple[str | int, ...], line: int) -> None:
        assert _read(tmp_path, NESTED).where(keys) == f"{tmp_path / 'some.yaml'}:{line}"

    def test_a_value_that_is_not_there_is_at_the_nearest_one_around_it(self, tmp_path: Path) -> None:
        assert _read(tmp_path, NESTED).where(("attacks", 0, "steps")).endswith("some.yaml:9")
        assert _read(tmp_path, NESTED).where(("chunk",)).endswith("some.yaml:2")

    def test_an_error_has_file_line_field_and_message(self, tmp_path: Path) -> None:
        error = _read(tmp_path, NESTED).error(("attacks", 0, "eps"), "too large.")
        assert str(error) == f"{tmp_path / 'some.yaml'}:10: attacks.0.eps: too large."


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("text", "line", "field", "first"),
        [
            ("a: 1\nb: 2\na: 3\n", 3, "a", 1),
            ("a:\n  - x: 1\n    y: 2\n    x: 1\n", 4, "a.0.x", 2),
            ("a: {x: 1, x: 2}\n", 1, "a.x", 1),
        ],
    )
    def test_duplicate_key_is_refused_at_its_second_line(
        self, tmp_path: Path, text: str, line: int, field: str, first: int
    ) -> None:
        error = _refused(tmp_path, text)
        assert error.where == f"{tmp_path / 'some.yaml'}:{line}"
        assert error.message.startswith(f"{field}: this key is given twice (first in line {first})")

    @pytest.mark.parametrize(
        ("text", "line"),
        [("a: [1, 2\nb: 3\n", 2), ("a: 1\n b: 2\n", 2), ("a: 'x\n", 2), ("a: *nowhere\n", 1), ("a: 1\n---\nb: 2", 2)],
    )
    def test_broken_yaml_has_its_line(self, tmp_path: Path, text: str, line: int) -> None:
        error = _refused(tmp_path, text)
        assert error.where == f"{tmp_path / 'some.yaml'}:{line}"
        assert error.message.startswith("not valid YAML: ")

    def test_control_characters_are_refused(self, tmp_path: Path) -> None:
        assert "not valid YAML" in _refused(tmp_path, "a: \x07\n").message

    def test_a_mapping_as_key_is_refused_with_its_line(self, tmp_path: Path) -> None:
        error = _refused(tmp_path, "a: 1\nb:\n  ? {c: d}\n  : 1\n")
        assert error.where == f"{tmp_path / 'some.yaml'}:3"
        assert error.message == "b: a key is a plain word here, not a list or mapping."

    @pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a\n  b: *a\n"])
    def test_an_alias_inside_its_own_anchor_is_refused(self, tmp_path: Path, text: str) -> None:
        error = _refused(tmp_path, text)
        assert error.message.endswith("an alias (`*name`) stands inside its own anchor (`&name`).")

    def test_python_objects_are_not_made(self, tmp_path: Path) -> None:
        text = f"a: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\nb: !!python/name:os.mkdir x\n"
        error = _refused(tmp_path, text)
        assert error.where == f"{tmp_path / 'some.yaml'}:1"
        assert "the tag '!!python/object/apply:os.mkdir' is refused" in error.message
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("text", "have"), [("", "this one is empty"), ("- a\n", "holds a list"), ("word\n", "holds a str")]
    )
    def test_a_file_that_is_no_mapping_is_told_which_keys_it_has(self, tmp_path: Path, text: str, have: str) -> None:
        error = _refused(tmp_path, text)
        assert have in error.message
        assert "sweep, datasets, classifiers" in error.message

    def test_missing_file_folder_and_binary_file(self, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        for name, cause in (
            ("missing.yaml", "No such file"),
            (".", "is a folder, and a file is needed"),
            ("binary", "is not UTF-8 text"),
        ):
            with pytest.raises(InvalidInput, match=cause) as caught:
                read_document(tmp_path / name)
            assert caught.value.where == str(tmp_path / name)


class TestEnvironment:
    def test_variables_are_expanded_wherever_a_string_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PG_A", "/one")
        monkeypatch.setenv("PG_B", "two")
        document = _read(tmp_path, "p: ${PG_A}/${PG_B}.th\nq: ['${PG_B}', {r: 'x${PG_A}'}]\n")
        assert document.data == {"p": "/one/two.th", "q": ["two", {"r": "x/one"}]}

    def test_an_expanded_value_stays_a_string_and_is_not_expanded_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PG_A", "12")
        monkeypatch.setenv("PG_B", "${PG_A}")
        assert _read(tmp_path, "x: ${PG_A}\ny: ${PG_B}\nz: $PG_A\n").data == {"x": "12", "y": "${PG_A}", "z": "$PG_A"}

    def test_unset_variable_is_refused_with_line_and_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PG_UNSET", raising=False)
        error = _refused(tmp_path, "a: 1\nb:\n  - path: ${PG_UNSET}/x\n")
        assert error.where == f"{tmp_path / 'some.yaml'}:3"
        assert error.message.startswith("b.0.path: environment variable PG_UNSET is not set; set it")

    def test_an_empty_variable_is_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PG_EMPTY", "")
        assert _read(tmp_path, "a: x${PG_EMPTY}y\n").data == {"a": "xy"}


class TestOverrides:
    @pytest.mark.parametrize(
        ("setting", "path", "value"),
        [
            ("sweep=other", ("sweep",), "other"),
            ("datasets.0.images.first=9", ("datasets", 0, "images", "first"), 9),
            ("datasets.1={dataset: digits, images: {ids: [3]}}", ("datasets", 1, "images", "ids"), [3]),
            ("attacks.0.eps=[0.3, 1e-3]", ("attacks", 0, "eps"), [0.3, 1e-3]),
            ("attacks.0.eps.1=0.5", ("attacks", 0, "eps"), [0.1, 0.5]),
            ("seeds=[0, 1]", ("seeds",), [0, 1]),
            ("compute.batch=7", ("compute", "batch"), 7),
            ("a=b=c", ("a",), "b=c"),
            ("chunk=", ("chunk",), None),
        ],
    )
    def test_an_override_changes_one_value(
        self, tmp_path: Path, setting: str, path: tuple[str | int, ...], value: Any
    ) -> None:
        found: Any = _read(tmp_path, NESTED, setting).data
        for key in path:
            found = found[key]
        assert found == value

    def test_the_rest_stays(self, tmp_path: Path) -> None:
        before, after = _read(tmp_path, NESTED).data, _read(tmp_path, NESTED, "datasets.0.images.first=9").data
        before["datasets"][0]["images"]["first"] = 9
        assert after == before

    def test_the_last_override_wins(self, tmp_path: Path) -> None:
        assert _read(tmp_path, NESTED, "chunk=5", "chunk=6").data["chunk"] == 6

    def test_an_override_expands_variables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PG_A", "here")
        assert _read(tmp_path, NESTED, "sweep=x${PG_A}").data["sweep"] == "xhere"

    @pytest.mark.parametrize(
        "setting",
        [
            "datasets.7.dataset=digits",
            "datasets.1.images.first=3",
            "sweep.name=x",
            "datasets.first=3",
            "attacks.-1=x",
        ],
    )
    def test_a_place_that_is_not_there_is_refused(self, tmp_path: Path, setting: str) -> None:
        error = _refused(tmp_path, NESTED, setting)
        assert error.where == f"--set {setting}"
        assert error.message.startswith(f"there is no {setting.partition('=')[0]!r} in {tmp_path / 'some.yaml'}")

    @pytest.mark.parametrize("setting", ["seeds", "=3", ""])
    def test_an_override_without_key_or_equals_is_refused(self, tmp_path: Path, setting: str) -> None:
        error = _refused(tmp_path, NESTED, setting)
        assert error.where == f"--set {setting}"
        assert error.message == "an override has the form KEY=VALUE, for example seeds=[0,1]."

    def test_an_override_that_is_not_yaml_is_refused(self, tmp_path: Path) -> None:
        error = _refused(tmp_path, NESTED, "seeds=[0,1")
        assert error.where == "--set seeds=[0,1"
        assert error.message.startswith("the value is not YAML: ")

    def test_errors_about_an_overridden_value_name_the_option(self, tmp_path: Path) -> None:
        document = _read(tmp_path, NESTED, "attacks.0.eps=[0.3]", "compute.batch=7")
        for keys, option in (
            (("attacks", 0, "eps"), "--set attacks.0.eps=[0.3]"),
            (("attacks", 0, "eps", 0), "--set attacks.0.eps=[0.3]"),
            (("compute", "batch"), "--set compute.batch=7"),
            (("compute",), "--set compute.batch=7"),
        ):
            assert document.where(keys) == option
        assert document.where(("attacks", 0)).endswith("some.yaml:9")
        assert document.where(("datasets",)).endswith("some.yaml:3")

    def test_unset_variable_in_an_override_names_the_option(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PG_UNSET", raising=False)
        error = _refused(tmp_path, NESTED, "sweep=${PG_UNSET}")
        assert str(error).startswith("--set sweep=${PG_UNSET}: sweep: environment variable PG_UNSET is not set")
