"""What a client must not be able to do: read other files, fill disk or memory, or use the server from another site."""

import asyncio
import gzip
import io
import json
import os
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from geolearn.serve.rasters import Limits, RefusedError, check_file_name, find_named

pytestmark = pytest.mark.usefixtures('one_thread')

TIFF = {'Content-Type': 'image/tiff'}
VRT = """<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>/etc/hostname</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


def zipped():
    target = io.BytesIO()
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('scene.tif', bytes(10**6))
    return target.getvalue()


def sparse(tmp_path, **profile):
    """A file of a few kilobytes that says it is a large raster."""
    size = {'count': 4, 'dtype': 'uint16', 'height': 15_000, 'width': 15_000}
    profile = {'crs': 'EPSG:32633', 'transform': Affine(10, 0, 5e5, 0, -10, 54e5), 'tiled': True} | size | profile
    with rasterio.open(tmp_path / 'sparse.tif', 'w', driver='GTiff', sparse_ok=True, **profile):
        pass
    return (tmp_path / 'sparse.tif').read_bytes()


def rerouted(tmp_path, scene):
    """A GeoTIFF whose metadata sends GDAL to another file for its overviews."""
    path = tmp_path / 'rerouted.tif'
    path.write_bytes(scene.read_bytes())
    with rasterio.open(path, 'r+') as dst:
        dst.update_tags(ns='OVERVIEWS', OVERVIEW_FILE='/etc/hostname')
    return path.read_bytes()


def test_uploads_that_are_no_whole_geotiff_of_bounded_size_are_refused(serve, scene, tmp_path):
    whole = scene.read_bytes()
    client = serve(limits=Limits(upload_bytes=10**7, pixels=10**9))
    wrong = {
        'a VRT, which names other files': VRT.encode(),
        'is a zip archive': zipped(),
        'is a gzip archive': gzip.compress(whole),
        'XML or HTML': b'<html></html>',
        'another kind of file': b'hello',
        'is empty': b'',
        'was cut short': whole[: len(whole) // 2],
        'damaged or was cut short': whole[:100],
        'decompression bombs': sparse(tmp_path),
        'at most 60,000 a side': sparse(tmp_path, width=70_000, height=64),
        'names another file to take overviews from': rerouted(tmp_path, scene),
    }
    for words, content in wrong.items():
        answer = client.post('/jobs', content=content, headers=TIFF)
        assert 400 <= answer.status_code < 500, (words, answer.text)
        assert words in answer.json()['error'], answer.text
        assert 'geolearn-serve' not in answer.text
    assert client.get('/jobs').json() == []
    small = serve(limits=Limits(pixels=1000))
    answer = small.post('/jobs', content=whole, headers=TIFF)
    assert (answer.status_code, 'maps up to 1,000 pixels' in answer.json()['error']) == (413, True)


def test_blocks_that_are_decompressed_whole_are_bounded(serve, scene, monkeypatch):
    monkeypatch.setattr('geolearn.serve.rasters.MAX_BLOCK_BYTES', 1000)
    answer = serve().post('/jobs', content=scene.read_bytes(), headers=TIFF)
    assert (answer.status_code, 'tile it, as with gdal_translate -of COG' in answer.json()['error']) == (422, True)
    monkeypatch.setattr('geolearn.serve.rasters.MAX_BLOCKS', 0)
    monkeypatch.setattr('geolearn.serve.rasters.MAX_BLOCK_BYTES', 10**6)
    answer = serve().post('/jobs', content=scene.read_bytes(), headers=TIFF)
    assert (answer.status_code, 'write it with larger tiles' in answer.json()['error']) == (422, True)


def test_bytes_are_limited_whatever_the_header_says(serve, scene):
    client = serve(limits=Limits(upload_bytes=1000))
    answers = [
        client.post('/jobs', content=scene.read_bytes(), headers=TIFF),
        client.post('/jobs', content=iter([scene.read_bytes()] * 3), headers=TIFF),  # chunked: no Content-Length
        client.post('/jobs', files={'file': ('a.tif', bytes(10**5), 'image/tiff')}),
        client.post('/jobs/named', content=b' ' * 10**6, headers={'Content-Type': 'application/json'}),
    ]
    for answer in answers:
        assert (answer.status_code, 'larger than the' in answer.json()['error']) == (413, True)
    assert client.post('/jobs', content=b'', headers=TIFF | {'Content-Length': '-5'}).status_code == 400


def test_the_type_of_a_body_and_the_name_of_a_file_are_checked(serve, scene):
    client, whole = serve(), scene.read_bytes()
    for kind in ('text/plain', 'application/x-www-form-urlencoded', 'application/json', ''):
        answer = client.post('/jobs', content=whole, headers={'Content-Type': kind})
        assert (answer.status_code, 'Content-Type' in answer.json()['error']) == (415, True)
    for name, status in {'../a.tif': 400, '/etc/a.tif': 400, '.tif': 400, 'a.vrt': 415, 'a.tif.zip': 415}.items():
        answer = client.post('/jobs', files={'file': (name, whole, 'image/tiff')})
        assert (answer.status_code, 'file name' in answer.text) == (status, True), (name, answer.text)
    form = client.post('/jobs', files={'other': ('a.tif', whole, 'image/tiff')})
    assert (form.status_code, 'the form holds no file' in form.json()['error']) == (400, True)
    broken = client.post('/jobs', content=b'--x', headers={'Content-Type': 'multipart/form-data'})
    assert broken.status_code == 400


@pytest.fixture
def folders(tmp_path, scene):
    """An allowed folder beside one that is not."""
    allowed, secret = tmp_path / 'allowed', tmp_path / 'allowed but not'
    for folder in (allowed / 'sub', secret):
        folder.mkdir(parents=True)
        (folder / 'a.tif').write_bytes(scene.read_bytes())
    (allowed / 'link.tif').symlink_to(secret / 'a.tif')
    (allowed / 'link').symlink_to(secret)
    (allowed / 'vrt.tif').write_text(VRT)
    (allowed / 'a.vrt').write_text(VRT)
    (allowed / 'folder.tif').mkdir()
    os.mkfifo(allowed / 'pipe.tif')
    (allowed / 'beside.tif').write_bytes(scene.read_bytes())
    (allowed / 'beside.tif.ovr').write_text(VRT)
    return allowed, secret


def test_only_files_in_allowed_folders_are_read(serve, folders):
    allowed, secret = folders
    client = serve(folders=[allowed])
    wrong = {
        '../allowed but not/a.tif': 403, 'sub/../sub/a.tif': 403, str(secret / 'a.tif'): 403, '/etc/passwd': 415,
        f'{allowed}/../allowed but not/a.tif': 403, 'link.tif': 403, 'link/a.tif': 403, 'none.tif': 404, '': 403,
        'folder.tif': 404, 'pipe.tif': 404, 'a.vrt': 415, 'vrt.tif': 415, '/vsicurl/http://127.0.0.1/a.tif': 403,
        'vsizip/a.tif': 404, '/vsizip/a.tif': 403, '//vsimem/a.tif': 403,
        'http://127.0.0.1/a.tif': 403, 'GTIFF_DIR:1:sub/a.tif': 403,
        'sub\\a.tif': 403, 'sub/a.tif\0': 403, 'sub/a.tif/b.tif': 404, '\ud800.tif': 404, 'x' * 5000 + '.tif': 404,
        'beside.tif': 422,
    }  # fmt: skip
    for name, status in wrong.items():
        body = json.dumps({'paths': [name]})
        answer = client.post('/jobs/named', content=body, headers={'Content-Type': 'application/json'})
        assert answer.status_code == status, (name, answer.text)
        assert answer.json()['error']
        assert 'passwd:' not in answer.text
    assert client.post('/jobs/named', json={'paths': ['sub/a.tif']}).status_code == 202
    assert client.post('/jobs/named', json={'paths': []}).status_code == 422
    for name in ('vsi_scene.tif', 'vsicurl.tif', 'sub/vsimem_2.tif'):
        (allowed / name).write_bytes((allowed / 'sub' / 'a.tif').read_bytes())
        assert client.post('/jobs/named', json={'paths': [name]}).status_code == 202, name
    assert client.post('/jobs/named', json={'paths': ['sub/a.tif'], 'other': 1}).status_code == 422
    assert serve().post('/jobs/named', json={'paths': ['sub/a.tif']}).status_code == 403


@pytest.mark.parametrize('suffix', ['.tif.aux.xml', '.tif.ovr', '.tif.msk', '.tfw', '.aux.xml', '_RPC.TXT', '.RPB'])
def test_links_beside_a_raster_are_not_followed(serve, folders, suffix):
    allowed, secret = folders
    path, name = allowed / 'scene.tif', f'scene{suffix}'
    write_scene(path, (allowed / 'sub' / 'a.tif'), placed=suffix != '.tfw')
    write_beside(secret / name, suffix)
    (allowed / name).symlink_to(secret / name)
    client = serve(folders=[allowed])
    answer = client.post('/jobs/named', json={'paths': ['scene.tif']})
    if answer.status_code == 202:  # GDAL takes no notice of such a file
        with rasterio.open(path) as src:
            assert not any(file.endswith(suffix) for file in src.files)
        assert suffix in ('.aux.xml', '_RPC.TXT', '.RPB')
        return
    assert answer.status_code == 403, answer.text
    assert f'{name} beside scene.tif is a symbolic link, which is not followed' in answer.json()['error']
    assert str(secret) not in answer.text
    (allowed / name).unlink()
    (allowed / name).write_bytes((secret / name).read_bytes())
    assert client.post('/jobs/named', json={'paths': ['scene.tif']}).status_code == 202


PLACE = Affine(10, 0, 500000, 0, -10, 5000000)


def write_scene(path, source, *, placed):
    """Copy a raster, without its place where a file beside it is to say that."""
    if placed:
        path.write_bytes(source.read_bytes())
        return
    with rasterio.open(source) as src:
        profile = {**src.profile, 'transform': None}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path, 'w', **profile) as dst:
                dst.write(src.read())
                dst.descriptions = src.descriptions


def write_beside(path, suffix):
    """Write a file that GDAL takes in beside a raster of the fixture."""
    if suffix in ('.tif.ovr', '.tif.msk'):
        with rasterio.open(
            path, 'w', driver='GTiff', width=32, height=32, count=1, dtype='uint8', transform=PLACE
        ) as dst:
            dst.write(np.full((1, 32, 32), 255, np.uint8))
    elif suffix == '.tfw':
        path.write_text('10\n0\n0\n-10\n500000\n5000000\n')
    else:
        path.write_text('<PAMDataset><Metadata><MDI key="secret">1</MDI></Metadata></PAMDataset>')


@settings(max_examples=60)
@given(st.lists(st.sampled_from(['..', '.', '/', 'a.tif', 'sub', '~', '\0', '\\', 'vsizip', ':', 'ü']), max_size=6))
def test_no_name_leads_out_of_the_allowed_folder(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / 'fuzzed'
    (root / 'in' / 'sub').mkdir(parents=True, exist_ok=True)
    (root / 'a.tif').touch()
    for name in ('/'.join(parts), ''.join(parts)):
        with suppress(RefusedError):
            assert find_named(name, [root / 'in']).is_relative_to(root / 'in')
        with suppress(RefusedError):
            assert not {'/', '\\', '\0'} & {*check_file_name(name)}


def test_damaged_geotiffs_end_in_words(serve, wait, scene):
    """Bytes changed anywhere give a map or an error, and the server goes on."""
    client, rng = serve(), np.random.default_rng(0)
    for _ in range(12):
        content = bytearray(scene.read_bytes())
        for place in rng.integers(0, 400, 4):
            content[place] = rng.integers(256)
        answer = client.post('/jobs', content=bytes(content), headers=TIFF)
        assert answer.status_code == 202 or 400 <= answer.status_code < 500
        assert answer.status_code != 202 or wait(client, answer.json())['message'] != 'Traceback'
    assert client.post('/predict', content=scene.read_bytes(), headers=TIFF).status_code == 200


def test_pages_of_other_sites_and_other_names_of_the_server_are_refused(serve, scene):
    client = serve(folders=[scene.parent])
    named = {'paths': ['scene.tif']}
    for origin in ('https://example.org', 'null', 'http://127.0.0.1:9'):
        answer = client.post('/jobs/named', json=named, headers={'Origin': origin})
        assert (answer.status_code, 'other sites' in answer.json()['error']) == (403, True)
    assert client.post('/jobs/named', json=named, headers={'Origin': 'http://127.0.0.1'}).status_code == 202
    for host in ('rebound.example', '127.0.0.1.example:80', '', '[::1'):
        assert client.get('/health', headers={'Host': host}).status_code == 403
    for host in ('localhost:8000', '127.0.0.1:1', '[::1]:8000'):
        assert client.get('/health', headers={'Host': host}).status_code == 200
    assert serve(hosts=None).get('/health', headers={'Host': 'maps.example'}).status_code == 200


def test_an_upload_that_stalls_is_given_up(serve):
    app = serve(limits=Limits(upload_seconds=0.05)).app
    sent = []

    async def stall():
        if not sent_first:
            sent_first.append(True)
            return {'type': 'http.request', 'body': b'II*\0', 'more_body': True}
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    sent_first = []
    scope = {'type': 'http', 'asgi': {'version': '3.0'}, 'method': 'POST', 'path': '/jobs', 'raw_path': b'/jobs',
             'query_string': b'', 'headers': [(b'host', b'127.0.0.1'), (b'content-type', b'image/tiff')],
             'http_version': '1.1', 'scheme': 'http', 'root_path': ''}  # fmt: skip
    with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have a loop in this thread
        pool.submit(lambda: asyncio.run(app(scope, stall, send))).result()
    assert sent[0]['status'] == 408
