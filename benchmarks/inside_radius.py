"""An l_2 attack inside every certified radius: does any certificate break?

Images are certified (CERTIFY of Cohen et al.), then each is attacked inside a ball of 0.999 times *its own* radius by
PGD on the mean loss over draws of the smoothing noise, through the base classifier, and the smoothed classifier is
asked again about the result with fresh samples (PREDICT). A certificate is broken if PREDICT names another class; an
abstention names none. Each certificate is wrong with probability alpha at most, each answer of PREDICT too.

The base is the shipped CNN behind one-shot denoising, or a classifier made of the class-conditional denoiser, which
takes the noised image as it is (``--base apndc`` or ``epndc``, with ``--levels`` of its grid).

    python benchmarks/inside_radius.py [--images 200] [--sigma 0.25] [--n 1000] [--steps 20] [--draws 8]
        [--base one-shot|apndc|epndc] [--levels 16]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import defense
from defense import ClassifierConfig, DiffusersConfig, Omega
from defense.certify import ABSTAIN, ESTIMATE, SELECT, certify, predict
from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.one_shot import OneShotConfig
from defense.smoothing import Bare, Denoised, smoothing_counts
from tasks.attacks import PGDConfig, Target
from tasks.datasets import DigitsConfig

ASSETS = Path(defense.__file__).parent / "assets"


def parts(name: str, sigma: float, levels: int) -> tuple[PurifierConfig, Purifier, torch.nn.Module, Denoised | Bare]:
    """Return what stands before the classifier under attack, both built, and the base of the certificate."""
    if name == "one-shot":
        network: torch.nn.Module = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
        denoiser = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path())
        config: PurifierConfig = OneShotConfig.model_validate({"denoiser": denoiser, "sigma_eq": sigma})
        purifier = config.build(Models())
        return config, purifier, network, Denoised(purifier, network)
    folder = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-cond-ddpm")).resolved(Path())
    fields = {"classifier": "noised-diffusion-classifier", "form": name, "sigma": sigma, "levels": levels}
    network = ClassifierConfig.from_entry({**fields, "denoiser": folder}).build()
    config = GaussianNoiseConfig(sigma=sigma)
    return config, config.build(), network, Bare(network)


def main() -> None:
    """Certify, attack, ask again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--base", choices=("one-shot", "apndc", "epndc"), default="one-shot")
    parser.add_argument("--levels", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)

    data = DigitsConfig().resolved(Path()).load()
    config, purifier, network, base = parts(options.base, options.sigma, options.levels)
    radii, norms, shares, broken, abstained = [], [], [], [], 0
    for image in track(range(options.images), "certify, attack, predict"):
        x = torch.from_numpy(data.images[[image]])

        def counts(
            role: str, seed: int, at: torch.Tensor, samples: int, image: int = image
        ) -> defense.certify.Counts:
            omega = Omega.of(config.id, seed, role, [image])
            (found,) = smoothing_counts(base, at, options.sigma, omega, 0, samples, 250, 10)
            return found

        certificate = certify(
            counts(SELECT, 0, x, 100), counts(ESTIMATE, 0, x, options.n), options.alpha, options.sigma
        )
        if certificate.prediction == ABSTAIN:
            continue
        attack = PGDConfig(norm="l2", eps=0.999 * certificate.radius, steps=options.steps, gradient="exact")
        # The purifier's own forward noise is the smoothing noise; that of a denoiser is a hair stronger.
        omega = Omega.of(attack.id, 0, "attack", [image])
        label = torch.tensor([certificate.prediction])
        target = Target(network, label, omega.within("eot"), purifier, draws=options.draws)
        adversarial = attack.run(target, x, omega).images
        norm = float((adversarial - x).double().norm())
        assert norm < certificate.radius, f"image {image} left its ball: {norm} of {certificate.radius}"
        after = counts(ESTIMATE, 1, adversarial, options.n)
        answer = predict(after, options.alpha)
        radii.append(certificate.radius)
        norms.append(norm)
        shares.append(after.per_class[certificate.prediction] / options.n)
        abstained += answer == ABSTAIN
        if answer not in (ABSTAIN, certificate.prediction):
            broken.append(image)
    print(f"digits, {options.base}, sigma {options.sigma:g}, n {options.n}, {options.images} images")
    print(f"certified: {len(radii)}, mean radius {np.mean(radii):.3f}, mean norm of the attacks {np.mean(norms):.3f}")
    print(f"share of the certified class afterwards: {min(shares):.3f} at least, {np.mean(shares):.3f} on average")
    print(f"abstentions: {abstained}; broken certificates: {len(broken)} {broken or ''}")


if __name__ == "__main__":
    main()
