"""Make ``import torchvision`` work beside a CPU build of torch.

torchvision's wheel on the package index is compiled against CUDA. Beside a CPU build of torch its extension
does not load, so the operators that it would have declared are missing and its Python side fails to register
their shape functions (``operator torchvision::nms does not exist``, then ``qnms``). Declaring the two
schemas first lets the import pass; the operators themselves stay without an implementation, and puregrid
uses neither. Where torch has CUDA, or torchvision is imported already, nothing is touched.
"""

import sys

import torch

__all__ = ["allow_torchvision_import"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A torch.library.Library takes its schemas along when it is collected: keep it for the process.
_kept: list[torch.library.Library] = []


def allow_torchvision_import() -> None:
    """Declare torchvision's operator schemas if this torch is a CPU build; call before importing it."""
    if torch.version.cuda is not None or torch.version.hip is not None or "torchvision" in sys.modules or _kept:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _kept.append(library)
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
