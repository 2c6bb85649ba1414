r"""CLIPure-Cos: a zero-shot classifier that purifies its image embedding (Zhang et al., arXiv 2502.18176).

With u the embedding of an image and :math:`t_0` that of templates without a class, both of length 1, the embedding is
moved towards what any image is like,

.. math:: u \leftarrow \frac{u + s\,\hat g}{\lVert u + s\,\hat g \rVert}, \qquad
          g = t_0 - \cos(u, t_0)\, u, \qquad \hat g = \frac{g}{\sqrt{b}\,\lVert g \rVert},

ten times with s = 30, and compared with the embeddings of the classes: :math:`f_y = \tau\, u \cdot t_y`. g is the
gradient of the cosine in closed form. It acts behind the encoder, so that it is no purifier of images but a head.

Two things are switches because the authors' code does them otherwise. There the length of g is that of the **whole
batch**, so that an image's answer depends on the others: b images of equal gradients divide by :math:`\sqrt b` more
(``b_ref``; here 1). And there g is a **constant** of the attacker's gradient in all ten steps (``correction:
constant``); by default it is followed.

**The encoder** is any classifier entry whose logits are the embedding, with weights of its own: timm has the image
towers of CLIP, whose last layer is CLIP's projection. Images are resized to what it takes (bicubic), inside of the
classifier, as the attacker sees them. **The text** is a safetensors file that the user makes once with the text tower
that belongs to it: ``classes``, shape (C, D); ``null``, shape (D,) or (templates, D); ``scale``, one number,
:math:`\tau` (100 without). No weights of CLIP ship with puregrid.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256
from defense.classifiers.base import ENTRIES, Architecture, ClassifierConfig
from defense.classifiers.examine import examine
from defense.code import Code
from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.spec import EntryOf, Spec
from defense.weight_files import read_sets

__all__ = ["CLIPPurified", "CLIPPurifiedConfig"]


class CLIPPurified(nn.Module):
    """Images to logits by purified embeddings; see the module.

    Arguments:
        encoder: Images in [0, 1] to embeddings, shape (B, D).
        side: Height and width that it takes.
        classes: Embeddings of the classes, shape (C, D).
        null: Embedding without a class, shape (D,), or one for each template.
        scale: tau.
        steps: Corrections.
        step_size: s.
        b_ref: b.
        follow: Whether the gradient goes through the corrections.
    """

    text: Tensor
    null: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        side: tuple[int, int],
        classes: Tensor,
        null: Tensor,
        *,
        scale: float = 100.0,
        steps: int = 10,
        step_size: float = 30.0,
        b_ref: int = 1,
        follow: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side
        self.register_buffer("text", F.normalize(classes, dim=1))
        # The mean of unit vectors, at length 1 again: the cosine does not know its length.
        mean = F.normalize(null.reshape(-1, null.shape[-1]), dim=1).mean(0)
        self.register_buffer("null", F.normalize(mean, dim=0))
        self.scale, self.steps, self.follow = scale, steps, follow
        self.step_size = step_size / math.sqrt(b_ref)

    def purified(self, embedding: Tensor) -> Tensor:
        """Return the embedding after all corrections, at length 1, shape (B, D)."""
        u = F.normalize(embedding, dim=1)
        null = self.null.to(u)
        for _ in range(self.steps):
            g = null - (u @ null).unsqueeze(1) * u
            correction = self.step_size * F.normalize(g, dim=1)
            u = F.normalize(u + (correction if self.follow else correction.detach()), dim=1)
        return u

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        if tuple(x.shape[2:]) != self.side:
            x = F.interpolate(x, self.side, mode="bicubic", align_corners=False).clamp(0, 1)
        logits: Tensor = self.scale * self.purified(self.encoder(x)) @ self.text.to(x).T
        return logits


class CLIPPurifiedConfig(ClassifierConfig):
    """CLIPure-Cos.

    Arguments:
        classifier: ``clipure-cos``.
        encoder: A classifier entry whose logits are the embeddings of CLIP's image tower.
        text: safetensors file of the embeddings of classes and of no class; see the module.
        text_sha256: Its sha256, at least 8 hex digits; filled in from the file.
        image_size: Height and width of the images; by default what the encoder takes.
        steps: Corrections.
        step_size: s.
        b_ref: Images whose gradients' length divides the step, 1 for the image's own.
        correction: Whether attackers' gradients go through the corrections (``followed``), or take them for
            ``constant``, as the authors' code does.
    """

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = dict.fromkeys(("weights_key", "sha256", "mean", "std"), (None,))
    classifier: Literal["clipure-cos"]
    encoder: Annotated[SerializeAsAny[ClassifierConfig], EntryOf(ClassifierConfig)]
    text: str | None = Field(default=None, exclude=True)
    text_sha256: str | None = SHA256
    image_size: int | None = Field(default=None, ge=1)
    steps: int = Field(default=10, ge=0)
    step_size: float = Field(default=30.0, gt=0)
    b_ref: int = Field(default=1, ge=1)
    correction: Literal["followed", "constant"] = "followed"

    @model_validator(mode="before")
    @classmethod
    def _encoder_entry(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("encoder"), dict | str):
            with inside("encoder"):
                return {**data, "encoder": ClassifierConfig.from_entry(data["encoder"])}
        return data

    @model_validator(mode="after")
    def _own_weights(self) -> Self:
        for name in ("weights", "sha256", "weights_key", "mean", "std"):
            if getattr(self, name) is not None:
                raise InvalidInput(f"{name} belongs to the `encoder`: write it there.", keys=(name,))
        return self

    def resolved(self, base: Path) -> Self:
        """This config with the files of encoder and text found, hashed and checked.

        Raises:
            InvalidInput: One is missing or another one, or they are of different embeddings.
        """
        if self.text is None:
            raise InvalidInput(
                "clipure-cos needs `text`: a safetensors file of CLIP's text embeddings, `classes` (C, D) and `null` "
                "(D,), that open_clip makes with the encoder's own text tower (docs/classifiers-and-denoisers.md has "
                "the lines). None ships with puregrid.",
                keys=("text",),
            )
        with inside("encoder"):
            encoder = self.encoder.resolved(base)
        with inside("text"):
            path = path_of(self.text, "text embeddings", base=base)
            if not path.exists():
                raise InvalidInput(
                    f"text embeddings {str(path)!r} are not there: open_clip makes them with the encoder's own text "
                    "tower (docs/classifiers-and-denoisers.md has the lines)."
                )
        digest = assert_sha256(path, self.text_sha256, what="text embeddings")
        found = self.model_copy(update={"encoder": encoder, "text": str(path), "text_sha256": digest})
        with inside("text"):
            found._embeddings()
        return found

    def _embeddings(self) -> tuple[Tensor, Tensor, float]:
        assert self.text is not None
        tensors = read_sets(self.text, what="text embeddings").get("", {})
        if not {"classes", "null"} <= tensors.keys() or tensors["classes"].dim() != 2:
            raise InvalidInput(
                f"text embeddings {self.text!r} hold no `classes`, shape (C, D), and `null`, shape (D,)."
            )
        classes, null = tensors["classes"].float(), tensors["null"].float()
        width = self.encoder.architecture.classes
        if classes.shape[1] != width or null.shape[-1] != width:
            raise InvalidInput(
                f"text embeddings {self.text!r} have {classes.shape[1]} and {null.shape[-1]} numbers, and those of "
                f"encoder {self.encoder.label()!r} have {width}: they are not of one model."
            )
        return classes, null, float(tensors.get("scale", torch.tensor(100.0)))

    @property
    def architecture(self) -> Architecture:
        """Images of ``image_size``, and the classes of the text; the latter need the file."""
        channels, *side = self.encoder.architecture.image_shape
        height, width = side if self.image_size is None else (self.image_size, self.image_size)
        classes = 1 if self.text is None else len(self._embeddings()[0])
        zeros, ones = (0.0,) * channels, (1.0,) * channels
        return Architecture(
            build=self._network, image_shape=(channels, height, width), classes=classes, mean=zeros, std=ones
        )

    def code(self) -> Code | None:
        """Return None, or the code of a class that is not puregrid's."""
        return Spec.code(self)

    def label(self) -> str:
        """Name in tables."""
        return self.name or f"clipure-cos {self.encoder.label()}"

    def _network(self) -> nn.Module:
        classes, null, scale = self._embeddings()
        _, height, width = self.encoder.architecture.image_shape
        return CLIPPurified(
            self.encoder.build(),
            (height, width),
            classes,
            null,
            scale=scale,
            steps=self.steps,
            step_size=self.step_size,
            b_ref=self.b_ref,
            follow=self.correction == "followed",
        )

    def build(self) -> nn.Module:
        """Load encoder and text; the hashes are checked again."""
        if self.text is None or self.text_sha256 is None:
            raise ValueError("resolve the config before building")
        assert_sha256(self.text, self.text_sha256, what="text embeddings")
        network = self._network().eval().requires_grad_(False)
        architecture = self.architecture
        examine(network, name=self.label(), image_shape=architecture.image_shape, classes=architecture.classes)
        return network


ENTRIES["clipure-cos"] = CLIPPurifiedConfig
