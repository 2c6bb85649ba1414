r"""Energy-based models: networks that map an image to an energy.

.. math:: p(z) \propto e^{-E(z)}, \qquad E(z) = f_\theta(z) / U

with :math:`z = 2x - 1` in [-1, 1] and a constant U, the unit of the network's output. Hill, Mitchell and Zhu (arXiv
2005.13525) train f such that Langevin steps of size tau are :math:`z - \nabla f(z) + \tau n`, that is with
:math:`U = \tau^2 / 2`; their released training code has tau = 0.01.

**Smoothness.** The exact gradient through a Langevin step holds the Hessian of E. A network of linear layers and
(leaky) ReLU, as in the published models, is piecewise linear: its Hessian is zero wherever it exists, each step has
the identity for a Jacobian, and the exact gradient through the whole chain is that of BPDA: it is right, and adds
nothing. The network that ships with puregrid is smooth (SiLU), so that there the two differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256, load_weights
from defense.code import Code
from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.reading import reading
from defense.registry import Registry
from defense.spec import Spec

__all__ = [
    "ENERGIES",
    "Cifar10Energy",
    "DigitsEnergy",
    "EnergyArchitecture",
    "EnergyConfig",
    "Scaled",
    "energy_gradient",
]


class DigitsEnergy(nn.Module):
    r"""Energy of an 8x8 grey image: half the squared distance from its reconstruction, in units of a noise level.

    .. math:: E(z) = \frac{\lVert z - r_\theta(z) \rVert^2}{2 s^2}

    with r two hidden layers of SiLU and no bottleneck. Where r is the mean of the clean images given z at noise level
    s, the gradient of E is close to the negative score of the noised density (Vincent, "A connection between score
    matching and denoising autoencoders", 2011); r is not trained for that but E as a whole.

    Arguments:
        hidden: Width of the hidden layers.
        scale: The noise level s, units of z.
    """

    def __init__(self, hidden: int = 256, scale: float = 0.2) -> None:
        super().__init__()
        self.scale = scale
        self.reconstruct = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 64),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Energies, shape (B,), of images in [-1, 1], shape (B, 1, 8, 8)."""
        error: Tensor = z.flatten(1) - self.reconstruct(z)
        return error.square().sum(1) / (2 * self.scale**2)


class Cifar10Energy(nn.Module):
    """The small convolutional energy network of Nijkamp et al. (arXiv 1904.09770) and Hill et al. (2005.13525).

    One 3x3 convolution, three 4x4 convolutions of stride 2, leaky ReLU (slope 0.05), no batch norm, and a last
    convolution over the remaining 4x4 pixels. Layers have the names of Hill et al.'s checkpoints, which load as they
    are. Piecewise linear: see the module on what that means for exact gradients.

    Arguments:
        channels: Channels of the first layer; each later one doubles them.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.LeakyReLU(0.05)]
        for _ in range(3):
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.LeakyReLU(0.05)]
            channels *= 2
        self.f = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4))

    def forward(self, z: Tensor) -> Tensor:
        """Network outputs, shape (B,), of images in [-1, 1], shape (B, 3, 32, 32)."""
        values: Tensor = self.f(z)
        return values.flatten()


class Scaled(nn.Module):
    """``E(z) = f(z) / U``.

    Arguments:
        net: Maps images in [-1, 1] to numbers, shape (B,).
        unit: U.
    """

    def __init__(self, net: nn.Module, unit: float) -> None:
        super().__init__()
        self.net = net
        self.unit = unit

    def forward(self, z: Tensor) -> Tensor:
        """Energies, shape (B,), of images in [-1, 1], shape (B, C, H, W)."""
        values: Tensor = self.net(z)
        return values if self.unit == 1 else values / self.unit


@dataclass(frozen=True)
class EnergyArchitecture:
    """A kind of energy network that weights can be loaded into.

    Arguments:
        build: Returns the network with random weights.
        image_shape: (C, H, W) of its images.
        steps: Langevin steps of a purification, where a sweep file gives no number.
        step_size: Their size tau, likewise; units of z in [-1, 1].
        temperature: Their temperature, likewise.
        unit: U of its checkpoints.
        weights: Weights that ship with puregrid, if any.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    steps: int
    step_size: float
    temperature: float = 1.0
    unit: float = 1.0
    weights: Path | None = None


ENERGIES: Registry[EnergyArchitecture] = Registry("energy", "puregrid.energies", instance_of=EnergyArchitecture)


class EnergyConfig(Spec):
    """The config of an energy network.

    Arguments:
        energy: Name of an architecture.
        weights: Path of the checkpoint; may be left out where puregrid ships one.
        sha256: sha256 of the checkpoint, at least its first 8 hex digits; filled in from the file.
    """

    named_by: ClassVar[str | None] = "energy"
    energy: str
    weights: str | None = Field(default=None, exclude=True)
    sha256: str | None = SHA256

    @property
    def architecture(self) -> EnergyArchitecture:
        """The architecture of that name.

        Raises:
            InvalidInput: There is none.
        """
        return ENERGIES.get(self.energy)

    def code(self) -> Code | None:
        """Return the code of the architecture where it is not puregrid's; see :class:`Spec`."""
        return super().code() or ENERGIES.code_of(self.energy)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.architecture.image_shape

    def resolved(self, base: Path) -> Self:
        """This config with its checkpoint found, hashed and checked.

        Raises:
            InvalidInput: Unknown architecture, no weights, a missing file or one with another hash.
        """
        architecture = self.architecture
        if self.weights is not None:
            with inside("weights"):
                path = path_of(self.weights, "energy weights", base=base)
        elif architecture.weights is not None:
            path = architecture.weights
        else:
            raise InvalidInput(
                f"energy {self.energy!r} needs `weights`, the path of its checkpoint: puregrid ships none. Write "
                f"`energy: {{energy: {self.energy}, weights: PATH}}`; `puregrid train` makes one."
            )
        return self.model_copy(
            update={
                "weights": str(path),
                "sha256": assert_sha256(path, self.sha256, what="energy weights"),
            }
        )

    def build(self) -> Scaled:
        """Load the network: images in [-1, 1], shape (B, C, H, W), to energies, shape (B,); frozen.

        Raises:
            InvalidInput: The file has changed or is not of this architecture.
        """
        if self.weights is None or self.sha256 is None:
            raise ValueError("resolve the config before building")
        assert_sha256(self.weights, self.sha256, what="energy weights")
        with reading(self.weights, "energy weights"):
            net = Scaled(load_weights(self.architecture.build(), self.weights), self.architecture.unit)
        return net.eval().requires_grad_(False)


def energy_gradient(energy: nn.Module, z: Tensor, *, create_graph: bool = False) -> Tensor:
    r""":math:`\nabla_z E(z)` of every image, shape (B, C, H, W).

    Arguments:
        energy: Maps images to energies, shape (B,), each of its own image alone.
        z: Images. Gradients need not be enabled outside.
        create_graph: Whether the result can be differentiated again, with respect to ``z`` or the weights; it is
            detached otherwise. Torch computes the first derivative of some layers by another formula then (SiLU), so
            that the value may differ in its last bits.
    """
    with torch.enable_grad():
        at = z if create_graph and z.requires_grad else z.detach().requires_grad_()
        total = energy(at).sum()
        # Without autocast, which would run in bf16 the derivative of what the forward pass did not.
        with torch.autocast(z.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(total, at, create_graph=create_graph)
    return gradient


_ASSETS = Path(__file__).parent / "assets"

ENERGIES.register("digits-energy")(
    EnergyArchitecture(
        build=DigitsEnergy,
        image_shape=(1, 8, 8),
        steps=200,
        step_size=0.05,
        temperature=0.3,
        weights=_ASSETS / "digits-energy" / "model.safetensors",
    )
)
ENERGIES.register("cifar10-energy")(
    EnergyArchitecture(build=Cifar10Energy, image_shape=(3, 32, 32), steps=1500, step_size=0.01, unit=0.01**2 / 2)
)
