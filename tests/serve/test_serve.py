"""A model behind HTTP gives what it gives in Python."""

import io
import json
import threading

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image

from geolearn.cli import main
from geolearn.cli.serve import listen
from geolearn.serve.app import make_app
from geolearn.serve.rasters import Limits

pytestmark = pytest.mark.usefixtures('one_thread')

# rasterio multiplies transforms as affine 3 will not have it
TILES = pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning')
TIFF = {'Content-Type': 'image/tiff'}


def pixels(content):
    with rasterio.open(io.BytesIO(content)) as src:
        return src.read(1), src.crs, src.transform


def test_an_upload_comes_back_as_the_map_that_predict_raster_makes(serve, models, scene, tmp_path):
    answer = serve().post('/predict', content=scene.read_bytes(), headers=TIFF)
    assert (answer.status_code, answer.headers['content-type']) == (200, 'image/tiff')
    models('pixels').predict_raster(scene, tmp_path / 'map.tif')
    found, wanted = pixels(answer.content), pixels((tmp_path / 'map.tif').read_bytes())
    assert np.array_equal(found[0], wanted[0])
    assert found[1:] == wanted[1:]


def test_a_job_has_progress_and_a_result(serve, wait, scene):
    client = serve()
    answer = client.post('/jobs', files={'file': ('my scene.tif', scene.read_bytes(), 'image/tiff')})
    assert answer.status_code == 202
    job = wait(client, answer.json())
    assert (job['state'], job['progress'], job['rasters']) == ('done', 1, ['my scene.tif'])
    result = client.get(job['result'])
    assert 'my%20scene-map.tif' in result.headers['content-disposition']
    assert pixels(result.content)[0].shape == (80, 96)
    assert [found['id'] for found in client.get('/jobs').json()] == [job['id']]
    assert client.delete(f'/jobs/{job["id"]}').status_code == 200
    gone = client.get(job['result'])
    assert (gone.status_code, 'no such job' in gone.json()['error']) == (404, True)


def test_a_raster_in_an_allowed_folder_is_named(serve, wait, scene):
    client = serve(folders=[scene.parent])
    for name in ('scene.tif', str(scene)):
        answer = client.post('/jobs/named', json={'paths': [name], 'scale': 1})
        assert answer.status_code == 202
        assert wait(client, answer.json())['state'] == 'done'
    assert scene.exists()


def test_objects_come_back_as_geojson(serve, scene, tmp_path, save):
    with rasterio.open(scene) as src:
        image, place = src.read([1, 2, 3]) // 9, {'crs': src.crs, 'transform': src.transform}
    path = save(tmp_path / 'rgb.tif', image, names=['Red', 'Green', 'Blue'], **place)
    client = serve('objects')
    answer = client.post('/predict?threshold=0.02&scale=1&resolution=10', content=path.read_bytes(), headers=TIFF)
    assert (answer.status_code, answer.headers['content-type']) == (200, 'application/geo+json')
    layer = geopandas.read_file(io.BytesIO(answer.content))
    assert {'Class', 'Confidence'} <= {*layer.columns}
    assert len(layer) > 0


def test_a_pair_of_dates_is_sent_as_two_files(serve, scene):
    client = serve('change')
    part = ('file', ('a.tif', scene.read_bytes(), 'image/tiff'))
    answer = client.post('/predict', files=[part, part])
    assert answer.status_code == 200
    one = client.post('/predict', files=[part])
    assert (one.status_code, '2 rasters, one for each date' in one.json()['error']) == (422, True)


def test_what_does_not_fit_the_model_is_said_without_paths_of_the_server(serve, wait, tmp_path, save):
    two = save(tmp_path / 'two.tif', np.full((2, 64, 64), 700, np.uint16), crs='EPSG:32633')
    client = serve()
    job = client.post('/jobs', files={'file': ('two.tif', two.read_bytes(), 'image/tiff')}).json()
    found = wait(client, job)
    assert found['state'] == 'failed'
    assert 'two.tif' in found['message']
    assert 'geolearn-serve' not in found['message']
    answer = client.post('/predict', content=two.read_bytes(), headers=TIFF)
    assert (answer.status_code, 'band' in answer.json()['error']) == (422, True)
    assert client.get(f'/jobs/{job["id"]}/result').status_code == 422


def test_options_that_do_not_apply_are_refused(serve, scene):
    client = serve()
    wrong = {
        'threshold=0.5': 'threshold does not apply',
        'sensr=x': 'sensr',
        'scale=0': 'scale must not be 0',
        'scale=inf': 'scale must be finite',
        'resolution=-1': 'resolution must be above 0',
        'resolution=0.001': 'pixels; this server maps up to',
        'offset=x': 'offset',
    }
    for query, words in wrong.items():
        answer = client.post(f'/jobs?{query}', content=scene.read_bytes(), headers=TIFF)
        assert answer.status_code in (413, 422), query
        assert words in answer.json()['error'], query


AREA = {'type': 'Polygon', 'coordinates': [[[15.002, 48.752], [15.007, 48.752], [15.007, 48.749], [15.002, 48.752]]]}


def test_areas_outputs_and_blending_come_as_fields_of_a_form(serve, wait, models, scene, tmp_path):
    fields = {'aoi': json.dumps(AREA), 'outputs': 'classes,confidence', 'blend': 'hann', 'resolution': '20'}
    client = serve(folders=[scene.parent])
    answer = client.post('/predict', files={'file': ('scene.tif', scene.read_bytes())}, data=fields)
    assert answer.status_code == 200, answer.text
    frame = geopandas.GeoSeries([shapely.geometry.shape(AREA)], crs='EPSG:4326')
    given = {'aoi': frame, 'outputs': ('classes', 'confidence'), 'layout': 'bands', 'blend': 'hann', 'resolution': 20}
    models('pixels').predict_raster(scene, tmp_path / 'map.tif', **given)
    with rasterio.open(io.BytesIO(answer.content)) as found, rasterio.open(tmp_path / 'map.tif') as wanted:
        assert found.count == 2
        assert np.array_equal(found.read(), wanted.read())
        assert found.transform == wanted.transform
        assert found.width < 48
    box = client.post('/predict?bbox=500100,5399500,500300,5399900', content=scene.read_bytes(), headers=TIFF)
    assert pixels(box.content)[0].shape == (40, 20)
    job = client.post('/jobs/named', json={'paths': ['scene.tif'], 'aoi': AREA, 'outputs': ['classes']}).json()
    assert wait(client, job)['state'] == 'done'
    assert client.get(f'/jobs/{job["id"]}/view').json()['map']['tiles']


HOSTILE = {
    'aoi': {
        '/etc/passwd': 'aoi must be the text of GeoJSON',
        '[' * 30_000: 'nested too deep',
        '{"type": "Polygon", "coordinates": ' + '[' * 2_000 + ']' * 2_000 + '}': 'nested too deep',
        '{"type": "Point", "coordinates": [15, 48]}': 'aoi must hold polygons',
        '{"type": "Polygon", "coordinates": [[[NaN, 48], [15, 48], [15, 49], [NaN, 48]]]}': 'aoi must hold polygons',
        '{"type": "Polygon", "coordinates": [[[1e999, 48], [15, 48], [15, 49], [15, 48]]]}': 'aoi must hold polygons',
        '{"type": "Polygon", "coordinates": [[["a", 48], [15, 48], [15, 49], [15, 48]]]}': 'aoi must hold polygons',
        '{"type": "Polygon", "coordinates": [[[500100, 5399500], [500200, 5399500], [500200, 5399600], '
        '[500100, 5399500]]]}': 'longitude and latitude',
        '{"type": "FeatureCollection", "features": []}': 'aoi holds no polygon',
        '{"type": "FeatureCollection", "features": {"a": 1}}': 'aoi must hold polygons',
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}': 'they share no pixel',
        '{"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, -90]]]}': '',
        '{"type": "Polygon", "coordinates": [[[15, 48.7], [15, 48.7], [15, 48.7], [15, 48.7]]]}': 'polygon',
        '1' * 5_000: 'aoi must be the text of GeoJSON',
    },
    'bbox': {
        '1,2,3': 'bbox',
        'a,b,c,d': 'bbox',
        '3,4,1,2': 'left < right',
        'nan,0,1,1': 'bbox',
        'inf,0,inf,1': 'bbox',
        '0,0,1,1': 'they share no pixel',
    },
    'bbox_crs': {'+init=/etc/passwd': 'bbox_crs', 'EPSG:99999999': 'bbox_crs', 'EPSG:4326': 'which is not given'},
    'outputs': {'confidence': "must hold 'classes'", 'classes,classes': 'each once', 'pickle': 'outputs'},
    'blend': {'none': 'blend', 'crop,hann': 'blend'},
    'resolution': {'nan': 'resolution', '1e-9': 'pixels; this server maps up to', '-1': 'resolution must be above 0'},
    'dst': {'/tmp/x.tif': 'dst'},
    'client': {'tcp://host:1': 'client'},
}


def test_hostile_fields_are_refused_in_words(serve, wait, scene):
    client, content = serve(), scene.read_bytes()
    for name, values in HOSTILE.items():
        for value, words in values.items():
            answer = client.post('/jobs', files={'file': ('scene.tif', content)}, data={name: value})
            shown = (name, value[:80], answer.text[:300])
            if not words:  # what is odd, and valid
                assert answer.status_code in (202, 422), shown
                if answer.status_code == 202:
                    assert 'mistake' not in wait(client, answer.json())['message'], shown
                continue
            assert answer.status_code in (413, 422), shown
            assert words in answer.json()['error'], shown
            assert '\n' not in answer.json()['error'], shown
    twice = client.post('/jobs', files={'file': ('scene.tif', content)}, data={'blend': ['hann', 'crop']})
    assert 'is given 2 times' in twice.json()['error']
    many = client.post('/jobs', files={'file': ('scene.tif', content)}, data={f'f{n}': 'x' for n in range(99)})
    assert many.status_code == 400
    detector = serve('objects').post('/jobs', files={'file': ('scene.tif', content)}, data={'outputs': 'classes'})
    assert 'outputs does not apply' in detector.json()['error']


class Held:
    """A model that works until it is released, in ten steps."""

    def __init__(self, model):
        self.spec, self.raster_use, self._model = model.spec, model.raster_use, model
        self.entered, self.release = threading.Event(), threading.Event()

    def use_on_raster(self, sources, dst, options):
        from geolearn.progress import ProgressBar

        with ProgressBar(10, 'working') as bar:
            bar.update(4)
            self.entered.set()
            for _ in range(500):
                if self.release.wait(0.01):
                    return self._model.use_on_raster(sources, dst, options)
                bar.update(0)
        raise AssertionError('nobody released it')


def test_jobs_wait_run_and_are_cancelled(serve, wait, models, scene):
    held = Held(models('pixels'))
    client = serve(held, limits=Limits(waiting=1))
    first = client.post('/jobs', content=scene.read_bytes(), headers=TIFF).json()
    assert held.entered.wait(10)
    running = client.get(f'/jobs/{first["id"]}').json()
    assert (running['state'], running['progress']) == ('running', 0.4)
    assert client.get(f'/jobs/{first["id"]}/result').status_code == 409
    second = client.post('/jobs', content=scene.read_bytes(), headers=TIFF).json()
    assert second['state'] == 'queued'
    assert client.get('/health').json() | {'model': ''} == {
        'status': 'ok', 'model': '', 'running': 1, 'queued': 1, 'workers': 1,
    }  # fmt: skip
    third = client.post('/jobs', content=scene.read_bytes(), headers=TIFF)
    assert (third.status_code, third.headers['retry-after']) == (503, '10')
    assert client.delete(f'/jobs/{second["id"]}').json()['state'] == 'cancelled'
    client.delete(f'/jobs/{first["id"]}')
    assert wait(client, first)['state'] == 'cancelled'
    held.release.set()
    last = client.post('/jobs', content=scene.read_bytes(), headers=TIFF).json()
    assert wait(client, last)['state'] == 'done'


def test_a_mistake_of_the_server_stays_in_its_log(serve, models, scene, caplog):
    model = Held(models('pixels'))
    model.use_on_raster = lambda sources, dst, options: {}['secret']
    answer = serve(model).post('/predict', content=scene.read_bytes(), headers=TIFF)
    assert answer.status_code == 500
    assert answer.json() == {'error': 'this is an error of the server, not of the request; its log says more'}
    assert 'secret' in caplog.text


def test_the_interface_describes_itself(serve):
    client = serve()
    described = client.get('/openapi.json').json()
    assert {'/jobs', '/jobs/named', '/jobs/{job_id}', '/jobs/{job_id}/result', '/predict', '/health', '/model'} <= {
        *described['paths']
    }
    assert {'image/tiff', 'multipart/form-data'} == {*described['paths']['/jobs']['post']['requestBody']['content']}
    assert 'Sentinel-2' in json.dumps(described['paths']['/jobs/named'])
    assert {'403', '413', '415', '422', '503'} <= {*described['paths']['/jobs']['post']['responses']}
    model = client.get('/model').json()
    assert [band['name'] for band in model['bands']] == ['Blue', 'Green', 'Red', 'NIR']
    assert [found['name'] for found in model['classes']] == ['water', 'field']


@TILES
def test_raster_and_map_are_drawn_as_tiles(serve, wait, scene):
    client = serve()
    job = client.post('/jobs', content=scene.read_bytes(), headers=TIFF).json()
    assert wait(client, job)['state'] == 'done'
    view = client.get(f'/jobs/{job["id"]}/view').json()
    west, south, east, north = view['bounds']
    assert 14.9 < west < east < 15.1
    assert 48.6 < south < north < 48.8
    zoom = view['maxzoom']
    x = int((west + east + 360) / 720 * 2**zoom)
    lat = np.radians((south + north) / 2)
    y = int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**zoom)
    for layer in ('image', 'map'):
        answer = client.get(view[layer]['tiles'].format(z=zoom, x=x, y=y))
        assert answer.headers['content-type'] == 'image/png'
        tile = np.asarray(Image.open(io.BytesIO(answer.content)))
        drawn, alpha = tile[..., :3], tile[..., 3]
        assert (alpha == 255).any()
        shown = {tuple(color) for color in drawn[alpha == 255].tolist()}
        if layer == 'map':
            classes = client.get('/model').json()['classes']
            assert shown <= {tuple(bytes.fromhex(found['color'][1:])) for found in classes}
        else:
            assert len(shown) > 3
        assert client.get(f'/jobs/{job["id"]}/{layer}/{zoom}/{2**zoom}/0.png').status_code == 404
        assert client.get(f'/jobs/{job["id"]}/{layer}/999/0/0.png').status_code == 404


@TILES
def test_regression_is_drawn_in_a_ramp(serve, wait, scene):
    client = serve('regression')
    job = client.post('/jobs', content=scene.read_bytes(), headers=TIFF).json()
    assert wait(client, job)['state'] == 'done'
    view = client.get(f'/jobs/{job["id"]}/view').json()
    low, high = view['map']['range']
    assert low <= high
    assert view['map']['colors'][0] == '#440154'


def test_a_raster_without_a_crs_is_mapped_and_not_shown(serve, wait, scene, tmp_path, save):
    with rasterio.open(scene) as src:
        path = save(tmp_path / 'a.tif', src.read(), names=src.descriptions, crs=None, transform=src.transform)
    client = serve()
    job = client.post('/jobs?resolution=training&scale=1', content=path.read_bytes(), headers=TIFF).json()
    job = job if 'id' in job else client.post('/jobs?scale=1', content=path.read_bytes(), headers=TIFF).json()
    assert wait(client, job)['state'] == 'done'
    answer = client.get(f'/jobs/{job["id"]}/view')
    assert (answer.status_code, 'no CRS' in answer.json()['error']) == (409, True)


def test_a_classifier_of_polygons_is_not_served(models):
    with pytest.raises(ValueError, match='classifies polygons, which is not served; use geolearn predict'):
        make_app([models('chips')])


def test_other_hosts_need_a_word(capsys):
    with pytest.raises(SystemExit):
        main(['serve', 'm.dlpk', '--host', '0.0.0.0'])
    assert 'add --allow-remote' in capsys.readouterr().err


def test_a_port_that_is_taken_is_said():
    with listen('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f'cannot listen at 127.0.0.1, port {port}: .*; choose another --port'):
            listen('127.0.0.1', port)
