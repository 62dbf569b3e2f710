"""Fetching weights from a hub: a local server plays it, on the routes and headers that its client uses."""

import dataclasses
import errno
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from geolearn.backbones import create_backbone, weights
from geolearn.backbones.weights import WEIGHTS_DIR, fetch
from geolearn.bands import Band
from geolearn.errors import WeightsError

RGB = (Band('red', 0.665), Band('green', 0.56), Band('blue', 0.49))


class Hub(ThreadingHTTPServer):
    """Serves `files`; breaks off the body of each of the first `breaks` GETs half way."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), HubHandler)
        self.files, self.requests, self.breaks = {}, [], 0


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, *, send_body):
        start = int((self.headers.get('Range') or 'bytes=0-').removeprefix('bytes=').split('-')[0])
        self.server.requests.append((self.command, self.path, start))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_response(404)
            self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header('ETag', f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header('X-Repo-Commit', self.path.split('/')[4])
        self.send_header('Accept-Ranges', 'bytes')
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        if send_body and self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif send_body:
            self.wfile.write(body[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)
    monkeypatch.delenv(WEIGHTS_DIR, raising=False)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # between the client's retries
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def record(hub, small_dofa, use_record, official_state, tmp_path):
    """A record of the small DOFA whose first source the hub serves."""
    torch.save(official_state, tmp_path / 'served.pth')
    body = (tmp_path / 'served.pth').read_bytes()
    source = dataclasses.replace(small_dofa.sources[0], sha256=hashlib.sha256(body).hexdigest())
    hub.files[f'/{source.repo}/resolve/{source.revision}/{source.file}'] = body
    return use_record(dataclasses.replace(small_dofa, sources=(source, *small_dofa.sources[1:])))


def test_weights_are_fetched_at_the_pinned_revision_and_loaded(hub, record, official_state):
    net = create_backbone('dofa_base', RGB)
    assert torch.equal(net.trunk.blocks[3].mlp.fc2.weight, official_state['blocks.3.mlp.fc2.weight'])
    assert len(net.load_report.matched) == 74
    assert all(f'/resolve/{record.sources[0].revision}/' in path for _, path, _ in hub.requests)


def test_the_second_time_nothing_is_downloaded(hub, record):
    first = fetch(record)
    gets = sum(method == 'GET' for method, _, _ in hub.requests)
    assert fetch(record) == first
    assert sum(method == 'GET' for method, _, _ in hub.requests) == gets == 1


def test_a_file_with_another_sha256_is_refused_and_forgotten(hub, record, tmp_path):
    wrong = dataclasses.replace(record, sources=(dataclasses.replace(record.sources[0], sha256='0' * 64),))
    for _ in range(2):
        with pytest.raises(WeightsError, match=r'is not the published DOFA_ViT_base_e100\.pth: sha256 .*, needed 000'):
            fetch(wrong)
        assert not list((tmp_path / 'hf').rglob('*.pth'))
    assert sum(method == 'GET' for method, _, _ in hub.requests) == 2
    assert fetch(record).is_file()


def test_a_file_that_the_hub_lacks_says_what_to_do(hub, record):
    hub.files.clear()
    with pytest.raises(WeightsError) as error:
        fetch(record)
    text = str(error.value)
    assert text.startswith('DOFA_ViT_base_e100.pth of earthflow/DOFA at 7a5219e could not be downloaded')
    assert "pass weights='<file or folder>', set GEOLEARN_WEIGHTS_DIR" in text
    assert text.endswith('or pass pretrained=False')


def test_without_a_network_the_error_says_what_to_do(hub, record):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(WeightsError, match=r'could not be downloaded .*pass pretrained=False'):
        fetch(record)


def test_what_is_cached_needs_no_network(hub, record):
    cached = fetch(record)
    hub.shutdown()
    hub.server_close()
    assert fetch(record) == cached


def test_a_broken_download_goes_on_where_it_stopped(hub, record, monkeypatch):
    hub.breaks = 1
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 2**16)  # what is written before the break is kept
    try:
        path = fetch(record)
    except WeightsError:  # older clients leave the retry to the caller
        path = fetch(record)
    starts = [start for method, _, start in hub.requests if method == 'GET']
    assert starts[0] == 0
    assert starts[1] > 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sources[0].sha256


def test_offline_mode_takes_what_is_cached_and_asks_nobody(hub, record, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set: unset it, or pass weights='<file or folder>'"):
        fetch(record)
    assert hub.requests == []
    monkeypatch.delenv('HF_HUB_OFFLINE')
    cached = fetch(record)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    hub.requests.clear()
    assert fetch(record) == cached
    assert hub.requests == []


def test_a_full_disk_says_where_there_may_be_room(hub, record, monkeypatch, tmp_path):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(weights, 'hf_hub_download', fill)
    with pytest.raises(WeightsError, match=r'No space left.*disk of .*hub is full: free space, or set HF_HOME to a fo'):
        fetch(record)


def test_gated_weights_say_how_to_open_the_gate(hub, record):
    hub.files.clear()
    gated = dataclasses.replace(record, gated=True)
    with pytest.raises(WeightsError, match=r'accept its license on huggingface.co/earthflow/DOFA and set HF_TOKEN, or'):
        fetch(gated)


def test_nothing_is_left_half_loaded_when_a_download_fails(hub, record, tmp_path):
    hub.breaks = 100
    with pytest.raises(WeightsError, match='could not be downloaded'):
        create_backbone('dofa_base', RGB)
    assert not list((tmp_path / 'hf').rglob('*.pth'))


@pytest.mark.parametrize('address', ['http://127.0.0.1:9', 'http://no-such-host.invalid'])
@pytest.mark.parametrize('name', ['dofa_base', 'resnet18', 'vit_small_patch16_224'])
def test_without_a_network_the_error_comes_at_once_and_alone(address, name, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_ENDPOINT', address)
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    for variable in ('HF_HUB_OFFLINE', WEIGHTS_DIR):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(weights, 'PATIENCE', 2.0)
    started = time.monotonic()
    with pytest.raises(
        WeightsError, match=r'cannot be reached: .*; no connection\); pass weights=.*pretrained=False'
    ) as error:
        create_backbone(name, RGB)
    assert time.monotonic() - started < 8
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


def test_what_is_cached_of_timm_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    state = {k: torch.full_like(v, 0.5) for k, v in timm.create_model('resnet10t').state_dict().items()}
    save_file(state, tmp_path / 'model.safetensors')
    monkeypatch.setattr(
        weights, 'find_in_cache', lambda repo, name: tmp_path / name if repo.startswith('timm/') else None
    )
    net = create_backbone('resnet10t', RGB)
    assert (net.trunk.layer1[0].conv1.weight == 0.5).all()
