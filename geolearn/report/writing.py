"""Write a report beside its target and rename it, so that nobody opens half a page."""

from pathlib import Path

from geolearn.errors import RasterError
from geolearn.raster import replacing
from geolearn.report.contents import ReportContents
from geolearn.report.page import render_report


def write_report(path: str | Path, report: ReportContents) -> Path:
    """Write a report as one page of HTML that needs no other file, no script and no network.

    Args:
        path: Target, such as ``'report.html'``.
        report: What it holds.

    Returns:
        The path written.

    Raises:
        RasterError: If it cannot be written.
    """
    path = Path(path).expanduser()
    page = render_report(report)
    try:
        with replacing(path) as part:
            part.write_bytes(page)
    except OSError as error:
        if isinstance(error, RasterError):
            raise
        raise RasterError(f'cannot write {path}: {error.strerror}. Nothing was left behind') from error
    return path
