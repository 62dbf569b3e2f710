import numpy as np
import pytest
import rasterio
from rasterio.features import sieve

from geolearn.synthetic import BAND_NAMES, CLASSES, MIN_REGION, Scene, make_scene, write_scene

WATER, FOREST, GRASS, CROP, SOIL, BUILT = range(1, 7)


@pytest.fixture(scope='module')
def scene() -> Scene:
    return make_scene(512, seed=3)


@pytest.fixture(scope='module')
def clear() -> Scene:
    return make_scene(512, seed=3, cloud_fraction=0, border=False)


def spectrum(scene, value):
    """Median reflectance of a class, by band name."""
    return dict(zip(scene.band_names, np.median(scene.image[:, scene.label == value], axis=1) / 10000))


def ndvi(scene, value):
    bands = spectrum(scene, value)
    return (bands['B08'] - bands['B04']) / (bands['B08'] + bands['B04'])


def shares(scene):
    return np.bincount(scene.label.ravel(), minlength=7) / scene.label.size


def nearest_mean_accuracy(train, test):
    """Accuracy on one scene of the class whose mean spectrum in another is nearest."""
    means = [train.image[:, train.label == info.value].mean(axis=1) for info in CLASSES]
    pixels = test.image[:, test.label > 0].astype(np.float64)
    nearest = np.argmin([((pixels - mean[:, None]) ** 2).sum(axis=0) for mean in means], axis=0) + 1
    return (nearest == test.label[test.label > 0]).mean()


def test_the_same_seed_gives_the_same_bytes():
    first, second = (make_scene(96, seed=5) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.label.tobytes() == second.label.tobytes()


def test_another_seed_gives_another_scene_elsewhere():
    first, second = make_scene(96, seed=5), make_scene(96, seed=6)
    assert (first.label != second.label).mean() > 0.3
    assert first.transform != second.transform


@pytest.mark.parametrize('size', [64, 200, (72, 130)])
def test_a_scene_has_the_size_asked_for(size):
    scene = make_scene(size)
    shape = (size, size) if isinstance(size, int) else size
    assert scene.image.shape == (10, *shape)
    assert scene.label.shape == shape
    assert scene.image.dtype == np.uint16
    assert scene.label.dtype == np.uint8
    assert set(np.unique(scene.label)) == set(range(7))


def test_a_scene_names_its_bands_its_classes_and_its_place(scene):
    assert scene.band_names == BAND_NAMES
    assert [info.value for info in scene.classes] == [1, 2, 3, 4, 5, 6]
    assert len({info.color for info in scene.classes}) == 6
    assert scene.crs == 'EPSG:32633'
    assert (scene.transform.a, scene.transform.e) == (10, -10)


@pytest.mark.parametrize(('seed', 'cloud_fraction'), [(0, 0), (1, 0.05), (2, 0.3), (3, 0), (4, 0.05), (5, 0.3)])
def test_every_class_covers_at_least_4_percent_whatever_the_seed(seed, cloud_fraction):
    assert shares(make_scene(512, seed=seed, cloud_fraction=cloud_fraction))[1:].min() >= 0.04


def test_every_class_covers_at_least_4_percent_of_what_much_cloud_leaves():
    covered = shares(make_scene(256, seed=1, cloud_fraction=0.5))
    assert covered[0] > 0.5
    assert (covered[1:] / covered[1:].sum()).min() >= 0.04


def test_all_bands_have_no_data_on_the_border_and_data_elsewhere(scene):
    empty = scene.image == 0
    assert (empty.all(axis=0) == empty.any(axis=0)).all()
    assert 0.03 <= empty[0].mean() <= 0.06
    assert (scene.label[empty[0]] == 0).all()
    assert scene.image[:, ~empty[0]].max() <= 12000


def test_the_border_is_a_wedge_that_narrows_down_one_side(scene):
    widths = (scene.image[0] == 0).sum(axis=1)
    assert (np.diff(widths) <= 0).all()
    assert widths[0] > widths[-1]
    outer = scene.image[0, 0, [0, -1]]
    assert (outer == 0).sum() == 1


def test_a_clear_scene_without_border_is_labelled_everywhere(clear):
    assert clear.image.min() >= 1
    assert clear.label.min() >= 1


def test_what_is_unlabelled_inside_the_border_is_bright_cloud_of_the_share_asked_for():
    scene = make_scene(256, seed=2, cloud_fraction=0.08, border=False)
    cloud = scene.label == 0
    assert cloud.mean() == pytest.approx(0.08, abs=0.001)
    blue = scene.image[0]
    assert np.median(blue[cloud]) > 4 * np.median(blue[~cloud])


def test_clouds_throw_shadows_to_the_north_west():
    scene = make_scene(512, seed=2, cloud_fraction=0.1, border=False)
    cloud = (scene.label == 0) & (scene.image[0] > 6000)
    grass = scene.label == GRASS
    north_west, south_east = (np.roll(cloud, (step * 22, step * 9), (0, 1)) & grass for step in (-1, 1))
    near_infrared = scene.image[6]
    assert np.median(near_infrared[north_west]) < 0.6 * np.median(near_infrared[south_east])


def test_no_region_of_one_class_is_smaller_than_the_minimum(clear):
    assert (sieve(clear.label, MIN_REGION, connectivity=4) == clear.label).all()


def test_patches_of_16_pixels_mostly_hold_one_class(clear):
    patches = clear.label.reshape(32, 16, 32, 16).swapaxes(1, 2).reshape(-1, 256)
    assert np.mean([np.bincount(patch).max() / 256 for patch in patches]) > 0.8


@pytest.mark.parametrize('seed', range(3))
def test_greenness_falls_from_forest_over_grass_and_crops_to_soil_and_water(seed):
    scene = make_scene(384, seed=seed)
    greenness = [ndvi(scene, value) for value in (FOREST, GRASS, CROP, SOIL, WATER)]
    assert greenness == sorted(greenness, reverse=True)
    assert greenness[0] > 0.7
    assert greenness[3] < 0.35
    assert greenness[4] < 0


def test_water_is_dark_in_the_near_infrared_and_darker_beyond(clear):
    water = spectrum(clear, WATER)
    inner = clear.image[6, clear.label == WATER]
    assert np.percentile(inner, 90) < 600
    assert water['B03'] > water['B04'] > water['B08'] > water['B11']


def test_plants_have_a_green_peak_a_red_edge_and_water_absorption(clear):
    for value in (FOREST, GRASS):
        bands = spectrum(clear, value)
        assert bands['B03'] > max(bands['B02'], bands['B04'])
        assert bands['B04'] < bands['B05'] < bands['B06'] < bands['B07'] < bands['B8A']
        assert bands['B8A'] > bands['B11'] > bands['B12']


def test_soil_brightens_towards_the_short_wave_infrared_and_towns_stay_flat(clear):
    soil, built = spectrum(clear, SOIL), spectrum(clear, BUILT)
    assert soil['B02'] < soil['B03'] < soil['B04'] < soil['B08'] < soil['B11']
    assert max(built.values()) / min(built.values()) < 2.2
    assert built['B02'] > soil['B02']


def test_forest_and_towns_are_rougher_than_grass_and_water_is_smooth(clear):
    step = np.abs(np.diff(clear.image[6].astype(float), axis=1)) / clear.image[6].mean()
    same = clear.label[:, 1:] == clear.label[:, :-1]
    rough = {info.value: np.median(step[same & (clear.label[:, 1:] == info.value)]) for info in CLASSES}
    assert min(rough[FOREST], rough[BUILT]) > rough[GRASS] > rough[WATER]


@pytest.mark.parametrize(('seed', 'other'), [(0, 1), (2, 0), (4, 7)])
def test_nearest_mean_spectra_of_another_scene_map_most_but_not_all_pixels(seed, other):
    accuracy = nearest_mean_accuracy(make_scene(384, seed=seed), make_scene(384, seed=other))
    assert 0.65 < accuracy < 0.97


def test_two_scenes_differ_in_haze():
    blue = [spectrum(make_scene(256, seed=seed), FOREST)['B02'] for seed in range(6)]
    assert max(blue) - min(blue) > 0.003


def test_a_scene_too_small_for_its_classes_is_refused():
    with pytest.raises(ValueError, match='needs 64 pixels a side'):
        make_scene((32, 100))


def test_a_cloud_fraction_beyond_half_is_refused():
    with pytest.raises(ValueError, match=r'must lie in 0\.\.0\.5, got 0\.9'):
        make_scene(64, cloud_fraction=0.9)


def test_written_scenes_keep_pixels_place_names_colours_and_nodata(tmp_path):
    scene = make_scene(128, seed=4)
    write_scene(scene, tmp_path / 'image.tif', tmp_path / 'label.tif')
    with rasterio.open(tmp_path / 'image.tif') as image, rasterio.open(tmp_path / 'label.tif') as label:
        assert (image.read() == scene.image).all()
        assert image.descriptions == BAND_NAMES
        assert image.tags()['SensorName'] == 'Sentinel-2'
        assert (label.read(1) == scene.label).all()
        assert [label.colormap(1)[info.value][:3] for info in CLASSES] == [info.color for info in CLASSES]
        assert label.tags()['class_5'] == 'bare soil'
        for raster in (image, label):
            assert raster.nodata == 0
            assert raster.transform == scene.transform
            assert raster.crs.to_epsg() == 32633
            assert raster.profile['compress'] == 'deflate'
