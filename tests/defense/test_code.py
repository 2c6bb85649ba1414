"""The code of parts that are not puregrid's is in their ids: whatever changes it is seen, and nothing else is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import model_serializer

from defense import code as code_module
from defense.classifiers import CLASSIFIERS, ClassifierConfig
from defense.code import code_of_class, code_of_modules, is_foreign
from defense.purifiers import PURIFIERS
from defense.spec import Spec
from tasks.attacks import ATTACKS, PGDConfig
from tasks.compute import Compute
from tasks.datasets import DATASETS

PURIFIER = """
from typing import Literal
from defense.purifiers.base import FilterConfig, Purifier
{imports}

class Blur(Purifier):
    def forward(self, x, omega):
        return {body}

class {name}(FilterConfig):
    purifier: Literal["{module}:{name}"] = "{module}:{name}"
    {extra}
    def label(self):
        return "blur"
    def build(self, models=None):
        return Blur().eval()
"""

CLASSIFIER = """
from pathlib import Path
from torch import nn
from defense.classifiers import Architecture
from defense.classifiers.digits_cnn import DigitsCNN
import defense

class Net(DigitsCNN):
    def classify(self, latent):
        return super().classify(latent) {body}

NET = Architecture(Net, (1, 8, 8), 10, (0.0,), (1.0,),
                   weights=Path(defense.__file__).parent / "assets/digits-cnn/model.safetensors")
"""


def asked(folder: Path, name: str) -> tuple[dict[str, Any], str, str, list[str]]:
    """What a process that starts now says of a part: its identity, its id, that of a chain of it, and the modules."""
    known, caches = set(sys.modules), (code_of_class, code_of_modules)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    for cache in caches:
        cache.cache_clear()
    CLASSIFIERS._codes.clear()
    try:
        config: Spec
        if name.endswith("NET"):
            config = whole = ClassifierConfig(classifier=name).resolved(Path())
        else:
            config = PURIFIERS.get(name)()  # type: ignore[call-arg]
            whole = PURIFIERS.get("chain").model_validate({"stages": [name]})
        code = config.code()
        assert code is not None
        return config.identity(), config.id, whole.id, list(code.modules)
    finally:
        sys.path.remove(str(folder))
        for module in set(sys.modules) - known:
            del sys.modules[module]
        for cache in caches:
            cache.cache_clear()
        CLASSIFIERS._codes.clear()


def purifier(body: str = "x", imports: str = "", extra: str = "", module: str = "tv") -> str:
    return PURIFIER.format(body=body, imports=imports, extra=extra, module=module, name="TV")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


SINGLE = {"tv.py": purifier(imports="import helper"), "helper.py": "import deeper\nA = 1", "deeper.py": "B = 2"}
PACKAGE = {
    "mine/__init__.py": "",
    "mine/parts/__init__.py": "",
    "mine/parts/tv.py": purifier(imports="from ..tools import scale", module="mine.parts.tv"),
    "mine/tools.py": "from mine import numbers\nscale = 1",
    "mine/numbers.py": "N = 1",
    "mine/unused.py": "C = 3",
}

# As research is kept: run where it lies, some folders without an __init__.py, imports where they are needed, of what
# is not there or fails, too.
REPOSITORY = {
    "tv.py": purifier(imports="def later():\n    from models.nets import unet\nimport noise.levels"),
    "purifiers/tv.py": purifier(
        imports="def later():\n    import breaks.deeper, nowhere.at_all\n    from models.nets.unet import UNet",
        module="purifiers.tv",
    ),
    "models/__init__.py": "raise RuntimeError('needs a GPU')",
    "models/nets/__init__.py": "from .unet import UNet",
    "models/nets/unet.py": "UNet = 1",
    "models/unused.py": "U = 1",
    "noise/levels.py": "L = 1",
}


@pytest.mark.parametrize(
    ("files", "name", "modules"),
    [
        (SINGLE, "tv:TV", ["deeper", "helper", "tv"]),
        (PACKAGE, "mine.parts.tv:TV", ["mine", "mine.numbers", "mine.parts", "mine.parts.tv", "mine.tools"]),
        (REPOSITORY, "tv:TV", ["models", "models.nets", "models.nets.unet", "noise.levels", "tv"]),
        (REPOSITORY, "purifiers.tv:TV", ["models", "models.nets", "models.nets.unet", "purifiers.tv"]),
        ({"net.py": CLASSIFIER.format(body="")}, "net:NET", ["net"]),
    ],
)
def test_what_the_code_is_of(tmp_path: Path, files: dict[str, str], name: str, modules: list[str]) -> None:
    write(tmp_path, files)
    identity, _, _, found = asked(tmp_path, name)
    assert found == modules
    assert len(identity["_code"]["digest"]) == 16


def edited(file: str, old: str, new: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda files: {**files, file: files[file].replace(old, new)}


@pytest.mark.parametrize(
    ("files", "name", "change"),
    [
        (SINGLE, "tv:TV", edited("tv.py", "return x", "return x * 0.5")),
        (SINGLE, "tv:TV", edited("helper.py", "A = 1", "A = 2")),
        (SINGLE, "tv:TV", edited("deeper.py", "B = 2", "B = 3")),
        (PACKAGE, "mine.parts.tv:TV", edited("mine/parts/tv.py", "return x", "return 1 - x")),
        (PACKAGE, "mine.parts.tv:TV", edited("mine/tools.py", "scale = 1", "scale = 2")),
        (PACKAGE, "mine.parts.tv:TV", edited("mine/numbers.py", "N = 1", "N = 2")),
        (PACKAGE, "mine.parts.tv:TV", lambda files: {**files, "mine/parts/__init__.py": "P = 1"}),
        (REPOSITORY, "tv:TV", edited("models/nets/unet.py", "= 1", "= 2")),
        (REPOSITORY, "tv:TV", edited("noise/levels.py", "= 1", "= 2")),
        (REPOSITORY, "purifiers.tv:TV", edited("models/nets/unet.py", "= 1", "= 2")),
        ({"net.py": CLASSIFIER.format(body="")}, "net:NET", edited("net.py", "(latent) ", "(latent) * 2")),
        (
            {"tv.py": purifier(extra="version: __import__('typing').ClassVar[int] = 1")},
            "tv:TV",
            edited("tv.py", "= 1", "= 2"),
        ),
    ],
)
def test_another_code_is_another_part(
    tmp_path: Path, files: dict[str, str], name: str, change: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    write(tmp_path, files)
    before = asked(tmp_path, name)
    write(tmp_path, change(files))
    after = asked(tmp_path, name)
    assert before[1] != after[1] and before[2] != after[2]
    assert {k: v for k, v in before[0].items() if k != "_code"} == {k: v for k, v in after[0].items() if k != "_code"}


@pytest.mark.parametrize(
    ("files", "name", "change"),
    [
        (PACKAGE, "mine.parts.tv:TV", edited("mine/unused.py", "C = 3", "C = 4")),
        (SINGLE, "tv:TV", lambda files: {**files, "stranger.py": "D = 4"}),
        (REPOSITORY, "tv:TV", edited("models/unused.py", "= 1", "= 2")),
        (SINGLE, "tv:TV", lambda files: {name: text.replace("\n", "\r\n") for name, text in files.items()}),
    ],
)
def test_what_is_not_its_code_changes_nothing(
    tmp_path: Path, files: dict[str, str], name: str, change: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    write(tmp_path, files)
    before = asked(tmp_path, name)
    write(tmp_path, change(files))
    assert asked(tmp_path, name)[1:3] == before[1:3]


def test_other_peoples_packages_are_not_imported_to_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "site-packages", {"theirs/__init__.py": "raise RuntimeError('no CUDA')", "theirs/nets.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    for module in ("tv", "mine.tv"):
        name = module.replace(".", "/") + ".py"
        text = purifier(imports="def later():\n    from theirs.nets import resnet", module=module)
        write(tmp_path, {name: text})
        assert asked(tmp_path, f"{module}:TV")[3] == [module]


def test_neighbours_of_what_is_installed_are_other_peoples(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    write(
        folder, {**PACKAGE, "other.py": "O = 1", "mine/tools.py": "import other\nfrom mine import numbers\nscale = 1"}
    )
    assert "other" not in asked(folder, "mine.parts.tv:TV")[3]
    write(folder, {"other.py": "O = 1", "tv.py": purifier(imports="import other")})
    assert asked(folder, "tv:TV")[3] == ["tv"]


def test_what_was_installed_beside_a_module_is_other_peoples(tmp_path: Path) -> None:
    """As ``pip install --target`` puts it there."""
    write(
        tmp_path, {"tv.py": purifier(imports="import boughtin, helper"), "helper.py": "A = 1", "boughtin.py": "B = 1"}
    )
    assert asked(tmp_path, "tv:TV")[3] == ["boughtin", "helper", "tv"]
    record = {"METADATA": "Metadata-Version: 2.1\nName: boughtin\nVersion: 2.0\n", "RECORD": "boughtin.py,,\n"}
    write(tmp_path, {f"boughtin-2.0.dist-info/{name}": text for name, text in record.items()})
    code_module._distributions.cache_clear()
    assert asked(tmp_path, "tv:TV")[3] == ["helper", "tv"]


def test_the_folder_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "a", PACKAGE)
    write(tmp_path / "b", PACKAGE)
    assert asked(tmp_path / "a", "mine.parts.tv:TV")[1] == asked(tmp_path / "b", "mine.parts.tv:TV")[1]


def test_an_installed_distribution_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is installed is read once in a process, and this process has begun without it.
    monkeypatch.setattr(code_module, "_distributions", code_module._distributions.__wrapped__)
    write(tmp_path, SINGLE)
    metadata = tmp_path / "tv-2.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tv\nVersion: 2.5\n")
    (metadata / "top_level.txt").write_text("tv\n")
    (metadata / "RECORD").write_text("tv.py,,\n")
    code = asked(tmp_path, "tv:TV")[0]["_code"]
    assert code["distribution"] == "tv 2.5"
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tv\nVersion: 2.6\n")
    again = asked(tmp_path, "tv:TV")[0]["_code"]
    assert again == {**code, "distribution": "tv 2.6"}


@pytest.mark.slow
def test_the_distributions_of_every_installed_module_are_those_that_python_finds() -> None:
    expected = {top: {f"{name} {version(name)}" for name in names} for top, names in packages_distributions().items()}
    for top in ("torch", "numpy", "yaml", "_pytest", "py", "six", "PIL", "google", "ray", "nothing"):
        assert set(code_module._distributions(top)) == expected.get(top, set()), top


def test_parts_of_puregrid_have_versions_instead() -> None:
    for registry in (PURIFIERS, ATTACKS, DATASETS):
        for name in registry.names():
            assert code_of_class(registry.get(name)) is None, name
    assert "_code" not in Compute().identity()
    assert not is_foreign("defense.purifiers.diffpure") and is_foreign("defenses.mine")


class OtherPGD(PGDConfig):
    """An attack of another package that derives from one of puregrid's with values that are not in ids."""

    attack: Literal["other"] = "other"  # type: ignore[assignment]


def test_code_is_in_ids_below_classes_that_leave_usual_values_out() -> None:
    usual, last = OtherPGD(norm="linf", eps=0.1), OtherPGD(norm="linf", eps=0.1, keep="last")
    assert "_code" in usual.identity() and "keep" not in usual.identity()
    assert last.identity()["keep"] == "last" and "_code" in last.identity()


def test_a_serializer_that_would_take_code_out_of_ids_is_refused() -> None:
    with pytest.raises(TypeError, match="has the model_serializer 'plain', which would take its code out of its id"):

        class Plain(Spec):
            @model_serializer
            def plain(self) -> dict[str, int]:
                return {}
