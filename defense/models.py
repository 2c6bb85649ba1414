"""The networks of a purifier."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import nn

__all__ = ["Loadable", "Models"]

M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
M = TypeVar("M", bound=nn.Module)


class Loadable(Protocol[M_co]):
    """A config of a network: a denoiser's, a classifier's, an energy model's."""

    @property
    def id(self) -> str:
        """Content id."""
        ...

    def build(self) -> M_co:
        """Load the network."""
        ...


class Models:
    """The networks that a purifier is built from.

    Arguments:
        protected: The classifier that the defence protects, for purifiers that are guided by it.
        load: How to load a network from its config; by default anew each time. A worker passes its cache, so that
            all values of t* in a sweep share one network.
    """

    def __init__(
        self, protected: nn.Module | None = None, load: Callable[[Any], nn.Module] = lambda config: config.build()
    ) -> None:
        self._protected = protected
        self._load = load

    def load(self, config: Loadable[M]) -> M:
        """Return the network of a config."""
        return self._load(config)  # type: ignore[return-value]

    @property
    def protected(self) -> nn.Module:
        """The protected classifier.

        Raises:
            ValueError: There is none.
        """
        if self._protected is None:
            raise ValueError("this purifier is guided by the classifier that it protects: Models(protected=...)")
        return self._protected
