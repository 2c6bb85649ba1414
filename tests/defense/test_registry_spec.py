from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from defense import DiffPureConfig, DiffusersConfig, InvalidInput, Spec
from defense.registry import Registry
from defense.spec import Spelling


class Part(Spec):
    size: int
    path: str = Field(default="", exclude=True)


class Bigger(Part):
    weight: float


class Whole(Spec):
    name: str
    flag: bool = False
    rate: float = 0.1
    part: SerializeAsAny[Part]


class TestSpec:
    def test_the_canonical_json_and_the_id_are_pinned(self) -> None:
        whole = Whole(name="ß", rate=8 / 255, part=Bigger(size=3, weight=1e-7, path="/here"))
        text = r'{"flag":false,"name":"\u00df","part":{"size":3,"weight":1e-07},"rate":0.03137254901960784}'
        code = whole.code()
        assert code is not None and whole.part.code() == code  # they are not puregrid's, but of this file
        said = json.dumps(code.identity(), separators=(",", ":"))
        told = text.replace("{", '{"_code":' + said + ",")
        assert whole.canonical() == told
        assert whole.id == hashlib.sha256(told.encode()).hexdigest()[:16]

    def test_the_id_of_a_real_spec_is_pinned(self) -> None:
        denoiser = DiffusersConfig(schedule="linear-1000", path="x", sha256="327dccd7", config_sha256="0e974326")
        assert denoiser.canonical() == (
            '{"config_sha256":"0e974326","format":"diffusers","schedule":"linear-1000","sha256":"327dccd7"}'
        )
        assert DiffPureConfig(denoiser=denoiser, sigma_eq=0.25, steps=25, clip_denoised=True).id == "c4c67cb5363bb747"
        assert DiffPureConfig(denoiser=denoiser, sigma_eq=0.25, steps=25).id == "c62ba3f53a1aab73"

    @given(st.text(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers())
    def test_a_spec_survives_its_json_with_the_same_id(self, name: str, flag: bool, rate: float, size: int) -> None:
        whole = Whole(name=name, flag=flag, rate=rate, part=Part(size=size))
        again = Whole.model_validate_json(whole.canonical())
        assert again == whole and again.id == whole.id

    def test_the_order_of_fields_and_whole_numbers_for_floats_do_not_matter(self) -> None:
        one = Whole(rate=1, part=Part(size=3), name="a", flag=True)
        assert one.id == Whole(name="a", flag=True, rate=1.0, part=Part(size=3)).id

    def test_excluded_fields_stay_out_of_the_id_and_all_others_are_in(self) -> None:
        base = Whole(name="a", part=Part(size=3, path="/here"))
        assert base.id == Whole(name="a", part=Part(size=3, path="/there")).id
        others = [
            Whole(name="b", part=Part(size=3)),
            Whole(name="a", part=Part(size=4)),
            Whole(name="a", flag=True, part=Part(size=3)),
            Whole(name="a", rate=0.2, part=Part(size=3)),
            Whole(name="a", part=Bigger(size=3, weight=0.0)),
        ]
        assert len({base.id, *(other.id for other in others)}) == 6

    @pytest.mark.parametrize(
        "change",
        [
            {"name": 3},
            {"flag": 1},
            {"flag": "true"},
            {"rate": "0.1"},
            {"rate": float("nan")},
            {"rate": float("inf")},
            {"rate": True},
            {"nmae": "a"},
            {"part": None},
        ],
    )
    def test_values_of_another_type_and_unknown_fields_are_refused(self, change: dict[str, Any]) -> None:
        fields = {"name": "a", "part": Part(size=3)}
        assert Whole(**fields).name == "a"
        with pytest.raises(InvalidInput) as caught:
            Whole(**fields | change)
        assert caught.value.keys == tuple(change)

    def test_a_spec_cannot_be_changed(self) -> None:
        part = Part(size=3)
        with pytest.raises(ValidationError, match="frozen"):
            part.size = 4
        assert part.size == 3


class Scaled(Spec):
    """A class with a short spelling, and one without it."""

    named_by: ClassVar[str | None] = "scaled"
    spellings: ClassVar[dict[str, Spelling]] = {
        "percent": Spelling("share", "a share in percent, like 8", lambda n: n / 100, lost="{} has no percent.")
    }
    scaled: str = "one"
    share: float = Field(ge=0, description="A share of 1.")


class Undivided(Scaled):
    spellings: ClassVar[dict[str, Spelling]] = {}
    scaled: str = "whole"


class Consuming(Scaled):
    """A class of somebody else's whose own validator takes a name that is no field."""

    @model_validator(mode="before")
    @classmethod
    def _halves(cls, data: Any) -> Any:
        data = dict(data)
        if "halves" in data:
            data["share"] = data.pop("halves") / 2
        return data


class Bag(Spec):
    hands_down: ClassVar[dict[str, tuple[str, ...]]] = {"inner": ("share",)}
    share: float = 0.5
    inner: tuple[SerializeAsAny[Scaled], ...] = ()
    part: SerializeAsAny[Part] | None = None
    by_name: dict[str, tuple[SerializeAsAny[Part], ...]] = Field(default_factory=dict)
    pair: tuple[float, float] | str = "none"


class TestEntries:
    def test_entries_lists_and_names_become_specs_wherever_an_annotation_says_so(self) -> None:
        bag = Bag.model_validate(
            {
                "inner": ["one", {"percent": 20}, {"share": 0.3}, Scaled(share=1)],
                "share": 0.1,
                "part": {"size": 3, "path": "/here"},
                "by_name": {"a": [{"size": 1}, Part(size=2)]},
                "pair": [1, 2],
            }
        )
        assert [inner.share for inner in bag.inner] == [0.1, 0.2, 0.3, 1]
        assert bag.part == Part(size=3, path="/here") and bag.by_name == {"a": (Part(size=1), Part(size=2))}
        assert bag.pair == (1, 2) and Bag(pair="none").pair == "none"
        assert Bag.from_entry(bag.as_entry()) == bag and bag.as_entry()["part"]["path"] == "/here"
        assert Bag().model_fields_set == set()  # defaults stay unset

    @pytest.mark.parametrize(
        ("fields", "keys", "says"),
        [
            ({"inner": ["one", {"percnt": 3}]}, ("inner", 1, "percnt"), "did you mean 'percent'?"),
            ({"inner": [{"share": -1}]}, ("inner", 0, "share"), "share = -1 (int)"),
            ({"inner": [{"percent": -1}]}, ("inner", 0, "percent"), "It is a share in percent, like 8."),
            ({"inner": [{"percent": 1, "share": 0.1}]}, ("inner", 0, "percent"), "either `share` or `percent`"),
            ({"inner": [{}], "share": -1}, ("share",), "share = -1 (int)"),
            ({"inner": [3]}, ("inner", 0), "a name, a mapping or a Scaled is expected, not 3."),
            ({"part": {"size": 1.5}}, ("part", "size"), "valid integer"),
            ({"part": {}}, ("part",), "field 'size' is missing."),
            ({"part": "a"}, ("part",), "a mapping is expected (keys: path, size)"),
            ({"by_name": {"a": [{"size": 1}, {"sice": 2}]}}, ("by_name", "a", 1, "sice"), "did you mean 'size'?"),
            ({"pair": [1, 2, 3]}, ("pair",), ""),
            ({"shere": 3}, ("shere",), "did you mean 'share'?"),
        ],
    )
    def test_a_mistake_has_its_path(self, fields: dict[str, Any], keys: tuple[str | int, ...], says: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            Bag(**fields)
        assert caught.value.keys == keys and says in caught.value.message

    def test_a_class_that_drops_a_spelling_says_why(self) -> None:
        with pytest.raises(InvalidInput, match=r"^percent: 'whole' has no percent\.$"):
            Undivided(percent=3)  # type: ignore[call-arg]

    def test_a_validator_may_take_names_that_are_no_fields(self) -> None:
        assert Consuming.from_entry({"halves": 1}).share == 0.5

    def test_files_are_found_at_every_depth_and_missed_at_their_path(self, tmp_path: Path) -> None:
        class Filed(Part):
            def resolved(self, base: Path) -> Filed:
                if not (base / self.path).exists():
                    raise InvalidInput(f"no {self.path}")
                return self.model_copy(update={"path": str(base / self.path)})

        (tmp_path / "a").touch()
        bag = Bag(part=Filed(size=1, path="a"), inner=(Scaled(share=1),))
        found = bag.resolved(tmp_path).part
        assert found is not None and found.path == str(tmp_path / "a") and bag.resolved(tmp_path).id == bag.id
        with pytest.raises(InvalidInput, match=r"^part: no b$"):
            Bag(part=Filed(size=1, path="b")).resolved(tmp_path)


class TestRegistry:
    @pytest.fixture
    def registry(self) -> Registry[object]:
        registry: Registry[object] = Registry("colour", "puregrid.tests")
        for name in ("magenta", "cyan"):
            registry.register(name)(name.upper())
        return registry

    def test_a_name_gives_its_entry(self, registry: Registry[object]) -> None:
        assert registry.get("cyan") == "CYAN" and registry.names() == ["cyan", "magenta"]

    def test_an_unknown_name_leads_to_the_nearest_and_lists_all(self, registry: Registry[object]) -> None:
        with pytest.raises(InvalidInput) as caught:
            registry.get("magneta")
        assert str(caught.value) == ("unknown colour 'magneta'; did you mean 'magenta'? Valid names: cyan, magenta.")
        with pytest.raises(InvalidInput, match=r"^unknown colour 'xxxxxx'; Valid names: cyan, magenta\.$"):
            registry.get("xxxxxx")

    def test_a_name_is_registered_once(self, registry: Registry[object]) -> None:
        with pytest.raises(ValueError, match="colour 'cyan' is registered twice"):
            registry.register("cyan")("other")
        assert registry.get("cyan") == "CYAN"

    def test_what_is_installed_while_the_process_runs_is_found(
        self, registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert registry.names() == ["cyan", "magenta"]
        monkeypatch.syspath_prepend(str(tmp_path))
        assert registry.names() == ["cyan", "magenta"]
        os.utime(tmp_path, ns=(0, 0))
        assert registry.names() == ["cyan", "magenta"]
        metadata = tmp_path / "colours-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[puregrid.tests]\nred = hashlib:md5\n")
        assert registry.names() == ["cyan", "magenta", "red"] and registry.get("red") is hashlib.md5
        shutil.rmtree(metadata)
        assert registry.names() == ["cyan", "magenta"]

    def test_module_and_attribute_are_imported(self, registry: Registry[object]) -> None:
        assert registry.get("hashlib:sha256") is hashlib.sha256

    @pytest.mark.parametrize("name", ["no_such_module:x", "hashlib:no_such_attribute", "hashlib:", ":x"])
    def test_what_cannot_be_imported_is_refused(self, registry: Registry[object], name: str) -> None:
        with pytest.raises(InvalidInput, match=f"colour '{name}' cannot be imported"):
            registry.get(name)


def test_an_error_keeps_its_place_across_processes() -> None:
    error = pickle.loads(pickle.dumps(InvalidInput("no", keys=("rungs", 1)).within("attacks", 0)))
    assert error.keys == ("attacks", 0, "rungs", 1) and str(error) == "attacks.0.rungs.1: no"
    error = pickle.loads(pickle.dumps(InvalidInput("no such file", where="sweep.yaml:3")))
    assert type(error) is InvalidInput and str(error) == "sweep.yaml:3: no such file"
    assert str(InvalidInput("no such file")) == "no such file"
