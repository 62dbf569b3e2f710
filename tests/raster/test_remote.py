"""Rasters of other hosts are read in ranges; a host that stalls or vanishes ends the reading in words."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import nn

from geolearn.bands import resolve_bands
from geolearn.classes import ClassInfo
from geolearn.errors import RasterError
from geolearn.inference import store
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.mapping import MapOptions, map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.raster import open_raster
from geolearn.raster.remote import is_remote, remote_access
from geolearn.statistics import BandStatistics

SIDE = 512
PIXELS = np.random.default_rng(0).integers(0, 250, (1, SIDE, SIDE)).astype(np.uint8)


class Files(BaseHTTPRequestHandler):
    """Serve files of a folder in ranges, in one of four ways (`mode`): 'serve', 'refuse', 'stall' or 'vanish'."""

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
        if server.mode == 'refuse' or not path.is_file():
            self.send_response(503 if server.mode == 'refuse' else 404)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        if wanted := self.headers.get('Range'):
            low, _, high = wanted.removeprefix('bytes=').partition('-')
            first, last = int(low), min(int(high or last), last)
        if last > server.limit and server.mode == 'vanish':
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(206 if wanted else 200)
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(last - first + 1))
        if wanted:
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
        self.end_headers()
        if body:
            if last > server.limit and server.mode == 'stall':
                server.released.wait(20)
                return
            self.wfile.write(content[first : last + 1])


def serve(folder, port=0):
    server = ThreadingHTTPServer(('127.0.0.1', port), Files)
    server.daemon_threads = True
    server.folder, server.mode, server.asked, server.released = folder, 'serve', [], threading.Event()
    server.limit = 60_000
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f'http://127.0.0.1:{server.server_port}'
    return server


@pytest.fixture
def host(tmp_path, monkeypatch):
    server = serve(tmp_path)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    # what the user sets goes before geolearn's own
    monkeypatch.setenv('GDAL_HTTP_MAX_RETRY', '0')
    monkeypatch.setenv('GDAL_HTTP_RETRY_DELAY', '0.1')
    monkeypatch.setenv('GDAL_HTTP_LOW_SPEED_TIME', '1')
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def make(path, times=1):
    with rasterio.open(
        path, 'w', 'GTiff', SIDE, times * SIDE, 1, 'EPSG:32633', Affine(10, 0, 0, 0, -10, 0), 'uint8',
        tiled=True, blockxsize=64, blockysize=64,
    ) as dst:  # fmt: skip
        dst.write(np.tile(PIXELS, (1, times, 1)))
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


@pytest.mark.parametrize('mode', ['refuse', 'vanish'])
def test_what_could_not_be_opened_is_opened_when_the_host_answers_again(host, tmp_path, mode):
    make(tmp_path / 'again.tif')
    address = f'{host.address}/again.tif'
    (tmp_path / 'again.vrt').write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename>/vsicurl/{address}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        '</VRTRasterBand></VRTDataset>'
    )
    item = {'type': 'Feature', 'id': 'x', 'assets': {'Red': {'href': address, 'type': 'image/tiff'}}}
    host.limit = 0  # not even the first bytes
    for source in (address, [address], item, tmp_path / 'again.vrt')[: 1 if mode == 'vanish' else 4]:
        host.mode = mode
        failed = pytest.raises(RasterError, match=r'cannot (open|read) .*again.*Run it again when the host answers')
        with failed, open_raster(source) as src:
            read_all(src)
        host.mode = 'serve'
        with open_raster(source) as src:
            assert (read_all(src) == PIXELS).all()


def test_a_host_that_was_down_is_asked_again_and_a_file_that_was_replaced_is_read_anew(host, tmp_path):
    host.server_close()
    host.shutdown()
    address = f'{host.address}/scene.tif'
    with pytest.raises(RasterError, match='copy the file here'), open_raster(address):
        pass
    make(tmp_path / 'scene.tif')
    server = serve(tmp_path, host.server_port)
    try:
        with open_raster(address) as src:
            assert (read_all(src) == PIXELS).all()
        with rasterio.open(tmp_path / 'scene.tif', 'r+') as dst:
            dst.write(255 - PIXELS)
        with open_raster(address) as src:
            assert (read_all(src) == 255 - PIXELS).all()
    finally:
        server.shutdown()
        server.server_close()


def describe():
    return ModelSpec(
        model='Plain',
        backbone='none',
        bands=tuple(resolve_bands(['Red'])),
        class_infos=(ClassInfo(1, 'dark', (0, 0, 0)), ClassInfo(2, 'bright', (255, 255, 255))),
        ignored_values=(0,),
        chip_size=64,
        statistics=BandStatistics((0,), (250,), (125,), (70,)),
        normalization=Normalization((125,), (70,), 'the test'),
        dtype='uint8',
    )


class Bright(nn.Module):
    """Class 2 where a pixel is above 125."""

    context, finer = 0, 1
    backbone = SimpleNamespace(has_position_grid=False, strides=(1,))

    def forward(self, x):
        return torch.cat([125 - x, x - 125], dim=1)


def test_a_map_whose_host_vanished_midway_is_resumed_and_ends_in_the_same_bytes(host, tmp_path, monkeypatch):
    monkeypatch.setattr(store, 'PIECE_SECONDS', 0.0)
    local, spec = make(tmp_path / 'scene.tif', times=4), describe()

    def run(src, name, **options):
        read, tiling = ReadOptions(bands=['Red'], scale=1), TilingOptions(tile_size=64, batch_size=1, device='cpu')
        encoding = ClassEncoding(spec.class_infos)
        chosen = MapOptions(**options)
        map_raster(spec, Bright(), encoding, src, tmp_path / name, read=read, tiling=tiling, options=chosen)
        return (tmp_path / name).read_bytes()

    expected = run(local, 'expected.tif')
    host.limit = 700_000
    address = f'{host.address}/scene.tif'
    with pytest.raises(RasterError, match=r'cannot read rows .*Run it again when the host'):
        run(address, 'map.tif', progress=lambda _: setattr(host, 'mode', 'vanish'))
    assert not (tmp_path / 'map.tif').exists()
    host.mode = 'serve'
    assert run(address, 'map.tif', resume=True) == expected


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
