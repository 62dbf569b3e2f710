"""Every family of transformers through `embed`: grids of its stride, and pooled vectors that are their means."""

from dataclasses import replace

import numpy as np
import pytest

from geolearn.backbones import catalog
from geolearn.backbones.catalog import WeightsSource
from geolearn.bands import get_bands
from geolearn.embed import embed

S2, S1 = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08']), get_bands('sentinel1', ['VV', 'VH'])
SMALL = {'dim': 48, 'depth': 4, 'heads': 3}

FAMILIES = [
    ('dofa_base', SMALL, S2),
    ('dofa_v2_base', SMALL, S2),
    ('prithvi_v2_600M_TL', SMALL, S2),
    ('anysat_base', {'dim': 32, 'depth': 2, 'heads': 2}, S1),
    ('clay_large', SMALL, S2),
    ('copernicus_fm_base', SMALL, S2),
    ('croma_base', SMALL | {'heads': 4}, S2),
    ('croma_base', SMALL | {'heads': 4, 'depth': 8}, S1),
    ('galileo_nano', {'depth': 2}, S2),
    ('olmoearth_v1_base', SMALL, S2),
    ('panopticon', SMALL, S2 + S1),
    ('scalemae_large', SMALL, S2),
    ('spectralgpt', SMALL, S2),
    ('ssl4eo_dino', SMALL, S2),
    ('terrafm_base', SMALL, S2),
    ('terramind_tiny', SMALL, S2),
    ('terramind_base', SMALL, S2 + S1),
    ('thor_tiny', SMALL, S2 + S1),
    ('vit_nano', {}, S2),
    ('vit_tiny', {'sources': (WeightsSource('timm/test_vit', 'main', ''),)}, S2),
]

GAP = (slice(None), slice(0, 40), slice(0, 40))


def test_every_family_with_tokens_is_here():
    without = {'plain_cnn', 'satlas', 'presto', 'tessera'}
    families = {record.family for record in catalog.read_catalog().values()}
    assert {catalog.get_record(name).family for name, _, _ in FAMILIES} == families - without


@pytest.mark.parametrize(('name', 'changes', 'bands'), FAMILIES, ids=[f'{n}-{len(b)}' for n, _, b in FAMILIES])
def test_pooled_vectors_are_the_means_of_grids(name, changes, bands, use_record):
    use_record(replace(catalog.read_catalog()[name], **changes))
    pixels = np.random.default_rng(0).normal(2000, 400, (len(bands), 64, 80)).astype(np.float32)
    pixels[GAP] = np.nan
    options = {'bands': bands, 'pretrained': False, 'resolution_m': 10.0 if name == 'scalemae_large' else None}
    grid = embed(pixels, name, output='grid', **options)
    rows, columns = (-(-length // grid.source.stride) for length in (64, 80))
    assert grid.values.shape[1:] == (rows, columns)
    known = np.isfinite(grid.values)
    assert (known == known[:1]).all()
    assert 0 < known.mean() < 1
    pooled = embed(pixels, name, **options)
    assert pooled.values.shape == (1, len(grid.values)) or pooled.values.shape == (len(grid.values),)
    np.testing.assert_allclose(pooled.values.ravel(), np.nanmean(grid.values, axis=(1, 2)), rtol=1e-4, atol=1e-5)
