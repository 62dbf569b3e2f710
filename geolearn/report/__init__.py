"""Reports: what was done and how well it went, as one page of HTML that needs nothing else.

`ReportContents` says what a report holds, in sections of the same few parts for every task; `write_report` makes the
page. Where the numbers come from is not known here.
"""

from geolearn.report.checking import is_report
from geolearn.report.contents import (
    Cell,
    Code,
    Facts,
    Notes,
    Part,
    Picture,
    ReportContents,
    Section,
    Share,
    Swatch,
    Table,
)
from geolearn.report.page import render_report, write_report

__all__ = [
    'Cell',
    'Code',
    'Facts',
    'Notes',
    'Part',
    'Picture',
    'ReportContents',
    'Section',
    'Share',
    'Swatch',
    'Table',
    'is_report',
    'render_report',
    'write_report',
]
