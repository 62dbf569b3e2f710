import json
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine

from geolearn.embed import search
from geolearn.embed.embeddings import Embeddings, EmbeddingSource
from geolearn.errors import FileWriteError, UnknownNameError
from geolearn.raster.geobox import GeoBox

SOURCE = EmbeddingSource('dofa_base', 'file.pth', '0123abcd' * 4, ('B04', 'VV'), (0.665, None), 'given', (1.0, 2.0))


def pooled(count=40, dimensions=6, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, dimensions))
    return Embeddings(values, SOURCE, tuple(f'chip{i}' for i in range(count)))


def grid():
    box = GeoBox((3, 4), Affine(160, 0, 500000, 0, -160, 5200000), 'EPSG:32632')
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[:, 1, 2] = np.nan
    return Embeddings(values, SOURCE, geobox=box)


def placed():
    shapely = pytest.importorskip('shapely')
    shapes = shapely.to_wkb(shapely.points([[1, 2], [3, 4]]))
    return Embeddings(np.eye(2), SOURCE, ('a', 'b'), geometries=tuple(shapes), crs='EPSG:4326')


def test_embeddings_are_arrays_of_float32():
    e = pooled()
    assert np.asarray(e).dtype == np.float32
    assert np.asarray(e) is e.values
    assert np.asarray(e, np.float64).dtype == np.float64
    assert (len(e), e.dimensions, e.is_grid) == (40, 6, False)
    assert (len(grid()), grid().dimensions, grid().vectors.shape) == (12, 2, (12, 2))
    assert grid().vectors[5].tolist() == grid().values[:, 1, 1].tolist()


@pytest.mark.parametrize(
    ('values', 'names', 'message'),
    [
        (np.zeros(3), (), 'got values of shape'),
        (np.zeros((2, 3)), ('a',), '2 items need one name each, got 1 names'),
        (np.zeros((2, 3, 3)), ('a', 'b'), '0 items need one name each'),
    ],
)
def test_values_that_do_not_fit_their_names_are_refused(values, names, message):
    with pytest.raises(ValueError, match=message):
        Embeddings(values, SOURCE, names)


@pytest.mark.parametrize('make', [pooled, grid, placed])
def test_what_is_saved_is_loaded(make, tmp_path):
    e = make()
    path = e.save(tmp_path / 'e')
    assert path.name == 'e.safetensors'
    back = Embeddings.load(path)
    assert np.array_equal(back.values, e.values, equal_nan=True)
    facts = ('source', 'names', 'geobox', 'geometries', 'crs')
    assert [getattr(back, name) for name in facts] == [getattr(e, name) for name in facts]


def test_other_files_are_refused_with_their_name(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'no tensors')
    with pytest.raises(ValueError, match='x.safetensors holds no embeddings of geolearn'):
        Embeddings.load(tmp_path / 'x.safetensors')
    with pytest.raises(FileNotFoundError, match='pass one that Embeddings.save wrote'):
        Embeddings.load(tmp_path / 'absent.safetensors')


def test_a_table_of_features_holds_vectors_and_what_made_them(tmp_path):
    pytest.importorskip('pyarrow')
    e = placed()
    back = Embeddings.load(e.to_geoparquet(tmp_path / 'e.parquet'))
    assert np.array_equal(back, e)
    assert (back.source, back.names, back.geometries) == (e.source, e.names, e.geometries)
    frame = grid().to_geopandas()
    assert len(frame) == 11  # one token has no data
    assert (frame.geometry.x[0], frame.geometry.y[0]) == (500080, 5199920)
    with pytest.raises(ValueError, match='have no place'):
        pooled().to_geopandas()
    with pytest.raises(FileWriteError, match='must end in .parquet'):
        e.to_geoparquet(tmp_path / 'e.gpkg')


def test_the_labelled_array_says_where_tokens_lie():
    pytest.importorskip('xarray')
    array = grid().to_xarray()
    assert array.dims == ('dimension', 'y', 'x')
    assert (float(array.x[0]), float(array.y[0])) == (500080.0, 5199920.0)
    assert array.attrs['backbone'] == 'dofa_base'
    assert pooled().to_xarray().sel(item='chip3').to_numpy().tolist() == pooled().values[3].tolist()


@pytest.mark.parametrize('index', [None, 'faiss'])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_neighbors_are_exactly_the_nearest(metric, index, monkeypatch):
    if index:
        pytest.importorskip('faiss')
    monkeypatch.setattr(search, 'CHUNK_BYTES', 4 * 8 * 16)
    e = pooled()
    v = e.values.astype(np.float64)
    query = np.random.default_rng(1).normal(size=(2, 6))
    if metric == 'cosine':
        unit = v / np.linalg.norm(v, axis=1, keepdims=True)
        scores = query / np.linalg.norm(query, axis=1, keepdims=True) @ unit.T
        order = np.argsort(-scores, axis=1)[:, :5]
    else:
        scores = np.linalg.norm(query[:, None] - v[None], axis=2)
        order = np.argsort(scores, axis=1)[:, :5]
    found = e.nearest(query, 5, metric=metric, index=index)
    assert np.array_equal(found.indices, order)
    assert np.allclose(found.scores, np.take_along_axis(scores, order, axis=1), atol=1e-5)
    assert np.array_equal(e.nearest(query[1], 5, metric=metric, index=index).indices, order[1])


def test_an_item_is_no_neighbor_of_itself_and_neither_is_what_has_no_data():
    values = np.array([[1, 0], [0.9, 0.1], [0, 1], [np.nan, 1]])
    e = Embeddings(values, SOURCE, ('a', 'b', 'c', 'd'))
    found = e.nearest('a', 2)
    assert found.names == ('b', 'c')
    assert np.array_equal(e.nearest(-4, 2).indices, found.indices)
    assert e.nearest([1, 0], 1).names == ('a',)
    with pytest.raises(ValueError, match=r'k must lie in 1\.\.2'):
        e.nearest('a', 3)
    with pytest.raises(UnknownNameError, match='unknown item'):
        e.nearest('e')
    with pytest.raises(ValueError, match='the query holds NaN'):
        e.nearest('d', 1)
    with pytest.raises(ValueError, match="2 items are called 'a'; pass the number"):
        Embeddings(values, SOURCE, ('a', 'b', 'c', 'a')).nearest('a', 1)
    assert 'b ' in str(found)
    assert 'b' in found._repr_html_()


def test_vectors_of_different_sources_are_not_compared():
    other = Embeddings(np.eye(6), EmbeddingSource('scalemae_large'), tuple('abcdef'))
    with pytest.raises(ValueError, match='what differs: backbone, weights_hash'):
        pooled().nearest(other)


@pytest.mark.parametrize(
    ('changes', 'differs'),
    [
        ({'pooling': 'cls'}, r'pooling \(mean and cls\)'),
        ({'pooling': 'max'}, r'pooling \(mean and max\)'),
        ({'context': 64}, r'context \(224 and 64\)'),
        ({'pooling': ''}, None),  # tokens of a grid
        ({'context': 0, 'blend': ''}, None),  # as written before
        ({'blend': 'hann'}, None),
    ],
)
def test_vectors_of_another_pooling_or_context_are_not_compared(changes, differs):
    source = replace(SOURCE, pooling='mean', context=224, blend='crop')
    vectors = np.eye(6, dtype=np.float32)
    found, query = (Embeddings(vectors, each, tuple('abcdef')) for each in (source, replace(source, **changes)))
    if differs is None:
        assert found.nearest(query, 1).indices.ravel().tolist() == list(range(6))
        return
    with pytest.raises(ValueError, match=f'what differs: {differs}'):
        found.nearest(query)


def test_what_was_written_without_a_context_is_read():
    facts = json.loads(replace(SOURCE, context=64, blend='hann').to_json())
    assert EmbeddingSource.from_json(json.dumps(facts)).context == 64
    del facts['context'], facts['blend']
    old = EmbeddingSource.from_json(json.dumps(facts))
    assert (old.context, old.blend) == (0, '')


def test_they_show_what_they_are():
    text = repr(grid())
    assert 'Embeddings: grid, 2 x 3 x 4 float32' in text
    assert 'B04 (0.665 µm), VV' in text
    assert '1 of 12 vectors' in text
    assert '<table>' in grid()._repr_html_()
