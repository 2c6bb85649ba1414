"""Workers that share a GPU by fractions, in Ray's books: a node that says it has one is enough."""

from __future__ import annotations

import math
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from lab import wait_for
from naps import HERE, Nap, add_machine, assert_whole, go, plan_of, ran
from ray.cluster_utils import Cluster
from shared_gpu import Sharer

from defense.errors import InvalidInput
from workflows.engine.cluster import cluster, slots
from workflows.engine.pool import Pool
from workflows.store import Store


@pytest.mark.slow
def test_two_workers_of_half_a_gpu_see_the_same_one_and_compute_side_by_side(
    no_slots: Cluster, tmp_path: Path
) -> None:
    plan, store, log = plan_of([Nap(number=1, seconds=0.2)], 8), Store(str(tmp_path / "store")), tmp_path / "naps.log"
    with patch.dict(os.environ, {"NAPS_LOG": str(log), "PYTHONPATH": HERE}):
        node = add_machine(no_slots, 4, 70, gpus=1)
    with cluster(2, str(no_slots.address)), patch("workflows.engine.pool.UnitWorker", Sharer):
        # Four processors and one GPU: two of 0.5 or 0.4, three of 0.3, one of 1 and of 0.6, and none of 2.
        assert [slots(1, share) for share in (0, 0.5, 0.4, 0.3, 0.6, 1)] == [4, 2, 2, 3, 1, 1]
        with pytest.raises(InvalidInput, match="no room for a worker that takes 1 CPUs and 2 GPUs"):
            slots(1, 2)
        pool = Pool(store.uri, slots(1, 0.5), gpus_per_worker=0.5)
        wait_for(lambda: not pool.wait(0.1) and pool.workers == 2)  # else the first could do all
        with patch("workflows.engine.loop._OVERDUE_SECONDS", math.inf):  # no second copies on a busy machine
            outcome = go(plan, pool, store)
    no_slots.remove_node(node)
    assert outcome.computed == 8 and not outcome.failures and outcome.replaced == 0
    assert_whole(plan, store)
    assert set(ran(log).values()) == {1}
    workers = {line.split()[1] for line in log.read_text().splitlines()}
    assert len(workers) == 2, "one worker did all"
    seen = {path.name: path.read_text() for path in tmp_path.glob("worker-*")}
    assert seen == dict.fromkeys((f"worker-{worker}" for worker in workers), "cuda 0 2")
