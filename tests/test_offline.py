"""Nothing asks the network unless somebody asks for it: the whole path, from data to map, with sockets closed."""

import socket

import numpy as np
import pytest

import geolearn
from geolearn.cli import main
from geolearn.errors import WeightsError
from geolearn.synthetic import CLASSES

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def closed(monkeypatch):
    """Refuse connections and look-ups of names; returns those that were tried."""
    tried = []

    def refuse(self, address, *rest):
        if self.family == socket.AF_UNIX:  # between processes of this machine
            return connect(self, address, *rest)
        tried.append(address)
        raise OSError('the network is closed')

    def unknown(host, *rest, **options):
        tried.append(host)
        raise socket.gaierror('the network is closed')

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket.socket, 'connect_ex', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    return tried


@pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning')
def test_the_whole_path_asks_nobody(closed, scene_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scene, labels = scene_files
    geolearn.list_backbones('*dofa*')
    geolearn.backbone_table('dofa*')
    geolearn.describe_backbone('dofa_base')
    geolearn.export_training_data(scene, labels, 'chips', classes=CLASSES, tile_size=32, sensor='Sentinel-2')
    data = geolearn.prepare_data('chips', chip_size=32, batch_size=4, ignore_classes=[0])
    model = geolearn.UNet(data, 'test_resnet', pretrained=False)
    model.fit(1, lr=1e-3)
    bundle = model.save('m')
    loaded = geolearn.load_model(bundle)
    loaded.predict_raster(scene, 'map.tif')
    geolearn.vectorize_map('map.tif', 'map.gpkg')
    geolearn.show_map('map.tif')
    geolearn.embed(
        np.random.default_rng(0).random((1, 3, 32, 32)), 'vit_nano', bands=['red', 'green', 'blue'], pretrained=False
    )
    for words in (
        ['info', str(bundle)],
        ['info', 'chips'],
        ['info', 'map.tif'],
        ['weights', 'list'],
    ):
        main(words)
    capsys.readouterr()
    assert closed == []


def test_pretrained_weights_are_asked_for_and_the_error_says_what_else_to_do(closed, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    bands = geolearn.get_bands('Sentinel-2', ['B2', 'B3', 'B4'])
    with pytest.raises(WeightsError, match='pretrained=False'):
        geolearn.create_backbone('dofa_base', bands)
    assert closed
