"""A third-party purifier that misbehaves on demand, for tests that kill, block and poison real workers.

It returns its input plus keyed noise, writes a line into a log each time it runs, and obeys orders about certain
image ids: ``raise:3``, ``exit:3``, ``hang-once:3``, ``wait:3`` (for a file beside the log that ends in ``.go``). The
environment variable UNRULY names a file: its first line is the path of the log, its second the orders.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from torch import Tensor

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega


class Unruly(Purifier):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        first, _, orders = Path(os.environ["UNRULY"]).read_text().partition("\n")
        log = Path(first)
        with log.open("a") as file:
            file.write(f"{os.getpid()} {omega.image_ids[0]}\n")
        for order in filter(None, orders.split(",")):
            action, image = order.split(":")
            if int(image) in omega.image_ids:
                self._misbehave(action, log)
        time.sleep(self.seconds)
        return (x + 0.1 * omega.normal("forward", 0, x)).clamp(0, 1)

    @staticmethod
    def _misbehave(action: str, log: Path) -> None:
        if action == "raise":
            raise RuntimeError("this image is poison")
        if action == "exit":
            os._exit(13)
        while action == "wait" and not log.with_suffix(".go").exists():
            time.sleep(0.05)
        mark = log.with_suffix(".hung")
        if action == "hang-once" and not mark.exists():
            mark.touch()
            time.sleep(3600)


class UnrulyConfig(PurifierConfig):
    """Noise with bad manners."""

    purifier: Literal["unruly:UnrulyConfig"] = "unruly:UnrulyConfig"
    seconds: float = 0.0

    def label(self) -> str:
        return "unruly"

    def build(self, models: Models | None = None) -> Unruly:
        return Unruly(self.seconds)
