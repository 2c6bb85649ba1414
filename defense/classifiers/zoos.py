"""Networks of timm and torchvision by name: ``timm:NAME?classes=30&size=224``, ``torchvision:NAME?classes=30``.

They are what ImageNet and its subsets are classified with. Weights are a file that the user has, in the package's own
names; nothing is downloaded. Normalisation and size of the images are those that the package states for NAME, the
number of classes is 1000, unless the options say otherwise. timm is an extra: ``pip install puregrid[timm]``.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from torch import Tensor, nn

from defense.checkpoints import load_weights
from defense.classifiers.base import CLASSIFIERS, Architecture, FeatureNet
from defense.errors import InvalidInput, nearest
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import

__all__ = ["Headed", "options"]


class Headed(FeatureNet):
    """A network cut before its last linear layer.

    Arguments:
        net: The network, taken over and changed.
        head: Name of the module in it that is the last linear layer.
    """

    def __init__(self, net: nn.Module, head: str) -> None:
        super().__init__()
        last = net.get_submodule(head)
        net.set_submodule(head, nn.Identity())
        self.body, self.head = net, last

    def latent(self, x: Tensor) -> Tensor:
        """Features before the last linear layer, shape (B, D), of normalised images, shape (B, C, H, W)."""
        features: Tensor = self.body(x)
        return features

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.head(latent)
        return logits


def options(name: str, known: Iterable[str], *, example: str) -> tuple[str, dict[str, str]]:
    """``NAME?KEY=VALUE&...`` as its name and its options.

    Raises:
        InvalidInput: Not of that form, or an unknown option.
    """
    name, _, query = name.partition("?")
    try:
        stated = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise InvalidInput(f"options {query!r} are not KEY=VALUE&KEY=VALUE; an example: {example}") from error
    for key in stated.keys() - set(known):
        raise InvalidInput(f"unknown option {key!r}; {nearest(key, known)} An example: {example}")
    return name, stated


def _number(stated: dict[str, str], key: str, default: int) -> int:
    value = stated.get(key, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise InvalidInput(f"option {key} = {value!r} is not a whole number above 0.")
    return int(value)


def _headed(net: nn.Module, classes: int) -> nn.Module:
    """Return the network cut before its last module if that is the linear layer to the classes, else as it is."""
    name, last = next(reversed([(n, m) for n, m in net.named_modules() if not any(m.children())]))
    return Headed(net, name) if isinstance(last, nn.Linear) and last.out_features == classes else net


def _loaded(build: Callable[[], nn.Module], cut: Callable[[nn.Module], nn.Module], path: str | Path) -> nn.Module:
    return cut(load_weights(build(), path)).eval()


@CLASSIFIERS.family("timm")
def _timm(rest: str) -> Architecture:
    name, chosen = options(rest, ("classes", "size"), example="timm:resnet18?classes=30&size=224")
    allow_torchvision_import()
    with installed(f"classifier 'timm:{rest}'"):
        import timm
    if not timm.is_model(name):
        raise InvalidInput(f"timm {timm.__version__} has no model {name!r}; {_near(name, timm.list_models())}")
    stated: Any = timm.get_pretrained_cfg(name)
    classes, size = _number(chosen, "classes", 1000), _number(chosen, "size", stated.input_size[-1])
    # Transformers are built for one size; other networks take any and know no such argument.
    sized = {"img_size": size} if stated.fixed_input_size else {}
    build = partial(timm.create_model, name, pretrained=False, num_classes=classes, **sized)

    def cut(net: nn.Module) -> nn.Module:
        last: Any = net.get_classifier()  # type: ignore[operator]
        heads = [key for key, module in net.named_modules() if module is last]
        return Headed(net, heads[0]) if isinstance(last, nn.Linear) and heads else net

    where = f"a file of the hub repository timm/{name}" + (f".{stated.tag}" if stated.tag else "")
    return Architecture(
        build=lambda: cut(build()),
        image_shape=(3, size, size),
        classes=classes,
        mean=tuple(stated.mean),
        std=tuple(stated.std),
        load=partial(_loaded, build, cut),
        source=f"For the 1000 classes of ImageNet it is {where}; puregrid never fetches it.",
    )


@CLASSIFIERS.family("torchvision")
def _torchvision(rest: str) -> Architecture:
    name, chosen = options(rest, ("classes", "size"), example="torchvision:shufflenet_v2_x1_0?classes=30")
    allow_torchvision_import()
    with installed(f"classifier 'torchvision:{rest}'"):
        from torchvision import models

    if name not in (known := models.list_models(module=models)):
        raise InvalidInput(f"torchvision has no classifier {name!r}; {_near(name, known)}")
    stated: Any = models.get_model_weights(name).DEFAULT
    preset: Any = stated.transforms()
    classes, size = _number(chosen, "classes", 1000), _number(chosen, "size", preset.crop_size[0])
    build = partial(models.get_model, name, weights=None, num_classes=classes)
    cut = partial(_headed, classes=classes)
    return Architecture(
        build=lambda: cut(build()),
        image_shape=(3, size, size),
        classes=classes,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        load=partial(_loaded, build, cut),
        source=f"For the 1000 classes of ImageNet it is {stated.url}; puregrid never fetches it.",
    )


def _near(name: str, known: list[str]) -> str:
    """As :func:`nearest`, without the hundreds of valid names."""
    return nearest(name, known).partition("Valid names:")[0].strip() or "its documentation lists the names."
