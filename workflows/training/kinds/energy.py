r"""Training of an energy network, by maximum likelihood with persistent chains or by denoising score matching.

With :math:`z = 2x - 1`, data noised at level s (:math:`\tilde z = z + s n`), and :math:`E = f_\theta / U`:

* ``pcd``, persistent contrastive divergence (Tieleman, "Training restricted Boltzmann machines using approximations
  to the likelihood gradient", ICML 2008), with Langevin chains as in Hill et al. (arXiv 2005.13525):

  .. math:: \mathcal L = \operatorname{mean} E(\tilde z) - \operatorname{mean} E(z^-)
            + \lambda \operatorname{mean}\big(E(\tilde z)^2 + E(z^-)^2\big)

  whose gradient (with lambda = 0) is that of the negative log-likelihood if :math:`z^-` are samples of the model.
  They are the states of persistent chains, moved by a few Langevin steps of size tau before each use:
  :math:`z \leftarrow z - \tfrac{\tau^2}{2} \nabla E(z) + \tau n`.

* ``dsm``, denoising score matching (Vincent, "A connection between score matching and denoising autoencoders", Neural
  Computation 2011): the energy's gradient is made the negative score of the data noised at level s,

  .. math:: \mathcal L = \operatorname{mean} \lVert s \nabla E(\tilde z) - n \rVert^2 .

  No chains are run, so it is cheap and cannot diverge; but nothing looks at places where no noised data are, where a
  long chain may find a low energy that no image has.

Either way the model is one of the *noised* data: purified images carry noise of level s (in z, s / 2 in pixels),
less at a temperature below 1.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.energy import ENERGIES, Scaled, energy_gradient
from defense.errors import InvalidInput
from defense.purifiers.ebm import EBM
from defense.randomness import Omega
from tasks.attacks import PGDConfig, Target
from tasks.attacks.budgets import format_eps
from tasks.datasets import ImageSet
from workflows.training.config import Training
from workflows.training.objective import Objective

__all__ = ["EnergyObjective", "EnergyTraining"]

_BATCH = 500


class EnergyTraining(Training):
    """Training of an energy architecture. Lengths are in units of z in [-1, 1], twice those of pixels.

    Arguments:
        energy: Name of the architecture.
        objective: ``pcd`` or ``dsm``, see the module.
        noise: Level s of the noise on the data.
        step_size: tau of the chains' Langevin steps. Only ``pcd`` has chains.
        langevin_steps: Steps of each chain between two uses.
        chains: Number of persistent chains, at least ``batch``.
        start: Where chains start, at noised ``data`` or at ``uniform`` noise on [-1, 1].
        rejuvenate: Probability that a chain starts again before a use.
        magnitude: Weight lambda of the squared energies.
        classifier: A classifier that ships with puregrid: the card says how well it classifies purified test images,
            clean ones and ones under a static attack, by ``ebm`` with the step size and the temperature that the
            architecture names. By default the card says energies only.
        purify_steps: Numbers of Langevin steps after which it does.
        eps: l_inf radius of the attack, PGD-20 on the bare classifier, units of [0, 1] pixels.
    """

    train: Literal["energy"]
    energy: str
    objective: Literal["pcd", "dsm"] = "pcd"
    noise: float = Field(gt=0)
    step_size: float = Field(default=0.01, gt=0)
    langevin_steps: int = Field(default=20, ge=1)
    chains: int = Field(default=1024, ge=1)
    start: Literal["data", "uniform"] = "data"
    rejuvenate: float = Field(default=0.0, ge=0, le=1)
    magnitude: float = Field(default=0.0, ge=0)
    classifier: str | None = None
    purify_steps: tuple[int, ...] = (50, 100, 200, 500)
    eps: float = Field(default=0.15, gt=0)

    @field_validator("purify_steps")
    @classmethod
    def _rise(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[0] < 1 or list(steps) != sorted(set(steps)):
            raise ValueError("the numbers of steps at which purification is measured rise, from at least 1")
        return steps


class EnergyObjective(Objective):
    """The loss of the module; the persistent chains are part of the checkpoint."""

    config: EnergyTraining

    def __init__(self, config: EnergyTraining, data: ImageSet) -> None:
        super().__init__(config, data)
        self.architecture = ENERGIES.get(config.energy)
        shape = data.images.shape[1:]
        if self.architecture.image_shape != shape:
            raise InvalidInput(
                f"energy: {config.energy!r} takes images of shape {self.architecture.image_shape}, the data set has "
                f"{shape}; name another architecture or data set."
            )
        if config.objective == "pcd" and config.chains < config.batch:
            raise InvalidInput(
                f"chains: {config.chains} persistent chains are fewer than the {config.batch} images of a batch, and "
                "each step moves as many chains as there are images; give more chains or a smaller batch."
            )
        # Before hours of training, not after: the card needs them.
        self.classifier: ClassifierConfig | None = None
        if config.classifier is not None:
            self.classifier = ClassifierConfig(classifier=config.classifier).resolved(Path.cwd())
            if self.classifier.architecture.image_shape != shape:
                raise InvalidInput(
                    f"classifier: {config.classifier!r} takes images of shape "
                    f"{self.classifier.architecture.image_shape}, the data set has {shape}; name another or none."
                )
        self.chains: Tensor | None = None

    def network(self) -> nn.Module:
        """Return the architecture, in its units."""
        return Scaled(self.architecture.build(), self.architecture.unit)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Return the loss of the objective; labels have no part in it."""
        n = torch.randn(x.shape, generator=generator).to(x)
        noised = 2 * x - 1 + self.config.noise * n
        if self.config.objective == "dsm":
            gradient = energy_gradient(net, noised.requires_grad_(), create_graph=True)
            return (self.config.noise * gradient - n).square().mean()
        positive, negative = net(noised), net(self._samples(net, x, generator))
        loss: Tensor = positive.mean() - negative.mean()
        if self.config.magnitude:
            loss = loss + self.config.magnitude * (positive.square() + negative.square()).mean()
        return loss

    def _samples(self, net: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return one sample per image in ``x``: chains chosen at random, moved, and put back."""
        config = self.config
        if self.chains is None:
            self.chains = self._fresh(config.chains, generator)
        chosen = torch.randperm(config.chains, generator=generator)[: len(x)]
        again = torch.rand(len(x), generator=generator) < config.rejuvenate
        z = self.chains[chosen]
        if config.rejuvenate:
            z = torch.where(again.view(-1, 1, 1, 1), self._fresh(len(x), generator), z)
        z = z.to(x)
        for _ in range(config.langevin_steps):
            n = torch.randn(z.shape, generator=generator).to(z)
            z = z - config.step_size**2 / 2 * energy_gradient(net, z) + config.step_size * n
        self.chains[chosen] = z.to(self.chains)
        return z

    def _fresh(self, count: int, generator: torch.Generator) -> Tensor:
        """States at which chains start."""
        if self.config.start == "uniform":
            return 2 * torch.rand(count, *self.architecture.image_shape, generator=generator) - 1
        chosen = torch.randint(len(self.data), (count,), generator=generator)
        z = 2 * torch.from_numpy(self.data.images)[chosen] - 1
        return z + self.config.noise * torch.randn(z.shape, generator=generator)

    def progress(self, net: nn.Module, test: ImageSet) -> dict[str, float]:
        """Return the mean energy of the first test images."""
        return {"test/energy": _mean_energy(net, 2 * torch.from_numpy(test.images[:_BATCH]) - 1)}

    def measure(self, net: nn.Module, test: ImageSet) -> dict[str, Any]:
        """Return the mean energies of noised test images and of uniform noise, and accuracies on purified images."""
        keys = Omega.of("training-card", 0, "judge", range(len(test)))
        z = 2 * torch.from_numpy(test.images) - 1
        measured: dict[str, Any] = {
            "test_images": len(test),
            "energy": {
                "noised test images": _mean_energy(net, z + self.config.noise * keys.normal("noise", 0, z)),
                "uniform noise": _mean_energy(net, 2 * keys.uniform("noise", 1, z) - 1),
            },
        }
        if self.classifier is not None:
            measured["purified"] = self._purified(net, test)
        return measured

    def _purified(self, net: nn.Module, test: ImageSet) -> dict[str, Any]:
        """Return accuracy of the classifier on test images after each number of Langevin steps, one draw an image."""
        assert self.classifier is not None
        device = next(net.parameters()).device
        classifier = self.classifier.build().to(device)
        attack = PGDConfig(norm="linf", eps=self.config.eps)
        marks = (0, *self.config.purify_steps)
        usual = self.architecture
        purify = EBM(net, marks[-1], usual.step_size, temperature=usual.temperature)
        right = {kind: dict.fromkeys(marks, 0) for kind in ("clean", "static_attack")}
        for first in range(0, len(test), _BATCH):
            part = slice(first, min(first + _BATCH, len(test)))
            x, y = torch.from_numpy(test.images[part]).to(device), torch.from_numpy(test.labels[part]).to(device)
            ids = range(part.start, part.stop)
            starts = Omega.of(attack.id, 0, "attack", ids)
            attacked = attack.run(Target(classifier, y, starts), x, starts).images
            keys = Omega.of("training-card", 0, "judge", ids)
            with torch.no_grad():
                for kind, images in (("clean", x), ("static_attack", attacked)):
                    z = purify.start(images, keys)
                    for step in range(marks[-1] + 1):
                        if step in marks:
                            answer = classifier(purify.finish(z, images, keys)).argmax(1)
                            right[kind][step] += int((answer == y).sum())
                        if step < marks[-1]:
                            z = purify.step(step, z, images, keys)
        share = {
            kind: {f"steps={step}": round(count / len(test), 6) for step, count in counts.items()}
            for kind, counts in right.items()
        }
        return {
            "classifier": {"classifier": self.classifier.classifier, "sha256": self.classifier.sha256},
            "step_size": usual.step_size,
            "temperature": usual.temperature,
            "draws": 1,
            "attack": f"PGD-20 linf eps {format_eps(self.config.eps)} on the bare classifier, blind to the purifier",
            "accuracy": share,
        }

    def save(self, net: nn.Module, out: Path) -> list[Path]:
        """``model.safetensors``: the network's output f, before the division by U."""
        assert isinstance(net, Scaled)
        file = out / "model.safetensors"
        save_file({key: value.cpu().contiguous() for key, value in net.net.state_dict().items()}, file)
        return [file]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the persistent chains, once there are any."""
        return {} if self.chains is None else {"chains": self.chains}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the chains back."""
        self.chains = state["chains"].clone() if "chains" in state else None


@torch.no_grad()
def _mean_energy(net: nn.Module, z: Tensor) -> float:
    """Return the mean energy of any number of images."""
    device = next(net.parameters()).device
    return round(float(torch.cat([net(part.to(device)).double().cpu() for part in torch.split(z, _BATCH)]).mean()), 4)
