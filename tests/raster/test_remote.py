"""Rasters of other hosts are read in ranges; a host that stalls or vanishes ends the reading in words."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster import open_raster
from geolearn.raster.remote import is_remote, remote_access

SIDE = 512
PIXELS = np.random.default_rng(0).integers(0, 250, (1, SIDE, SIDE)).astype(np.uint8)


class Files(BaseHTTPRequestHandler):
    """Serve files of a folder in ranges, in one of three ways (`mode`): 'serve', 'stall' or 'vanish'."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        server = self.server
        server.asked.append((self.path, self.headers.get('Range')))
        path = server.folder / self.path.lstrip('/')
        if not path.is_file():
            self.send_response(404)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        if wanted := self.headers.get('Range'):
            low, _, high = wanted.removeprefix('bytes=').partition('-')
            first, last = int(low), min(int(high or last), last)
        if last > 60_000 and server.mode == 'vanish':
            self.connection.close()
            return
        self.send_response(206 if wanted else 200)
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(last - first + 1))
        if wanted:
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
        self.end_headers()
        if body:
            if last > 60_000 and server.mode == 'stall':
                server.released.wait(20)
                return
            self.wfile.write(content[first : last + 1])


@pytest.fixture
def host(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Files)
    server.daemon_threads = True
    server.folder, server.mode, server.asked, server.released = tmp_path, 'serve', [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    # what the user sets goes before geolearn's own
    monkeypatch.setenv('GDAL_HTTP_MAX_RETRY', '0')
    monkeypatch.setenv('GDAL_HTTP_RETRY_DELAY', '0.1')
    monkeypatch.setenv('GDAL_HTTP_LOW_SPEED_TIME', '1')
    server.address = f'http://127.0.0.1:{server.server_port}'
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def make(path):
    with rasterio.open(
        path, 'w', 'GTiff', SIDE, SIDE, 1, 'EPSG:32633', Affine(10, 0, 0, 0, -10, 0), 'uint8',
        tiled=True, blockxsize=64, blockysize=64,
    ) as dst:  # fmt: skip
        dst.write(PIXELS)
    return path


def read_all(src):
    return src.read_masked(Window(0, 0, SIDE, SIDE), [1])[0]


def test_a_raster_of_a_host_is_read_in_ranges_and_nothing_beside_it_is_asked_for(host, tmp_path):
    make(tmp_path / 'ranges.tif')
    with open_raster(f'{host.address}/ranges.tif') as src:
        part, _ = src.read_masked(Window(0, 0, 64, 64), [1])
        assert (part == PIXELS[:, :64, :64]).all()
    assert {path for path, _ in host.asked} == {'/ranges.tif'}
    few = len(host.asked)
    assert few <= 4
    with open_raster(f'/vsicurl/{host.address}/ranges.tif') as src:
        assert (read_all(src) == PIXELS).all()


def test_a_file_in_an_archive_of_a_host_and_one_that_is_not_there(host, tmp_path):
    with ZipFile(tmp_path / 'scene.zip', 'w') as archive:
        archive.write(make(tmp_path / 'inside.tif'), 'inside.tif')
    with open_raster(f'/vsizip//vsicurl/{host.address}/scene.zip/inside.tif') as src:
        assert (read_all(src) == PIXELS).all()
    absent = pytest.raises(RasterError, match=r'cannot open raster http.*absent.tif.*404.*copy the file')
    with absent, open_raster(f'{host.address}/absent.tif'):
        pass


@pytest.mark.parametrize('mode', ['stall', 'vanish'])
def test_a_host_that_fails_midway_ends_the_reading_in_words(host, tmp_path, mode):
    make(tmp_path / f'{mode}.tif')
    started = time.perf_counter()
    with open_raster(f'{host.address}/{mode}.tif') as src:
        host.mode = mode
        with pytest.raises(
            RasterError, match=rf'cannot read rows 448..512 of http.*{mode}.tif.*Run it again when the host'
        ):
            src.read_masked(Window(448, 448, 64, 64), [1])
    assert time.perf_counter() - started < 12


def test_names_of_other_hosts_are_recognized():
    remote = ('https://x.org/a.tif', 's3://bucket/a.tif', '/vsicurl/https://x.org/a', '/vsizip//vsis3/b/a.zip/a.tif',
              'NETCDF:"/vsicurl/https://x.org/a.nc":t', 'zip+https://x.org/a.zip!a.tif')  # fmt: skip
    assert all(is_remote(name) for name in remote)
    assert not any(is_remote(name) for name in ('a.tif', '/vsizip/a.zip/a.tif', '/data/vsicurl.tif', 'C:/a.tif'))


def test_settings_hold_for_the_reading_alone():
    from rasterio.env import get_gdal_config

    with remote_access():
        assert get_gdal_config('GDAL_DISABLE_READDIR_ON_OPEN') == 'EMPTY_DIR'
    assert get_gdal_config('GDAL_DISABLE_READDIR_ON_OPEN') is None


def test_the_rasters_of_a_container_are_named(tmp_path):
    with rasterio.open(
        tmp_path / 'two.gpkg',
        'w',
        'GPKG',
        64,
        64,
        1,
        'EPSG:3857',
        Affine(10, 0, 0, 0, -10, 0),
        'uint8',
        RASTER_TABLE='a',
    ) as dst:
        dst.write(PIXELS[:, :64, :64])
    with rasterio.open(
        tmp_path / 'two.gpkg', 'w', 'GPKG', 64, 64, 1, 'EPSG:3857', Affine(10, 0, 0, 0, -10, 0), 'uint8',
        RASTER_TABLE='b', APPEND_SUBDATASET='YES',
    ) as dst:  # fmt: skip
        dst.write(PIXELS[:, :64, :64])
    listed = r'two.gpkg holds 2 rasters; pass the name of one, or a list .*: GPKG:.*two.gpkg:a .*:b'
    with pytest.raises(RasterError, match=listed), open_raster(tmp_path / 'two.gpkg'):
        pass
    with open_raster(f'GPKG:{tmp_path}/two.gpkg:b') as src:
        assert src.shape == (64, 64)
