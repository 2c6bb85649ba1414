"""The papers behind every method that comes with puregrid, as BibTeX."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["ALWAYS", "SOURCES", "WITHOUT", "bibtex", "cited", "entries", "fields"]

ALWAYS = ("puregrid", "wilson1927")
"""What every appendix cites."""

SOURCES: dict[str, tuple[str, ...]] = {
    **{"diffpure": ("nie2022",), "gdmp": ("wang2022",), "densepure": ("xiao2023",), "one-shot": ("carlini2023",)},
    **{"gradual-noise": ("lee2023",), "guided-from-noise": ("wu2022",), "ebm": ("hill2021",), "jpeg": ("guo2018",)},
    **{"bit-depth": ("xu2018",), "median": ("xu2018",), "gaussian-noise": ("cohen2019",)},
    **{"distribution-transfer": ("transfer2023",), "robust-reverse": ("lin2024",)},
    **{"score-opt": ("zhang2023",), "likelihood-maximization": ("chen2024",), "coup": ("coup2024",)},
    **{"contrastive-stateless": ("contrastive2024",), "diff-ap": ("diffap2024",), "freqpure": ("freqpure2025",)},
    **{"heterogeneous": ("heterogeneous2025",), "mimic-diffusion": ("mimic2024",), "osgd": ("osgd",)},
    **{"aaopt": ("aaopt",), "one-step-preview": ("pureproof2026",), "rays": ("chen2020",)},
    **{"consistency": ("li2024", "song2023"), "diff-smooth": ("diffsmooth2023",), "diffcap": ("fu2025",)},
    **{"flowpure": ("collaert2025",), "ssni": ("sun2025", "expected2023")},
    **{"clipure-cos": ("clipure2025",)},
    **{"diffusion-classifier": ("chen2024",), "noised-diffusion-classifier": ("noised2024",)},
    **{"pgd": ("madry2018",), "pgd-eot": ("madry2018", "athalye2018"), "bpda-eot": ("athalye2018",)},
    **{"apgd": ("croce2020",), "autoattack": ("croce2020",), "square": ("andriushchenko2020",)},
    **{"fgsm": ("goodfellow2015",), "cw-l2": ("carlini2017",), "spsa": ("uesato2018",), "stadv": ("xiao2018",)},
    **{"transfer": ("papernot2016",), "deviated-reconstruction": ("kang2023",), "diffhammer": ("wang2024",)},
    **{
        "guidance-target": ("madry2018",),
        "hop-skip-jump": ("hopskipjump2020",),
        "lagrangian-perceptual": ("laidlaw2021",),
    },
    **{"low-frequency": ("kassis2024",), "ladder": ("kassis2024", "carlini2019")},
    **{"strongest": ("kassis2024", "croce2020", "wang2024")},
    **{"cifar10": ("krizhevsky2009",), "cifar100": ("krizhevsky2009",), "digits": ("pedregosa2011",)},
    **{"certificate": ("cohen2019",), "corruption": ("hendrycks2019",), "quality": ("wang2004", "zhang2018")},
    **{"eot": ("athalye2018",), "surrogate": ("lee2023",), "bpda": ("athalye2018",), "combined": ("liu2025",)},
    **{"anytime": ("waudbysmith2024",), "l1": ("croce2021",)},
}
"""Keys of the entries of each method, by its name in a sweep file."""

WITHOUT = frozenset({"none", "chain", "random-noise", "folder"})
"""Parts that come from no paper."""


def cited(names: Iterable[str]) -> list[str]:
    """Return the keys that some methods cite, each once, in their order."""
    return list(dict.fromkeys(key for name in names for key in SOURCES.get(name, ())))


@cache
def entries() -> dict[str, str]:
    """Return the entries of ``references.bib`` by their keys."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{(\w+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)
    whole = re.findall(r"^@\w+\{.*?^\}$", text, re.MULTILINE | re.DOTALL)
    return dict(zip(found, whole, strict=True))


def bibtex(keys: Iterable[str], version: str) -> str:
    """Return entries as a ``.bib`` file."""
    return "\n\n".join(entries()[key].replace("VERSION", version) for key in dict.fromkeys(keys)) + "\n"


_ACCENTS = dict(zip("`'^\"~cv", "\u0300\u0301\u0302\u0308\u0303\u0327\u030c", strict=True))


def fields(key: str) -> dict[str, str]:
    """Return the fields of an entry as plain text: ``authors`` one behind another, ``title``, ``venue``, ``link``."""
    raw = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entries()[key], re.MULTILINE))
    plain = {name: _plain(value) for name, value in raw.items()}
    people = [" ".join(reversed(name.split(", "))) for name in plain.get("author", "").split(" and ")]
    number = re.search(r"arXiv:(\S+)", plain.get("note", ""))
    venue = plain.get("booktitle") or plain.get("journal") or ("arXiv" if number else "")
    return {
        "authors": ", ".join(people),
        "title": plain.get("title", ""),
        "venue": f"{venue} {plain.get('year', '')}".strip(),
        "link": plain.get("url") or (f"https://arxiv.org/abs/{number[1]}" if number else ""),
    }


def _plain(text: str) -> str:
    """Write LaTeX accents as letters, and leave the braces out."""

    def letter(found: re.Match[str]) -> str:
        return unicodedata.normalize("NFC", found[2] + _ACCENTS[found[1]])

    text = re.sub(r"""\{?\\([`'^"~cv])\s*\{?([A-Za-z])\}?\}?""", letter, text)
    return re.sub(r"[{}]", "", text)
