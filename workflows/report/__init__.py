"""``puregrid report``: one self-contained HTML page, or a folder of tables and figures, from committed rows alone."""

from workflows.report.files import FORMATS, report_to
from workflows.report.page import report

__all__ = ["FORMATS", "report", "report_to"]
