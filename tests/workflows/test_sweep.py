"""From a sweep file to cells: the grid, images, rules, ids, labels."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from grids_small import ASSETS, DENOISERS, DIFFPURE, SMALL, attack_of, budgets, ids_of, kinds, swept
from loops import every

from defense.errors import InvalidInput
from workflows.planning.plan import make_plan


class TestGrid:
    def test_cells_are_the_product_of_all_axes_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        sweep = swept(
            tmp_path,
            DENOISERS
            + dedent(f"""\
            datasets:
              - {{dataset: digits, images: {{first: 4}}}}
              - {{dataset: digits, split: train, images: {{first: 2}}}}
            classifiers: [digits-cnn]
            defences: [none, {DIFFPURE}]
            attacks: [none, {{attack: pgd, norm: linf, eps: 0.1}}, {{attack: pgd, norm: l2, eps: 1}}]
            seeds: [3, 5]
            """),
        )
        found = [
            (c.images.dataset.label(), c.defence.label(), "none" if c.attack is None else c.attack.norm, c.seed)
            for c in sweep.cells
        ]
        assert found == list(
            itertools.product(
                ("digits", "digits (train)"), ("none", "diffpure t*=20 in 2 steps"), ("none", "linf", "l2"), (3, 5)
            )
        )
        assert len({cell.id for cell in sweep.cells}) == 2 * 2 * 3 * 2

    def test_lists_inside_an_entry_are_axes(self, tmp_path: Path) -> None:
        sweep = swept(
            tmp_path,
            SMALL + DENOISERS + "attacks: [{attack: pgd, norm: [linf, l2], eps: [0.1, 0.2, 0.3], steps: [1, 2]}]\n",
            "defences=[{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: [10, 20], draws: [1, 3]}]",
        )
        found = {
            (attack_of(c).norm, attack_of(c).eps, attack_of(c).evaluations, c.defence.label(), c.defence.draws)
            for c in sweep.cells
        }
        expected = itertools.product(
            ("linf", "l2"), (0.1, 0.2, 0.3), (2, 3), ("diffpure t*=10", "diffpure t*=20"), (1, 3)
        )
        assert found == set(expected)
        assert len(sweep.cells) == len(found)

    def test_a_field_that_is_a_list_by_nature_is_no_axis(self, tmp_path: Path) -> None:
        sweep = swept(tmp_path, SMALL, "classifiers=[{classifier: digits-cnn, mean: [0.5], std: [0.25]}]")
        (cell,) = sweep.cells
        assert (cell.classifier.mean, cell.classifier.std) == ((0.5,), (0.25,))

    def test_defaults_are_one_clean_cell_with_seed_0_named_after_the_file(self, tmp_path: Path) -> None:
        sweep = swept(tmp_path, "datasets: [digits]\nclassifiers: [digits-cnn]\ndefences: [none]\n")
        (cell,) = sweep.cells
        assert (sweep.name, cell.attack, cell.seed, cell.defence.draws) == ("s", None, 0, 1)
        assert [len(ids) for ids in ids_of(sweep)] == [100] * 5 + [99]
        assert cell.compute.model_dump() == {"batch": 100, "precision": "fp32", "threads": 1, "noise": 2}

    def test_eps_255_is_eps_over_255(self, tmp_path: Path) -> None:
        text = SMALL + "attacks: [{attack: pgd, norm: linf, eps_255: [8, 0.5]}]\n"
        same = SMALL + f"attacks: [{{attack: pgd, norm: linf, eps: [{8 / 255!r}, {0.5 / 255!r}]}}]\n"
        assert budgets(swept(tmp_path, text)) == [8 / 255, 0.5 / 255]
        assert swept(tmp_path, text).id == swept(tmp_path, same).id

    def test_sigma_eq_and_t_star_are_two_spellings_of_one_cell(self, tmp_path: Path) -> None:
        def defence(depth: str) -> str:
            return SMALL + DENOISERS + f"include: [{{defences: [{{purifier: diffpure, denoiser: ddpm, {depth}}}]}}]\n"

        by_sigma = swept(tmp_path, defence("sigma_eq: 0.25")).cells[1]
        level = by_sigma.defence.purifier.noise_level
        assert level is not None
        assert level.sigma_eq >= 0.25
        by_t = swept(tmp_path, defence(f"schedule: linear-1000, t_star: {level.t_star}")).cells[1]
        assert by_t.id == by_sigma.id
        before = swept(tmp_path, defence(f"schedule: linear-1000, t_star: {level.t_star - 1}")).cells[1]
        assert before.defence.purifier.noise_level is not None
        assert before.defence.purifier.noise_level.sigma_eq < 0.25

    def test_equal_cells_are_one(self, tmp_path: Path) -> None:
        text = (
            SMALL
            + "attacks: [none, none, {attack: pgd, norm: linf, eps_255: 51}, "
            + "{attack: pgd, norm: linf, eps: [0.2, 0.2]}]\n"
        )
        assert budgets(swept(tmp_path, text)) == [0.0, 0.2]
        assert len(swept(tmp_path, text, "seeds=[1, 1]").cells) == 2

    def test_weights_are_found_from_the_folder_of_the_file_and_hashed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "nets").mkdir()
        weights = (ASSETS / "digits-cnn" / "model.safetensors").read_bytes()
        (tmp_path / "nets" / "a.safetensors").write_bytes(weights)
        monkeypatch.chdir("/")
        named = swept(tmp_path, SMALL, "classifiers=[{classifier: digits-cnn, weights: nets/a.safetensors}]")
        config = named.cells[0].classifier
        assert config.weights == str(tmp_path / "nets" / "a.safetensors")
        card = yaml.safe_load((ASSETS / "digits-cnn" / "card.yaml").read_text())
        assert config.sha256 == card["sha256"]["model.safetensors"]
        # Where the file lies and what it is called is not what it is.
        assert named.id == swept(tmp_path, SMALL).id


class TestImages:
    @pytest.mark.parametrize(
        ("images", "ids"),
        [
            ("{first: 5}", [0, 1, 2, 3, 4]),
            ("{every: 200}", [0, 200, 400]),
            ("{first: 3, every: 7}", [0, 7, 14]),
            ("{start: 590, every: 4}", [590, 594, 598]),
            ("{start: 3, stop: 6}", [3, 4, 5]),
            ("{start: 2, first: 2, every: 10}", [2, 12]),
            ("{ids: [9, 2, 598]}", [9, 2, 598]),
            ("{ids: 7}", [7]),
            ("{}", list(range(599))),
        ],
    )
    def test_selections(self, tmp_path: Path, images: str, ids: list[int]) -> None:
        sweep = swept(tmp_path, SMALL, f"datasets.0.images={images}", "chunk=1000")
        assert ids_of(sweep) == [tuple(ids)]
        assert sweep.cells[0].images.count == len(ids)

    @pytest.mark.parametrize("chunk", [1, 3, 10, 11])
    def test_chunks_cover_the_images_in_order(self, tmp_path: Path, chunk: int) -> None:
        wanted = [9, 2, 30, 4, 5, 6, 17, 8, 1, 598]
        chunks = ids_of(swept(tmp_path, SMALL, f"datasets.0.images={{ids: {wanted}}}", f"chunk={chunk}"))
        assert [i for ids in chunks for i in ids] == wanted
        assert [len(ids) for ids in chunks[:-1]] == [chunk] * (len(chunks) - 1)
        assert 1 <= len(chunks[-1]) <= chunk

    def test_more_images_keep_the_names_of_the_chunks_that_were_there(self, tmp_path: Path) -> None:
        def names(first: int) -> list[str]:
            sweep = swept(tmp_path, SMALL, f"datasets.0.images.first={first}", "chunk=50")
            return [chunk.name for chunk in sweep.cells[0].images.chunks]

        assert len(names(200)) == 4
        assert names(400)[:4] == names(200)
        assert len(set(names(400))) == 8
        assert names(220)[:4] == names(200)


class TestExcludeInclude:
    TEXT = (
        SMALL
        + DENOISERS
        + "attacks: [none, {attack: pgd, norm: linf, eps: [0.1, 0.2]}, {attack: pgd, norm: l2, eps: 0.5, steps: 7}]\n"
    )
    DEFENCES = f"defences=[none, {DIFFPURE}]"

    def _left(self, folder: Path, exclude: str) -> set[tuple[str, float, int]]:
        sweep = swept(folder, self.TEXT, self.DEFENCES, "seeds=[0, 1]", f"exclude={exclude}")
        return {(c.defence.purifier.purifier, 0.0 if c.attack is None else c.attack.eps, c.seed) for c in sweep.cells}

    ALL = frozenset(itertools.product(("none", "diffpure"), (0.0, 0.1, 0.2, 0.5), (0, 1)))

    @pytest.mark.parametrize(
        ("exclude", "gone"),
        [
            ("[{defence: none}]", {cell for cell in ALL if cell[0] == "none"}),
            ("[{defence: diffpure t*=20 in 2 steps}]", {cell for cell in ALL if cell[0] == "diffpure"}),
            ("[{attack: none}]", {cell for cell in ALL if cell[1] == 0}),
            ("[{attack: pgd}]", {cell for cell in ALL if cell[1] > 0}),
            ("[{attack: pgd-7 l2}]", {cell for cell in ALL if cell[1] == 0.5}),
            ("[{attack: {norm: linf}}]", {cell for cell in ALL if cell[1] in (0.1, 0.2)}),
            ("[{attack: {eps: 0.1}}]", {cell for cell in ALL if cell[1] == 0.1}),
            ("[{attack: {eps_255: 51}}]", {cell for cell in ALL if cell[1] == 0.2}),
            ("[{attack: {eps: [0.1, 0.5]}}]", {cell for cell in ALL if cell[1] in (0.1, 0.5)}),
            ("[{seed: 1}]", {cell for cell in ALL if cell[2] == 1}),
            (
                "[{defence: {t_star: 20, draws: 1}, attack: {norm: linf, eps: 0.2}, seed: 0}]",
                {("diffpure", 0.2, 0)},
            ),
            ("[{attack: none}, {defence: none, seed: 1}]", {c for c in ALL if not c[1] or (c[0] == "none" and c[2])}),
            ("[{defence: none}, {defence: none, seed: 1}]", {cell for cell in ALL if cell[0] == "none"}),
        ],
    )
    def test_exclude_removes_the_cells_that_match_all_of_its_keys(
        self, tmp_path: Path, exclude: str, gone: set[tuple[str, float, int]]
    ) -> None:
        assert self._left(tmp_path, exclude) == self.ALL - gone

    @pytest.mark.parametrize(
        "exclude",
        [
            "[{attack: fgsm}]",
            "[{attack: {eps: 0.10001}}]",
            "[{attack: {stepps: 7}}]",
            "[{defence: {t_star: 21}}]",
            "[{seed: 2}]",
            "[{attack: none, defence: {draws: 2}}]",
            "[{dataset: cifar10}]",
        ],
    )
    def test_exclude_that_matches_nothing_is_refused(self, tmp_path: Path, exclude: str) -> None:
        with pytest.raises(InvalidInput, match="matches no cell"):
            self._left(tmp_path, exclude)

    def test_include_inherits_the_axes_that_it_does_not_name(self, tmp_path: Path) -> None:
        extra = f"include: [{{defences: [{DIFFPURE}], attacks: [none]}}, {{seeds: [4]}}]\n"
        sweep = swept(tmp_path, self.TEXT + extra)
        found = [(c.defence.purifier.purifier, e, c.seed) for c, e in zip(sweep.cells, budgets(sweep), strict=True)]
        grid = [("none", eps, 0) for eps in (0.0, 0.1, 0.2, 0.5)]
        assert found == [*grid, ("diffpure", 0.0, 0), *[("none", eps, 4) for eps in (0.0, 0.1, 0.2, 0.5)]]
        assert {c.images for c in sweep.cells} == {sweep.cells[0].images}

    def test_include_may_bring_its_own_data_set_and_classifier(self, tmp_path: Path) -> None:
        extra = """\
        include:
          - datasets: [{dataset: digits, split: train, images: {ids: [5]}}]
            classifiers: [{classifier: digits-cnn, name: mine, mean: [0.0], std: [1.0]}]
        """
        sweep = swept(tmp_path, SMALL + dedent(extra))
        assert [(c.images.dataset.label(), c.images.count, c.classifier.label()) for c in sweep.cells] == [
            ("digits", 4, "digits-cnn"),
            ("digits (train)", 1, "mine"),
        ]

    def test_a_cell_of_the_grid_that_is_included_again_is_one(self, tmp_path: Path) -> None:
        assert len(swept(tmp_path, self.TEXT + "include: [{attacks: [none]}]\n").cells) == 4

    def test_exclude_does_not_touch_what_is_included(self, tmp_path: Path) -> None:
        extra = "exclude: [{attack: none}]\ninclude: [{attacks: [none], seeds: [7]}]\n"
        sweep = swept(tmp_path, self.TEXT + extra)
        assert [(eps, c.seed) for c, eps in zip(sweep.cells, budgets(sweep), strict=True)] == [
            (0.1, 0),
            (0.2, 0),
            (0.5, 0),
            (0.0, 7),
        ]


class TestId:
    TEXT = SMALL + "attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 3}]\nseeds: [0, 1]\n"

    @pytest.mark.parametrize(
        "same",
        [
            "# a comment\n" + TEXT + "\n\n# another\n",
            TEXT.replace("chunk: 2", "chunk:    2   # two"),
            "\n".join(reversed(TEXT.splitlines())),
            TEXT.replace(
                "{attack: pgd, norm: linf, eps: 0.1, steps: 3}", "{steps: 3, eps: 1e-1, norm: linf, attack: pgd}"
            ),
            TEXT.replace("seeds: [0, 1]", "seeds: [1, 0]"),
            TEXT.replace("[digits-cnn]", "\n  - classifier: digits-cnn\n    name: renamed"),
            TEXT.replace(
                "[digits-cnn]", f"\n  - classifier: digits-cnn\n    weights: {ASSETS}/digits-cnn/model.safetensors"
            ),
            TEXT.replace("defences: [none]", "defences: [{purifier: none, draws: 1, aggregation: single}]"),
            TEXT + "compute: {batch: 100}\n",
            TEXT + "denoisers: {}\n",
        ],
    )
    def test_the_same_sweep_written_otherwise_has_the_same_id(self, tmp_path: Path, same: str) -> None:
        assert swept(tmp_path, same).id == swept(tmp_path, self.TEXT).id

    @every(
        "change",
        [
            "sweep=other",
            "chunk=4",
            "seeds=[0]",
            "seeds=[0, 2]",
            "attacks.1.eps=0.1000001",
            "attacks.1.steps=4",
            "attacks.1.norm=l2",
            "attacks.1.random_start=false",
            "datasets.0.images.first=5",
            "datasets.0.split=train",
            "defences=[{purifier: none, aggregation: majority-vote}]",
            "classifiers=[{classifier: digits-cnn, mean: [0.5]}]",
            "compute.batch=99",
            "compute.precision=bf16",
            "compute.threads=2",
        ],
    )
    def test_another_value_is_another_sweep(self, tmp_path: Path, change: str) -> None:
        assert swept(tmp_path, self.TEXT, change).id != swept(tmp_path, self.TEXT).id

    def test_the_id_is_the_same_in_another_process(self, tmp_path: Path) -> None:
        here = swept(tmp_path, self.TEXT)
        code = (
            "import sys, pathlib; from workflows.grid.load import load_sweep;"
            "s = load_sweep(pathlib.Path(sys.argv[1]));"
            "print(s.id, *[c.id for c in s.cells])"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "s.yaml")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ASSETS.parents[1]).stdout
        assert printed.split() == [here.id, *[cell.id for cell in here.cells]]


class TestLabels:
    def test_attacks_of_one_short_name_are_distinguished(self, tmp_path: Path) -> None:
        sweep = swept(
            tmp_path, SMALL + "attacks: [{attack: pgd, norm: linf, eps: [0.1, 0.2], step_size: [0.01, 0.02]}]\n"
        )
        names = {(sweep.labels[cell.id]["attack"], attack_of(cell).eps) for cell in sweep.cells}
        first, second = "pgd-20 linf (step_size=0.01)", "pgd-20 linf (step_size=0.02)"
        assert names == {(first, 0.1), (first, 0.2), (second, 0.1), (second, 0.2)}

    def test_names_that_differ_stay_short(self, tmp_path: Path) -> None:
        sweep = swept(
            tmp_path, SMALL + "attacks: [none, {attack: pgd, norm: linf, eps: [0.1, 0.2], steps: [1, 2]}]\n"
        )
        assert [sweep.labels[cell.id]["attack"] for cell in sweep.cells] == [
            "clean",
            *["pgd-1 linf", "pgd-2 linf"] * 2,
        ]
        assert {sweep.labels[cell.id]["classifier"] for cell in sweep.cells} == {"digits-cnn"}

    def test_networks_are_called_by_their_files_unless_two_have_one_name(self, tmp_path: Path) -> None:
        twin = tmp_path / "twin" / "digits-ddpm"
        shutil.copytree(ASSETS / "digits-adbm", twin)
        for second, wanted in ((ASSETS / "digits-adbm", True), (twin, False)):
            sweep = swept(
                tmp_path,
                "datasets: [{dataset: digits, images: {first: 4}}]\nclassifiers: [digits-cnn]\ndenoisers:\n"
                f"  a: {{format: diffusers, path: {ASSETS / 'digits-ddpm'}, schedule: linear-1000}}\n"
                f"  b: {{format: diffusers, path: {second}, schedule: linear-1000}}\n"
                "defences: [{purifier: one-shot, denoiser: [a, b], schedule: linear-1000, t_star: 50}]\n"
                "attacks: [none]\n",
            )
            names = [sweep.labels[cell.id]["defence"] for cell in sweep.cells]
            by_file = ["one-shot t*=50 (denoiser=digits-ddpm)", "one-shot t*=50 (denoiser=digits-adbm)"]
            assert len(set(names)) == 2 and (names == by_file) is wanted
            assert wanted or not any("digits" in name for name in names)


def test_three_defences_four_attacks_and_five_budgets_fit_in_sixty_lines(tmp_path: Path) -> None:
    text = dedent(f"""\
    # Three defences of one classifier, four attacks, five budgets each.
    sweep: grid
    datasets:
      - dataset: digits
        images: {{first: 300}}
    classifiers: [digits-cnn]
    denoisers:
      ddpm:
        path: {ASSETS / "digits-ddpm"}
        schedule: linear-1000
    defences:
      - none
      - purifier: diffpure
        denoiser: ddpm
        schedule: linear-1000
        t_star: 100
        steps: 25
        draws: 4
      - purifier: diffpure
        denoiser: ddpm
        sigma_eq: 0.25
        draws: 8
        aggregation: majority-vote
    attacks:
      - &pgd
        attack: pgd
        norm: linf
        eps: [0.05, 0.10, 0.15, 0.20, 0.25]
        steps: 20
      - {{<<: *pgd, steps: 100}}
      - {{<<: *pgd, random_start: false, step_size: 0.01}}
      - attack: pgd
        norm: l2
        eps: [0.25, 0.5, 1.0, 1.5, 2.0]
    chunk: 100
    """)
    sweep = swept(tmp_path, text)
    assert len(text.splitlines()) <= 60
    assert len(sweep.cells) == 3 * 4 * 5
    plan = make_plan(sweep)
    assert kinds(plan) == {"attack": 20, "evaluate": 60}
    assert plan.units == 3 * (20 + 60)
