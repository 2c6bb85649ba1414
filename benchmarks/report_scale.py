"""Size and time of the report of a thousand cells, as one file and as a folder, whose rows are made up.

A store (``benchmarks/readers.py``) of 20 defences under 48 attacks and 4 corruptions on ``--images`` images. Printed
are seconds of processor, bytes of the page, and of the folder the bytes of ``index.html`` and how many pages and
images are beside it. How soon a browser paints it is to be asked of a browser: ``performance.getEntriesByType``.

    python benchmarks/report_scale.py [--images 200] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from plain_images import VARIABLE
from readers import Filler

from workflows.analysis import Analysis
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.report import report_to
from workflows.results.reader import Results
from workflows.store import Attempt, Store

SWEEP = """\
sweep: thousand
datasets: [{{dataset: 'plain_images:Plain', images: {{first: {images}}}}}]
classifiers: [digits-cnn]
defences:
  - none
  - {{purifier: gaussian-noise, sigma: {sigmas}, draws: 5}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: {eps}, steps: [5, 10, 20, 40]}}
  - {{attack: pgd, norm: linf, eps: {eps}, steps: [5, 10, 20, 40], gradient: exact, eot: 2}}
corruptions: [{{corruption: [gaussian_noise, brightness], severity: [1, 5]}}]
chunk: {images}
"""


def fill(folder: Path, images: int) -> None:
    sigmas, eps = [round(0.02 * i, 2) for i in range(1, 20)], [0.01, 0.02, 0.04, 0.08, 0.12, 0.16]
    (folder / "sweep.yaml").write_text(SWEEP.format(images=images, sigmas=sigmas, eps=eps))
    sweep, store = load_sweep(folder / "sweep.yaml"), Store(str(folder / "store"))
    filler = Filler(sweep.cells[0].images.dataset.load())
    for stage in make_plan(sweep).stages:
        for chunk in stage.chunks:
            store.commit(stage.spec, stage.id, chunk, filler.output(stage.spec, chunk), Attempt("a", 1.0, "h"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="Folder for store and reports, which is used again.")
    options = parser.parse_args()
    os.environ[VARIABLE] = str(options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "store").is_dir():
            fill(folder, options.images)
        results = Results(Store(str(folder / "store")), load_sweep(folder / "sweep.yaml"))
        analysis = Analysis(results)
        began = time.process_time()
        findings = len(analysis.findings)
        print(f"{len(results.sweep.cells)} cells; audit, {findings} findings: {time.process_time() - began:.1f} s")
        for out in (f"{folder}/report.html", f"{folder}/report/"):
            began = time.process_time()
            page = report_to(analysis, out, "html", command="puregrid report sweep.yaml")
            print(f"{out}: {time.process_time() - began:.1f} s, {page.stat().st_size:,} bytes", end="")
            if out.endswith("/"):
                cells, images = (len(list((folder / "report" / part).iterdir())) for part in ("cells", "images"))
                places = sum(text.read_text().count("<img ") for text in (folder / "report/cells").iterdir())
                print(f", {cells} pages with {places:,} images in {images} files", end="")
            print()


if __name__ == "__main__":
    main()
