"""Grids of trainings, and studies of papers as one call on a folder of one's own, published scores beside them."""

from geolearn.studies.grid import Grid, read_grid, run_grid
from geolearn.studies.grid_estimate import GridEstimate, estimate_grid
from geolearn.studies.grid_result import Cell, GridResult, Published
from geolearn.studies.sar import SarStudy, study_sar

__all__ = [
    'Cell',
    'Grid',
    'GridEstimate',
    'GridResult',
    'Published',
    'SarStudy',
    'estimate_grid',
    'read_grid',
    'run_grid',
    'study_sar',
]
