"""Measure embeddings: simple classifiers on them and on two baselines, with folds, seeds, tables and figures."""

from geolearn.probe.baselines import band_statistics, random_convolutions
from geolearn.probe.bigearthnet import BigEarthNet, read_bigearthnet
from geolearn.probe.bigearthnet_study import BigEarthNetStudy, study_bigearthnet
from geolearn.probe.chips import probe_chips
from geolearn.probe.options import METHODS, Method, ProbeOptions
from geolearn.probe.projection import Projection, project
from geolearn.probe.result import ProbeResult, ProbeScore, PublishedScore
from geolearn.probe.run import probe

__all__ = [
    'METHODS',
    'BigEarthNet',
    'BigEarthNetStudy',
    'Method',
    'ProbeOptions',
    'ProbeResult',
    'ProbeScore',
    'Projection',
    'PublishedScore',
    'band_statistics',
    'probe',
    'probe_chips',
    'project',
    'random_convolutions',
    'read_bigearthnet',
    'study_bigearthnet',
]
