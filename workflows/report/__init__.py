"""``puregrid report``: one self-contained HTML page, or a folder of tables and figures, from committed rows alone."""

from workflows.report.files import FORMATS, check_out, report_to
from workflows.report.page import report

__all__ = ["FORMATS", "check_out", "report", "report_to"]
