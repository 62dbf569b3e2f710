"""Studies of papers, each as one call on a folder of one's own, with the published figures in a column of their own."""

from geolearn.studies.sar import SarStudy, study_sar

__all__ = ['SarStudy', 'study_sar']
