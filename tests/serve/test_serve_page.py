"""The page of the server, in a browser that may ask no other host."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from geolearn.serve.app import make_app

pytest.importorskip('playwright.sync_api', reason='needs playwright: pip install playwright')

from playwright.sync_api import expect

# rasterio multiplies transforms as affine 3 will not have it
pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning'),
]


@pytest.fixture(scope='module')
def address(models, scene):
    """A server of the pixel classifier, as the command line runs it."""
    uvicorn = pytest.importorskip('uvicorn', reason="needs uvicorn: pip install '.[serve]'")
    app = make_app([models('pixels')], folders=[scene.parent])
    server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=0, log_level='warning', ws='none'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(500):
        if server.started:
            break
        time.sleep(0.02)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(browser, address):
    """The page, and what the browser complained about and asked for."""
    opened = browser.new_page(viewport={'width': 640, 'height': 360})
    complaints, asked = [], []
    opened.on('console', lambda message: complaints.append(message.text) if message.type == 'error' else None)
    opened.on('pageerror', lambda error: complaints.append(str(error)))
    opened.on('request', lambda request: asked.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert [text for text in complaints if 'status of 403 (Forbidden)' not in text] == []
    assert [url for url in asked if not url.startswith((address, 'blob:', 'data:'))] == []


def shown(page, layer=None):
    """Pixels of the map in the page, (height, width, 3); without a layer that is hidden before."""
    if layer is not None:
        page.evaluate(f"map.setLayoutProperty('{layer}', 'visibility', 'none')")
    page.evaluate("new Promise(resolve => { map.once('idle', resolve); map.triggerRepaint(); })")
    return np.asarray(Image.open(io.BytesIO(page.locator('#map').screenshot())).convert('RGB'))


def test_a_wrong_name_is_refused_in_words_and_an_upload_is_drawn_with_its_map(page, scene):
    expect(page.locator('#about')).to_contain_text('Blue, Green, Red, NIR')
    page.fill('#path', '../scene.tif')
    page.click('#named button')
    expect(page.locator('#message.error')).to_contain_text("holds '..'")
    page.set_input_files('#file', scene)
    page.click('#upload button')
    expect(page.locator('#message')).to_have_text('scene.tif is done.', timeout=20_000)
    both = shown(page)
    image = shown(page, 'result')
    nothing = shown(page, 'image')
    assert (image != nothing).any(-1).mean() > 0.2
    assert (both != image).any(-1).mean() > 0.2
    assert page.locator('#legend').inner_text().split() == ['water', 'field']
    with page.expect_download() as download:
        page.click('#download')
    assert download.value.suggested_filename == 'scene-map.tif'
