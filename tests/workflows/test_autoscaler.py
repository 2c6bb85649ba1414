"""A cluster that is empty, grows because a sweep asks for workers, and is empty again when it is done."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from heads import head
from lab import SMALL, Lab, calm, wait_for, workers_of

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_nodes_start_for_a_sweep_and_end_after_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store", sweep=SMALL)
    with patch.dict(os.environ, lab.environment), head(grows_to=2) as cluster:
        assert len(cluster.parts("raylet")) == 1, "there is a node before there is work"
        driver = lab.start(2, "--address", cluster.address)
        wait_for(lambda: len(cluster.parts("raylet")) == 3, driver)
        _, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
        wait_for(lambda: len(cluster.parts("raylet")) == 1)
        wait_for(lambda: not workers_of(cluster.process.pid))
    assert lab.data() == calm(tmp_path / "calm", SMALL)
