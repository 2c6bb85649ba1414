"""The sections of a sweep file that hold one thing."""

from functools import partial
from typing import Any

from defense.bounds import BOUNDS
from defense.denoisers import DenoiserConfig
from defense.spec import Reading, Spec
from tasks.compute import Compute
from tasks.stages.quality import QualityConfig
from workflows.documents.document import Document, Keys
from workflows.documents.entries import known_keys, located, validate
from workflows.grid.cells import ProbeWhich
from workflows.grid.precision import Precision
from workflows.grid.sections.axes import GRID_AXES

__all__ = ["MOST_DRAWS", "SECTIONS", "Settings"]

PROBE: ProbeWhich = "foreign"
"""What is probed where a sweep does not say."""

MOST_DRAWS = int(BOUNDS["draws"].most)
SECTIONS = {"sweep", "requires", *GRID_AXES, "denoisers", "chunk", "compute", "resubmissions", "quality", "probe"}
SECTIONS = {*SECTIONS, "precision", "exclude", "include", "silence"}


class Settings:
    """What holds for all cells of a document.

    Raises:
        InvalidInput: A section is unknown, or has a mistake.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.base = document.folder
        known_keys(document, (), document.data, SECTIONS)
        self.compute = self._compute()
        self.chunk = self._chunk()
        self.resubmissions = self._resubmissions()
        self.quality = self._quality()
        self.probe = self._probe()
        self.precision = self._precision()
        self.denoisers = self._denoisers()

    def _list(self, key: str) -> list[Any]:
        value = self.document.data.get(key) or []
        if not isinstance(value, list):
            raise self.document.error((key,), "a list was expected.")
        return value

    def _whole(self, key: str, value: Any, what: str, most: int) -> int:
        """Return a whole number from 1 to ``most``."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < 1:
            raise self.document.error((key,), f"{key} is {what}, at least 1, not {value!r}.")
        if value > most:
            raise self.document.error((key,), f"{key} = {value} is {what}, and more than {most:,} cannot be meant.")
        number: int = value
        return number

    def _compute(self) -> Compute:
        fields = self.document.data.get("compute", {})
        if isinstance(fields, Compute):
            return fields
        known_keys(self.document, ("compute",), fields, set(Compute.model_fields))
        return validate(self.document, ("compute",), Compute, fields)

    def _chunk(self) -> int:
        return self._whole("chunk", self.document.data.get("chunk", 100), "the number of images of a unit", 1_000_000)

    def _resubmissions(self) -> int | None:
        value = self.document.data.get("resubmissions")
        if value is None:
            return None
        return self._whole("resubmissions", value, "how often an attacker may submit an image", MOST_DRAWS)

    def _quality(self) -> QualityConfig | None:
        """``quality: {}`` measures PSNR and SSIM, ``quality: {lpips: FILE}`` LPIPS too."""
        fields = self.document.data.get("quality")
        if fields is None or fields is False:
            return None
        keys: Keys = ("quality",)
        if isinstance(fields, QualityConfig):
            return located(self.document, keys, partial(fields.resolved, self.base))
        fields = known_keys(self.document, keys, {} if fields is True else fields, set(QualityConfig.model_fields))
        return validate(self.document, keys, QualityConfig, fields, reading=Reading(self.base))

    def _probe(self) -> ProbeWhich:
        """``probe: true`` probes every purifier and classifier, ``foreign`` those of others' code, ``false`` none."""
        value = self.document.data.get("probe", PROBE)
        if not isinstance(value, bool) and value != "foreign":
            raise self.document.error(
                ("probe",),
                f"probe is true (every purifier and classifier), false (none) or foreign (those whose code is not "
                f"puregrid's), not {value!r}.",
            )
        return value  # type: ignore[no-any-return]

    def _precision(self) -> Precision | None:
        fields = self.document.data.get("precision")
        if fields is None or isinstance(fields, Precision):
            return fields
        keys: Keys = ("precision",)
        fields = known_keys(self.document, keys, fields, set(Precision.model_fields))
        return validate(self.document, keys, Precision, fields)

    def _denoisers(self) -> dict[str, Spec]:
        section = self.document.data.get("denoisers", {})
        if not isinstance(section, dict):
            raise self.document.error(("denoisers",), "denoisers is a mapping from a name of yours to a denoiser.")
        return {name: self._denoiser(("denoisers", name), entry) for name, entry in section.items()}

    def _denoiser(self, keys: Keys, entry: Any) -> DenoiserConfig:
        if not isinstance(entry, dict | DenoiserConfig):
            raise self.document.error(keys, f"a denoiser is a mapping with format, path and schedule, not {entry!r}.")
        return located(self.document, keys, partial(DenoiserConfig.from_entry, entry, Reading(self.base)))
