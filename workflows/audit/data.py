"""The data sets of a sweep, read once for all rules that look at images."""

from tasks.datasets import DatasetConfig, ImageSet

__all__ = ["DataSets"]


class DataSets:
    """Reads data sets and keeps the last one: one is in memory at a time."""

    def __init__(self) -> None:
        self._last: tuple[str, ImageSet] | None = None

    def load(self, config: DatasetConfig) -> ImageSet:
        """Return the images, checked against the digest.

        Raises:
            PuregridError: They are not there, or not those that the sweep was planned with.
        """
        if self._last is None or self._last[0] != config.id:
            self._last = None
            self._last = config.id, config.load()
        return self._last[1]
