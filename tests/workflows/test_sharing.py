"""From cells to stages and units that are shared, and static attacks among all defences."""

from __future__ import annotations

from pathlib import Path

import pytest
from grids_small import ASSETS, DENOISERS, DIFFPURE, SMALL, kinds, swept

from defense.errors import InvalidInput
from workflows.engine.worker import UnitWorker
from workflows.grid.load import load_sweep
from workflows.planning.plan import Committed, Plan, Unit, make_plan
from workflows.store import Store


class TestSharing:
    TWELVE = SMALL + DENOISERS + "attacks: [{attack: pgd, norm: linf, eps: 0.1}]\n"
    DEPTHS = (
        "defences=[{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, steps: 5, "
        "t_star: [25, 50, 75, 100, 125, 150, 175, 200, 225, 250, 275, 300]}]"
    )

    def test_twelve_t_stars_share_one_static_attack(self, tmp_path: Path) -> None:
        sweep = swept(tmp_path, self.TWELVE, self.DEPTHS, "datasets.0.images.first=70", "chunk=10")
        plan = make_plan(sweep)
        assert len(sweep.cells) == 12
        assert kinds(plan) == {"attack": 1, "evaluate": 12}
        assert plan.units == 7 * (1 + 12)
        assert plan.requested == 7 * 12 * 2
        (attack,) = [i for i, stage in enumerate(plan.stages) if stage.spec.stage == "attack"]
        assert [s.inputs for s in plan.stages if s.spec.stage == "evaluate"] == [{"source": attack}] * 12
        assert {stage.images for stage in plan.stages} == {70}

    def test_inputs_come_before_their_readers_and_have_their_chunks(self, tmp_path: Path) -> None:
        sweep = swept(tmp_path, self.TWELVE, self.DEPTHS, "seeds=[0, 1]", "attacks.0.eps=[0.1, 0.2]")
        plan = make_plan(sweep)
        assert kinds(plan) == {"attack": 4, "evaluate": 48}
        for position, stage in enumerate(plan.stages):
            for source in stage.inputs.values():
                assert source < position
                assert plan.stages[source].chunks == stage.chunks

    def test_another_number_of_draws_shares_the_attack_and_another_aggregation_the_whole_stage(
        self, tmp_path: Path
    ) -> None:
        entry = DIFFPURE.replace("}", ", draws: [1, 4], aggregation: [single, majority-vote]}")
        sweep = swept(tmp_path, self.TWELVE, f"defences=[{entry}]")
        assert len(sweep.cells) == 4
        assert kinds(make_plan(sweep)) == {"attack": 1, "evaluate": 2}

    def test_two_sweeps_that_overlap_share_stages_and_chunks(self, tmp_path: Path) -> None:
        one = make_plan(swept(tmp_path, self.TWELVE, "attacks.0.eps=[0.1, 0.2]", "datasets.0.images.first=20"))
        text = self.TWELVE.replace("sweep: small", "sweep: another # of another name")
        two = make_plan(
            swept(
                tmp_path,
                text,
                "attacks.0.eps=[0.2, 0.3]",
                f"defences=[none, {DIFFPURE}]",
                "datasets.0.images.first=30",
            )
        )

        def units(plan: Plan) -> set[tuple[str, str]]:
            return {(stage.id, chunk.name) for stage in plan.stages for chunk in stage.chunks}

        shared = units(one) & units(two)
        # Of eps 0.2: the attack, and the judgement of the bare classifier, on the first ten chunks.
        assert len(shared) == 2 * 10
        assert {stage.spec.stage for stage in two.stages if (stage.id, stage.chunks[0].name) in shared} == {
            "attack",
            "evaluate",
        }

    def test_two_choices_of_images_of_one_data_set_are_refused(self, tmp_path: Path) -> None:
        twice = "datasets=[{dataset: digits, images: {first: 4}}, {dataset: digits, images: {first: 6}}]"
        with pytest.raises(InvalidInput, match="cells on different images cannot be compared"):
            swept(tmp_path, SMALL, twice)
        # Two splits are two data sets, and one choice that is listed twice is one.
        splits = "datasets=[{dataset: digits, images: {first: 4}, split: [test, train]}]"
        assert len(swept(tmp_path, SMALL, splits).cells) == 2
        assert len(swept(tmp_path, SMALL, twice.replace("6", "4")).cells) == 1

    def test_the_plan_knows_what_is_committed(self, tmp_path: Path) -> None:
        sweep = swept(tmp_path, SMALL + "attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 1}]\n")
        plan = make_plan(sweep)
        store = Store(str(tmp_path / "store"))
        assert plan.committed(store) == Committed(plan)
        worker = UnitWorker(store.uri, "cpu")
        worker.run(plan.stages[0].spec, plan.stages[0].id, plan.stages[0].chunks[1], {})
        assert list(plan.committed(store)) == [Unit(0, 1)]


class TestThreatModels:
    TEXT = f"""
datasets: [{{dataset: digits, images: {{first: 10}}}}]
classifiers: [digits-cnn]
denoisers:
  ddpm: {{path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}
defences:
  - none
  - {{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: [10, 20], steps: 2}}
attacks:
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2}}
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: [bpda, exact], eot: 3}}
"""

    def test_static_attacks_are_shared_and_adaptive_ones_belong_to_their_defence(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text(self.TEXT)
        sweep = load_sweep(tmp_path / "s.yaml")
        # Knowing the purifier means nothing where there is none: one cell, not three.
        assert [cell.defence.label().split()[0] for cell in sweep.cells] == ["none"] + ["diffpure"] * 6
        sources = [cell.evaluate.source for cell in sweep.cells]
        static = {source.id for source in sources if source is not None and source.attack.static}
        adaptive = {source.id for source in sources if source is not None and not source.attack.static}
        assert len(static) == 1 and len(adaptive) == 4
        assert all((source.purifier is None) == source.attack.static for source in sources if source is not None)
        labels = {sweep.labels[cell.id]["attack"] for cell in sweep.cells}
        assert labels == {"pgd-2 linf", "pgd-2 linf bpda eot 3", "pgd-2 linf exact eot 3"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("eot: 3}", "eot.*has no draws"),
            ("gradient: exakt}", "unknown gradient mode 'exakt'"),
            ("gradient: exact, knows: classifier}", "does not go with `knows: classifier`"),
        ],
    )
    def test_contradictions_are_refused(self, tmp_path: Path, change: str, message: str) -> None:
        text = self.TEXT.split("  - {attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient")[0]
        (tmp_path / "s.yaml").write_text(text + "  - {attack: pgd, norm: linf, eps: 0.1, " + change + "\n")
        with pytest.raises(InvalidInput, match=message):
            load_sweep(tmp_path / "s.yaml")
