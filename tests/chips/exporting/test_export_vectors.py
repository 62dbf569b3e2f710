import json
import logging
import math
import re

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import read_metadata
from geolearn.chips.export import export_training_data
from geolearn.chips.formats.coco import list_coco
from geolearn.chips.formats.imagenet import list_imagenet
from geolearn.chips.formats.labeled import list_labeled_tiles, list_multilabeled_tiles
from geolearn.chips.formats.panoptic import list_panoptic
from geolearn.chips.formats.rcnn import list_rcnn_masks
from geolearn.chips.formats.tiles import list_classified_tiles, list_export_tiles
from geolearn.chips.formats.voc import list_voc
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError, RasterError, UnknownNameError
from geolearn.raster import read_image

geopandas = pytest.importorskip('geopandas')
shapely = pytest.importorskip('shapely')

CRS = 'EPSG:32633'
EAST, NORTH = 500000, 6000000
SIDE = 16
PLACE = Affine(10, 0, EAST, 0, -10, NORTH)
IMAGE = np.arange(1, 1 + 2 * SIDE * SIDE, dtype=np.uint16).reshape(2, SIDE, SIDE)


@pytest.fixture
def image(tmp_path, save):
    return save(tmp_path / 'image.tif', IMAGE, names=('Red', 'NIR'), transform=PLACE, crs=CRS)


def box(left, top, right, bottom):
    """A rectangle in pixels of the image, on the map."""
    return shapely.box(EAST + 10 * left, NORTH - 10 * bottom, EAST + 10 * right, NORTH - 10 * top)


def frame(geometry, crs=CRS, **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(geometry), crs=crs)


def chips(lister, out):
    """Pixels, place and label of each chip by its stem."""
    found = {}
    for source in lister(out, read_metadata(out)).chips:
        pixels, _, place = read_image(source.image)
        found[source.image.stem] = pixels, place, source.read_label(place.shape)
    return [found[stem] for stem in sorted(found)]


def rasters(out):
    return [label.raster.tolist() for _, _, label in chips(list_classified_tiles, out)]


# --- classes


def test_polygons_become_pixels_of_their_class(tmp_path, image):
    labels = frame([box(0, 0, 4, 4), box(10, 2, 12, 8)], classvalue=[3, 7], ClassName=['grass', 'water'])
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=8)
    assert [(info.value, info.name) for info in read_metadata(out).classes] == [(3, 'grass'), (7, 'water')]
    left, right = np.zeros((2, 8, 8), int)
    left[:4, :4], right[2:8, 2:4] = 3, 7
    assert rasters(out) == [left.tolist(), right.tolist()]
    stats = json.loads((out / 'esri_accumulated_stats.json').read_text())
    assert stats['OutputFeatures'] is True
    assert stats['FeatureStats']['FeatureAreaPerClass'][0]['Sum'] == pytest.approx(1600)
    assert stats['ClassPixelStats']['NumPixelsPerClass'] == [16, 12]


def test_texts_become_classes_in_order_of_the_alphabet(tmp_path, image):
    labels = frame([box(0, 0, 2, 2), box(2, 2, 4, 4), box(4, 4, 6, 6)], kind=['Wälder', 'a b', 'Wälder'])
    out = export_training_data(image, labels, tmp_path / 'out', 'RCNN_Masks', 16, class_value_field='kind')
    assert [(info.value, info.name) for info in read_metadata(out).classes] == [(1, 'Wälder'), (2, 'a b')]
    assert chips(list_rcnn_masks, out)[0][2].class_ids.tolist() == [1, 1, 2]


def test_classes_given_set_values_names_and_colours(tmp_path, image):
    classes = [ClassInfo(9, 'b', (1, 2, 3)), ClassInfo(4, 'a', (4, 5, 6))]
    labels = frame([box(0, 0, 2, 2), box(2, 2, 4, 4)], classname=['a', 'b'])
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16, classes=classes)
    assert read_metadata(out).classes == tuple(classes)
    raster = np.array(rasters(out)[0])
    assert (raster[0, 0], raster[2, 2]) == (4, 9)


def test_without_a_field_all_features_are_class_1_and_that_is_told(tmp_path, image, caplog):
    with caplog.at_level(logging.WARNING, 'geolearn'):
        out = export_training_data(image, frame([box(0, 0, 2, 2)], height=[3.5]), tmp_path / 'out', tile_size=16)
    assert [info.value for info in read_metadata(out).classes] == [1]
    assert 'features are one class, as no field is called classvalue or classname; fields: height' in caplog.text


def test_a_layer_for_each_class(tmp_path, image):
    path = tmp_path / 'labels.gpkg'
    for name, place in (('forest', box(0, 0, 2, 2)), ('town', box(4, 4, 6, 6))):
        frame([place]).to_file(path, layer=name, engine='pyogrio')
    with pytest.raises(ChipFolderError, match='holds several layers: forest, town. Name one with layer='):
        export_training_data(image, path, tmp_path / 'out', tile_size=16)
    labels = {'Forest': (path, 'forest'), 'Town': (path, 'town')}
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16)
    assert [(info.value, info.name) for info in read_metadata(out).classes] == [(1, 'Forest'), (2, 'Town')]
    out = export_training_data(image, path, tmp_path / 'one', tile_size=16, layer='town')
    assert np.array(rasters(out)[0]).sum() == 4
    with pytest.raises(ChipFolderError, match="has no layer 'x'; it holds forest, town"):
        export_training_data(image, path, tmp_path / 'none', tile_size=16, layer='x')


@pytest.mark.parametrize('value', [-1, 1.5, 65536])
def test_values_that_are_no_class_values_are_refused(tmp_path, image, value):
    labels = frame([box(0, 0, 2, 2)], value=[value])
    with pytest.raises(ChipFolderError, match='class values are whole numbers from 1 to 65535'):
        export_training_data(image, labels, tmp_path / 'out', tile_size=16)


def test_a_field_that_is_not_there_is_refused(tmp_path, image):
    with pytest.raises(ChipFolderError, match="labels has no field 'kind'; it has species"):
        export_training_data(
            image, frame([box(0, 0, 2, 2)], species=['a']), tmp_path / 'out', class_value_field='kind', tile_size=16
        )


# --- place


@settings(max_examples=10)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 5), st.sampled_from(['EPSG:4326', 'EPSG:3857', CRS]))
def test_labels_in_any_crs_land_on_the_right_pixels(tmp_path_factory, save, row, col, size, crs):
    folder = tmp_path_factory.mktemp('crs')
    path = save(folder / 'image.tif', IMAGE, transform=PLACE, crs=CRS)
    labels = frame([box(col, row, col + size, row + size).buffer(-1, join_style='mitre')]).to_crs(crs)
    out = export_training_data(path, labels, folder / 'out', tile_size=16)
    wanted = np.zeros((SIDE, SIDE), int)
    wanted[row : row + size, col : col + size] = 1
    assert rasters(out) == [wanted.tolist()]


def test_polygons_without_crs_are_refused_unless_it_is_given(tmp_path, image):
    labels = frame([box(0, 0, 2, 2)], crs=None)
    with pytest.raises(ChipFolderError, match='labels names no CRS, so its place is unknown; pass labels_crs='):
        export_training_data(image, labels, tmp_path / 'out', tile_size=16)
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16, labels_crs=CRS)
    assert np.array(rasters(out)[0]).sum() == 4


def test_disjoint_labels_are_refused_with_both_extents(tmp_path, image):
    labels = frame([box(100, 100, 102, 102)])
    words = r'do not overlap.* the raster covers 500000, .* and the labels 501000, .* Is the CRS of one of them wrong'
    with pytest.raises(ChipFolderError, match=words):
        export_training_data(image, labels, tmp_path / 'out', tile_size=16)
    assert not (tmp_path / 'out').exists()


def test_labels_in_pixels_fit_an_image_without_crs(tmp_path, save):
    path = save(tmp_path / 'photo.png', np.ones((3, 8, 8), np.uint8), transform=Affine.identity(), crs=None)
    labels = frame([shapely.box(1.25, 2.5, 4, 5)], crs=None)
    out = export_training_data(path, labels, tmp_path / 'out', 'PASCAL_VOC_rectangles', 8)
    assert chips(list_voc, out)[0][2].boxes.tolist() == [[1.25, 2.5, 4, 5]]
    with pytest.raises(ChipFolderError, match='but the raster has no CRS'):
        export_training_data(path, frame([box(0, 0, 1, 1)]), tmp_path / 'b', tile_size=8)


def test_empty_and_broken_geometries_are_counted(tmp_path, image, caplog):
    bow_tie = shapely.Polygon([(EAST, NORTH), (EAST + 40, NORTH - 40), (EAST + 40, NORTH), (EAST, NORTH - 40)])
    with caplog.at_level(logging.WARNING, 'geolearn'):
        out = export_training_data(
            image, frame([None, shapely.Polygon(), bow_tie], value=[1, 1, 1]), tmp_path / 'out', tile_size=16
        )
    assert np.array(rasters(out)[0]).any()
    assert '2 features without geometry were left out' in caplog.text
    assert '1 invalid polygons were repaired' in caplog.text
    assert len(json.loads((out / 'esri_model_definition.emd').read_text())['geolearn']['notes']) == 2


def test_no_feature_at_all_is_refused(tmp_path, image):
    with pytest.raises(ChipFolderError, match='no feature can be used'):
        export_training_data(image, frame([]), tmp_path / 'out', tile_size=16)


def test_points_need_a_radius(tmp_path, image):
    labels = frame([shapely.Point(EAST + 80, NORTH - 80)])
    with pytest.raises(ChipFolderError, match='1 features are no polygons but e.g. Point; pass buffer_radius='):
        export_training_data(image, labels, tmp_path / 'out', tile_size=16)
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16, buffer_radius=30)
    assert np.array(rasters(out)[0]).sum() == pytest.approx(math.pi * 9, abs=4)


# --- what is in a chip


def test_boxes_are_cut_at_the_edge_and_overlap_decides(tmp_path, image):
    labels = frame([box(6, 1, 11, 3), box(0, 0, 2.5, 2.25)])
    out = export_training_data(image, labels, tmp_path / 'out', 'PASCAL_VOC_rectangles', 8)
    found = [label.boxes.tolist() for _, _, label in chips(list_voc, out)]
    assert found == [[[6, 1, 8, 3], [0, 0, 2.5, 2.25]], [[0, 1, 3, 3]]]
    out = export_training_data(
        image, labels, tmp_path / 'half', 'PASCAL_VOC_rectangles', 8, min_polygon_overlap_ratio=0.5
    )
    found = [label.boxes.tolist() for _, _, label in chips(list_voc, out)]
    assert found == [[[0, 0, 2.5, 2.25]], [[0, 1, 3, 3]]]


def test_pixels_stay_true_whatever_the_overlap(tmp_path, image):
    labels = frame([box(6, 1, 11, 3), box(0, 0, 2, 2)])
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=8, min_polygon_overlap_ratio=0.5)
    assert [np.array(raster).sum() for raster in rasters(out)] == [4 + 4, 6]


@pytest.mark.parametrize(
    ('metadata_format', 'lister'), [('RCNN_Masks', list_rcnn_masks), ('COCO_rectangles', list_coco)]
)
def test_objects_that_overlap_keep_their_outlines(tmp_path, image, metadata_format, lister):
    labels = frame([box(0, 0, 4, 4), box(2, 2, 6, 6), box(9, 9, 9.2, 9.2)], value=[2, 2, 2])
    out = export_training_data(image, labels, tmp_path / 'out', metadata_format, 16)
    _, _, label = chips(lister, out)[0]
    assert label.class_ids.tolist() == [2, 2]
    assert label.boxes.tolist() == [[0, 0, 4, 4], [2, 2, 6, 6]]
    assert [int(mask.sum()) for mask in label.masks] == [16, 16]
    stats = json.loads((out / 'esri_accumulated_stats.json').read_text())['FeatureStats']
    assert (stats['NumFeaturesTotal'], stats['FeatureAreaPerClass'][0]['Sum']) == (2, 3200)


def test_panoptic_joins_a_class_raster_with_objects(tmp_path, image, save):
    classes = save(tmp_path / 'classes.tif', np.full((SIDE, SIDE), 5, np.uint8), transform=PLACE, crs=CRS)
    out = export_training_data(
        image,
        classes,
        tmp_path / 'out',
        'Panoptic_Segmentation',
        16,
        instance_labels=frame([box(0, 0, 2, 2)], value=[8]),
    )
    _, _, label = chips(list_panoptic, out)[0]
    assert (label.raster == 5).all()
    assert (label.class_ids.tolist(), label.boxes.tolist()) == ([8], [[0, 0, 2, 2]])


def test_whole_chips_get_all_classes_in_them(tmp_path, image):
    labels = frame([box(0, 0, 4, 4), box(6, 6, 10, 10)], classname=['a', 'b'])
    out = export_training_data(image, labels, tmp_path / 'out', 'MultiLabeled_Tiles', 8)
    assert [label.class_ids.tolist() for _, _, label in chips(list_multilabeled_tiles, out)] == [[1, 2], [2], [2], [2]]


def test_objects_of_a_class_raster_are_groups_of_pixels(tmp_path, image, save):
    raster = np.zeros((SIDE, SIDE), np.uint8)
    raster[1:3, 1:4], raster[5:7, 5:6], raster[5, 6] = 2, 2, 3
    labels = save(tmp_path / 'labels.tif', raster, transform=PLACE, crs=CRS)
    out = export_training_data(image, labels, tmp_path / 'out', 'PASCAL_VOC_rectangles', 16)
    _, _, label = chips(list_voc, out)[0]
    found = dict(zip(map(tuple, label.boxes.astype(int).tolist()), label.class_ids.tolist()))
    assert found == {(1, 1, 4, 3): 2, (6, 5, 7, 6): 3, (5, 5, 6, 7): 2}
    out = export_training_data(image, labels, tmp_path / 'chip', 'Labeled_Tiles', 16)
    assert chips(list_labeled_tiles, out)[0][2].class_ids.tolist() == [2]


# --- chips of features


def test_each_feature_gets_a_chip_centered_on_it(tmp_path, image):
    labels = frame([box(7, 7, 9, 9), box(0, 0, 2, 2)], classname=['a', 'b'])
    out = export_training_data(image, labels, tmp_path / 'out', 'Labeled_Tiles', 4)
    found = chips(list_labeled_tiles, out)
    assert [label.class_ids.tolist() for *_, label in found] == [[1], [2]]
    assert [(place.transform.c, place.transform.f) for _, place, _ in found] == [
        (EAST + 60, NORTH - 60),
        (EAST, NORTH),
    ]


def test_a_bounding_box_is_as_large_as_its_feature_and_black_around(tmp_path, image):
    triangle = shapely.Polygon([(EAST, NORTH), (EAST + 40, NORTH), (EAST, NORTH - 30)])
    out = export_training_data(
        image,
        frame([triangle, box(9, 9, 12, 14)], classname=['a b', 'ç']),
        tmp_path / 'out',
        'Imagenet',
        crop_mode='bounding_box',
        blacken_around_feature=True,
    )
    (first, _, label), (second, _, _) = chips(list_imagenet, out)
    assert (first.shape, second.shape) == ((2, 3, 4), (2, 5, 3))
    assert (first[:, 2, 3] == 0).all()
    assert (first[:, 0, 0] == IMAGE[:, 0, 0]).all()
    assert (second == IMAGE[:, 9:14, 9:12]).all()
    assert label.class_ids.tolist() == [1]
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    assert (emd['CropTileMode'], emd['BlackenAroundFeature']) == ('Variable_Size', True)
    assert emd['AllTilesStats'][0]['Min'] == 1


@pytest.mark.parametrize('option', [{'crop_mode': 'bounding_box'}, {'blacken_around_feature': True}])
def test_options_of_single_features_are_refused_elsewhere(tmp_path, image, option):
    with pytest.raises(ChipFolderError, match='needs chips that each show one feature'):
        export_training_data(image, frame([box(0, 0, 2, 2)]), tmp_path / 'out', tile_size=8, **option)


# --- tiles


def test_a_quarter_turn_turns_pixels_labels_and_place(tmp_path, image):
    labels = frame([box(0, 0, 3, 2)])
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16, rotation_angle=90)
    found = chips(list_classified_tiles, out)
    assert len(found) == 4
    straight = found[0][2].raster
    for turns, (pixels, place, label) in enumerate(found):
        assert (pixels == np.rot90(IMAGE, turns, axes=(1, 2))).all()
        assert (label.raster == np.rot90(straight, turns)).all()
        assert place.bounds == pytest.approx((EAST, NORTH - 160, EAST + 160, NORTH))


def test_turned_chips_show_what_lies_at_their_place(tmp_path, save):
    rows, cols = np.mgrid[0:64, 0:64]
    path = save(tmp_path / 'image.tif', np.stack([rows, cols]).astype(np.uint8), transform=PLACE, crs=CRS)
    out = export_training_data(path, None, tmp_path / 'out', 'Export_Tiles', 16, rotation_angle=30)
    found = chips(list_export_tiles, out)
    assert len(found) > 16
    for pixels, place, _ in found:
        t = place.transform
        x, y = t.a * 5.5 + t.b * 3.5 + t.c, t.d * 5.5 + t.e * 3.5 + t.f
        assert pixels[:, 3, 5].tolist() == [math.floor((NORTH - y) / 10), math.floor((x - EAST) / 10)]


def test_only_chips_within_the_mask_polygons_are_written(tmp_path, image):
    out = export_training_data(
        image, None, tmp_path / 'out', 'Export_Tiles', 4, mask_polygons=frame([box(0, 0, 9, 8)]).to_crs('EPSG:4326')
    )
    assert len(chips(list_export_tiles, out)) in (2, 4)  # warping moves the edge by less than a pixel
    areas = frame([box(0, 0, 7, 7)])
    with pytest.raises(ChipFolderError, match='there is no chip of 8 pixels that lies within mask_polygons'):
        export_training_data(image, None, tmp_path / 'none', 'Export_Tiles', 8, mask_polygons=areas)


def test_chips_without_features_on_request(tmp_path, image):
    options = {'metadata_format': 'PASCAL_VOC_rectangles', 'tile_size': 8, 'output_nofeature_tiles': True}
    out = export_training_data(image, frame([box(0, 0, 2, 2)]), tmp_path / 'out', start_index=5, **options)
    assert [len(label.class_ids) for *_, label in chips(list_voc, out)] == [1, 0, 0, 0]
    assert (out / 'images/000000000005.tif').exists()


def test_chips_without_data_are_left_out_and_their_labels_too(tmp_path, save):
    holed = IMAGE.copy()
    holed[:, :8, :8], holed[:, 0, 8:] = 0, 0
    path = save(tmp_path / 'holed.tif', holed, transform=PLACE, crs=CRS, nodata=0)
    out = export_training_data(path, frame([box(0, 0, 16, 16)]), tmp_path / 'out', tile_size=8)
    assert [np.array(raster).sum() for raster in rasters(out)] == [56, 64, 64]
    labels = frame([box(8, 0, 16, 0.9), box(8, 2, 10, 4)])
    out = export_training_data(path, labels, tmp_path / 'boxes', 'PASCAL_VOC_rectangles', 8)
    assert [label.boxes.tolist() for *_, label in chips(list_voc, out)] == [[[0, 2, 2, 4]]]


def test_threads_do_not_change_a_byte(tmp_path, save):
    rng = np.random.default_rng(0)
    path = save(tmp_path / 'image.tif', rng.integers(1, 999, (2, 120, 120), dtype=np.uint16), transform=PLACE, crs=CRS)
    labels = frame([box(x, y, x + 9, y + 7) for x, y in rng.integers(0, 110, (20, 2)).tolist()])
    options = {'tile_size': 16, 'stride': 12, 'rotation_angle': 120}
    one, other = (
        export_training_data(path, labels, tmp_path / str(n), 'COCO_rectangles', num_workers=n, **options)
        for n in (1, 5)
    )
    files = sorted(file.relative_to(one) for file in one.rglob('*') if file.is_file())
    assert files == sorted(file.relative_to(other) for file in other.rglob('*') if file.is_file())
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


# --- several rasters


def test_a_collection_cuts_each_raster_by_itself(tmp_path, save):
    names = ('Red', 'NIR')
    places = [PLACE, Affine(11, 0, EAST + 1000, 0, -11, NORTH), Affine(10, 0, EAST + 5000, 0, -10, NORTH)]
    paths = [save(tmp_path / f'{at}.tif', IMAGE, names=names, transform=t, crs=CRS) for at, t in enumerate(places)]
    labels = frame([box(0, 0, 2, 2), box(100, 0, 102.2, 2.2)])
    out = export_training_data(paths, labels, tmp_path / 'out', tile_size=16, processing_mode='collection')
    found = chips(list_classified_tiles, out)
    assert [place.transform.a for _, place, _ in found] == [10, 11]
    assert [int(label.raster.sum()) for *_, label in found] == [4, 4]
    notes = json.loads((out / 'esri_model_definition.emd').read_text())['geolearn']['notes']
    assert notes[0] == '1 of 3 rasters hold no chip and were passed over'
    with pytest.raises(RasterError, match='cannot be one mosaic'):
        export_training_data(paths, labels, tmp_path / 'mosaic', tile_size=16)


def test_a_collection_of_unlike_rasters_is_refused(tmp_path, save, image):
    other = save(tmp_path / 'other.tif', IMAGE.astype(np.float32), names=('Red', 'NIR'), transform=PLACE, crs=CRS)
    labels = frame([box(0, 0, 2, 2)])
    with pytest.raises(ChipFolderError, match='other.tif has types .*float32.* export them to two folders'):
        export_training_data([image, other], labels, tmp_path / 'out', tile_size=16, processing_mode='collection')


# --- what is refused


def test_a_failure_in_a_thread_is_raised_and_leaves_nothing(tmp_path, image, monkeypatch):
    def full(*args, **options):
        raise RasterError('cannot write x: No space left on device')

    monkeypatch.setattr('geolearn.chips.exporting.run.write_image', full)
    with pytest.raises(RasterError, match='No space left'):
        export_training_data(image, frame([box(0, 0, 16, 16)]), tmp_path / 'out', tile_size=4, num_workers=3)
    assert [path.name for path in tmp_path.iterdir()] == ['image.tif']


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        ({'image_format': 'PNG'}, RasterError, 'PNG images hold 1 or 3 bands of uint8, but these have 2 of uint16'),
        ({'image_format': 'GIF'}, UnknownNameError, "unknown image format 'GIF'"),
        ({'compress': 'zip'}, UnknownNameError, "unknown compression 'zip'"),
        ({'processing_mode': 'all'}, UnknownNameError, "unknown processing mode 'all'"),
        ({'crop_mode': 'round'}, UnknownNameError, "unknown crop mode 'round'"),
        ({'reference_system': 'MAP'}, UnknownNameError, "unknown reference system 'MAP'"),
        ({'rotation_angle': 360}, ChipFolderError, 'degrees from 0 to under 360'),
        ({'tile_size': 0}, ChipFolderError, 'tile_size is 0; a whole number of at least 1'),
        ({'stride': -1}, ChipFolderError, 'stride is -1'),
        ({'min_polygon_overlap_ratio': 20}, ChipFolderError, 'a share from 0 to 1 is needed'),
        ({'labels': None}, ChipFolderError, 'no labels are given, which only Export_Tiles can do without'),
        ({'metadata_format': 'Export_Tiles'}, ChipFolderError, 'Export_Tiles have no labels'),
        ({'metadata_format': 'CycleGAN'}, UnknownNameError, "unknown metadata format 'CycleGAN'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, image, options, error, words):
    given = {'labels': frame([box(0, 0, 2, 2)]), 'tile_size': 8, **options}
    with pytest.raises(error, match=words):
        export_training_data(image, out=tmp_path / 'out', **given)
    assert not (tmp_path / 'out').exists()


# --- real data


@pytest.mark.real_data
def test_polygons_of_aberystwyth_label_a_mosaic(shared, tmp_path):
    folder = shared / 'data' / 'aberystwyth_s2'
    labels = {name: (folder / 'cls_poly_smpls.gpkg', f'cls_{name}_smpls') for name in ('forest', 'grass', 'water')}
    tiles = sorted((folder / 's2_tiles').glob('*.tif'))
    out = export_training_data(tiles, labels, tmp_path / 'out', tile_size=64, sensor='Sentinel-2')
    stats = json.loads((out / 'esri_accumulated_stats.json').read_text())['FeatureStats']
    assert stats['NumClasses'] == 3
    assert min(stats['NumFeaturesPerClass']) >= 7


@pytest.mark.parametrize(
    ('texts', 'values', 'words'),
    [
        (['for\u00eat', ' fore\u0302t'], {1: 'forêt'}, ''),
        (['wood', 'Wood'], {1: 'Wood', 2: 'wood'}, "'Wood' and 'wood' differ by case or blanks alone"),
        (['3.0', '1.0'], {1: '1.0', 3: '3.0'}, ''),
        (['01', '1'], {1: '1'}, ''),
        (['311000', '2'], {1: '2', 2: '311000'}, "codes are not the class values, .*: '2' is class 1"),
    ],
)
def test_texts_that_mean_one_class_are_one_class(tmp_path, image, caplog, texts, values, words):
    labels = frame([box(0, 0, 8, 16), box(8, 0, 16, 16)]).assign(use=texts)
    out = export_training_data(image, labels, tmp_path / 'out', tile_size=16, class_value_field='use')
    assert {info.value: info.name for info in read_metadata(out).classes} == values
    assert re.search(words, caplog.text) if words else 'class' not in caplog.text


def test_coordinates_that_are_no_numbers_are_counted(tmp_path, image, caplog):
    labels = frame([box(0, 0, 8, 16), shapely.Polygon([(0, 0), (np.inf, 0), (8, 8)])])
    export_training_data(image, labels, tmp_path / 'out', tile_size=16)
    assert '1 features with coordinates that are no numbers' in caplog.text
