"""Interactive maps and figures of rasters: colors and names of the file, places, and texts that nobody may trust."""

import base64
import io
import re

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from geolearn import GeoLearnError, show_map
from geolearn.cli import main
from geolearn.plotting.maps import draw_raster, plot_map
from geolearn.raster import GeoBox, RasterWriter

pytestmark = pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning')

PLACE = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000), 'crs': 'EPSG:32633'}
HOSTILE = r'$\foo$</script><script>alert(1)</script>{{ 7*7 }}'


@pytest.fixture
def classes(tmp_path):
    """A map of two classes, west and east, and a border without data in the north."""
    pixels = np.full((1, 40, 60), 1, np.uint8)
    pixels[:, :, 30:], pixels[:, :5] = 7, 255
    names, colors = {1: 'water', 7: HOSTILE}, {1: (0, 0, 255), 7: (255, 0, 0)}
    options = {'class_names': names, 'colors': colors, 'nodata': 255, 'band_names': ['class']}
    box = GeoBox((40, 60), PLACE['transform'], PLACE['crs'])
    with RasterWriter(tmp_path / 'map.tif', box, dtype='uint8', **options) as dst:
        dst.write(0, pixels)
    return tmp_path / 'map.tif'


def pictures(page):
    found = re.findall(r'data:image/png;base64,([A-Za-z0-9+/=]+)', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_a_map_of_classes_is_shown_in_its_colors_at_its_place(classes):
    page = show_map(classes).get_root().render()
    (pixels,) = pictures(page)
    height, width = pixels.shape[:2]
    assert pixels[height // 2, width // 4].tolist() == [0, 0, 255, 255]
    assert pixels[height // 2, 3 * width // 4].tolist() == [255, 0, 0, 255]
    assert pixels[1, width // 2, 3] == 0  # NoData
    south, west, north, east = draw_raster(classes).bounds
    assert (south, west) == pytest.approx((48.7488, 15.0), abs=1e-3)
    assert (north, east) == pytest.approx((48.7524, 15.0082), abs=1e-3)


def test_names_of_files_and_classes_are_texts(classes, tmp_path):
    image = tmp_path / '<img src=x onerror=alert(1)>.tif'
    image.write_bytes(classes.read_bytes())
    page = show_map(classes, image=image).get_root().render()
    assert 'alert(1)&lt;/script&gt;{{ 7*7 }}' in page
    assert '<script>alert' not in page
    assert '<img' not in page


def test_a_page_asks_two_hosts_alone(classes):
    page = show_map(classes).get_root().render()
    hosts = set(re.findall(r'(?:src|href)="https?://([^/"]+)', page)) | set(
        re.findall(r'"https://([^/"]+)/\{z\}', page)
    )
    assert hosts == {'cdn.jsdelivr.net', 'tile.openstreetmap.org'}


def test_numbers_are_shown_in_a_ramp_with_their_values(save, tmp_path):
    values = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)
    values[0, 0] = np.nan
    drawing = draw_raster(save(tmp_path / 'confidence.tif', values, **PLACE))
    assert drawing.limits == pytest.approx((0.02, 0.98), abs=0.01)
    assert drawing.rgba[3, 20, 2] > drawing.rgba[-3, 20, 2]
    assert f'{drawing.limits[1]:.4g}<' in show_map(tmp_path / 'confidence.tif').get_root().render()


def test_images_are_reduced_and_one_pixel_is_drawn(save, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 3000, (4, 64, 64)).astype(np.uint16)
    scene = save(tmp_path / 'scene.tif', pixels, names=['B02', 'B03', 'B04', 'B08'], **PLACE)
    assert max(draw_raster(scene, max_side=16).rgba.shape[:2]) == 16
    assert draw_raster(save(tmp_path / 'one.tif', pixels[:1, :1, :1], **PLACE)).rgba.shape[2] == 4


def test_rasters_of_the_whole_world_end_where_web_maps_do(save, tmp_path):
    world = {'transform': Affine(4, 0, -180, 0, -4, 90), 'crs': 'EPSG:4326'}
    drawing = draw_raster(save(tmp_path / 'world.tif', np.ones((45, 90), np.uint8), **world))
    assert drawing.bounds == pytest.approx((-85, -180, 85, 180), abs=4)


def test_opacity_is_no_band_and_masks_are_kept(save, tmp_path):
    pixels = np.full((4, 40, 50), 255, np.uint8)
    pixels[3, :10] = 0
    drawing = draw_raster(save(tmp_path / 'rgba.tif', pixels, photometric='RGB', alpha='yes', **PLACE))
    assert (drawing.rgba[..., 3] > 0).mean() == pytest.approx(0.75, abs=0.02)
    assert drawing.classes == ()


@pytest.mark.parametrize(
    'place',
    [
        {'crs': None},
        {'transform': Affine(0.02, 0, 179.9, 0, -0.02, 10), 'crs': 'EPSG:4326'},
        {'transform': Affine(1, 0, -10, 0, -1, 10), 'crs': 'EPSG:3031'},
    ],
)
def test_rasters_without_a_place_on_it_are_refused(place, save, tmp_path):
    path = save(tmp_path / 'a.tif', np.ones((20, 20), np.uint8), **place)
    with pytest.raises(GeoLearnError, match=r'no place on'):
        show_map(path)


def test_the_command_shows_a_raster_as_picture_and_as_page(classes, tmp_path, capsys):
    main(['show', str(classes), str(tmp_path / 'map.png')])
    main(['show', str(classes), str(tmp_path / 'map.html')])
    assert capsys.readouterr().out.count('wrote') == 2
    assert pictures((tmp_path / 'map.html').read_text())
    with Image.open(tmp_path / 'map.png') as drawn:
        assert drawn.size[0] > 300
    assert str(plot_map(classes).legends[0].get_texts()[1].get_text()).startswith(r'$\foo$')


def test_what_the_command_cannot_show_is_one_line(classes, tmp_path, capsys):
    for words in ([str(tmp_path), 'a.html'], [str(classes), 'a.txt'], [str(classes), 'a.png', '--image', str(classes)]):
        with pytest.raises(SystemExit):
            main(['show', *words])
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_file_is_not_held_open(classes):
    draw_raster(classes)
    with rasterio.open(classes, 'r+') as dst:
        assert dst.count == 1
