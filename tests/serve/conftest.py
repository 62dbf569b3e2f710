"""Small models behind HTTP."""

import lzma
import time
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geolearn.models import load_model

fastapi = pytest.importorskip('fastapi', reason="needs fastapi: pip install '.[serve]'")

from fastapi.testclient import TestClient  # noqa: E402

from geolearn.serve.app import make_app  # noqa: E402
from geolearn.serve.rasters import Limits  # noqa: E402

GOLDEN = Path(__file__).parents[1] / 'data_golden'
DEFAULT = Limits()
PLACE = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000), 'crs': 'EPSG:32633'}


@pytest.fixture(scope='session')
def models(tmp_path_factory):
    """Tiny trained models by their tasks, each loaded once."""
    folder, loaded = tmp_path_factory.mktemp('models'), {}

    def load(name):
        if name not in loaded:
            path = folder / f'{name}.dlpk'
            path.write_bytes(lzma.decompress((GOLDEN / f'{name}.dlpk.xz').read_bytes()))
            loaded[name] = load_model(path)
        return loaded[name]

    return load


@pytest.fixture(scope='session')
def scene(tmp_path_factory, save):
    """A GeoTIFF of four bands and 96 x 80 pixels that fits the models, with missing pixels."""
    row, col = np.mgrid[:80, :96]
    blocks = [300 + 250 * band + 400 * (((row // 9) * 5 + (col // 7) * 3 + band) % 4) for band in range(4)]
    pixels = np.stack(blocks).astype(np.uint16)
    pixels[:, :9, :12] = 0
    path = tmp_path_factory.mktemp('scene') / 'scene.tif'
    return save(path, pixels, names=['Blue', 'Green', 'Red', 'NIR'], nodata=0, **PLACE)


@pytest.fixture
def serve(models):
    """Start a server of a model; returns a client of it."""
    opened = []

    def start(name='pixels', *, limits=DEFAULT, **options):
        app = make_app([models(name) if isinstance(name, str) else name], limits=limits, **options)
        client = TestClient(app, base_url='http://127.0.0.1', raise_server_exceptions=False)
        opened.append(client)
        return client.__enter__()

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope='session')
def wait():
    """Wait for a job to end; returns what the server says of it then."""

    def until_over(client, job):
        for _ in range(600):
            found = client.get(f'/jobs/{job["id"]}').json()
            if found['state'] in ('done', 'failed', 'cancelled'):
                return found
            time.sleep(0.02)
        raise AssertionError(found)

    return until_over
