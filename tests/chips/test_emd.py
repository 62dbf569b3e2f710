import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_json, read_metadata
from geolearn.errors import ChipFolderError

IMAGES = [np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.arange(12, 24, dtype=np.uint8).reshape(3, 2, 2)]
LABELS = [np.array([[0, 1], [2, 2]], np.uint8)] * 2
SOUND = {'BandName': 'Red', 'Min': 0, 'Max': 251, 'Mean': 100.97, 'StdDev': 35.33}


def metadata(folder, emd, stats=None):
    """Write the two files as they are given and read them."""
    (folder / EMD_NAME).write_text(json.dumps(emd))
    if stats is not None:
        (folder / STATS_NAME).write_text(json.dumps(stats))
    return read_metadata(folder)


def classes(folder, rows):
    return [(info.value, info.name, info.color) for info in metadata(folder, {'Classes': rows}).classes]


# --- whole files, new and old


def test_a_new_export_tells_classes_bands_sensor_statistics_and_cell_size(tmp_path, write_export):
    names = ['Red', 'Green', 'NearInfrared']
    found = read_metadata(write_export(tmp_path / 'e', IMAGES, LABELS, band_names=names, sensor='Landsat 8'))
    assert found.metadata_mode == 'Classified_Tiles'
    assert [(info.value, info.name, info.color) for info in found.classes] == [
        (1, 'one', (255, 0, 0)),
        (2, 'two', (0, 0, 255)),
    ]
    assert (found.band_names, found.band_count, found.sensor) == (tuple(names), 3, 'Landsat 8')
    assert found.statistics.mean == (7.5, 11.5, 15.5)
    assert found.cell_size['x'] == 10
    assert found.dihedral
    assert found.wavelengths_um is None


def test_an_old_export_of_eg_strings_tells_its_classes_and_nothing_else(tmp_path, write_export):
    found = read_metadata(write_export(tmp_path / 'e', IMAGES, LABELS, layout='old'))
    assert [(info.value, info.name) for info in found.classes] == [(1, 'one'), (2, 'two')]
    assert found.metadata_mode == 'Classified_Tiles'
    assert found.statistics is found.band_names is found.band_count is found.sensor is found.cell_size is None
    assert found.dihedral


def test_eg_strings_everywhere_mean_nothing(tmp_path):
    keys = 'MetaDataMode ImageSpaceUsed InputRastersProps AllTilesStats MinCellSize Classes geolearn'.split()
    hint = 'e.g. whatever'
    inner = {'InputRastersProps': {'SensorName': hint, 'BandNames': hint}, 'AllTilesStats': [{'Min': hint}]}
    for emd in (dict.fromkeys(keys, hint), inner):
        found = metadata(tmp_path, emd)
        assert found == ExportMetadata(None, (), None, None, None, None, found.band_count, 'MAP_SPACE', None)


def test_the_accumulated_statistics_may_be_absent(tmp_path):
    assert metadata(tmp_path, {'MetaDataMode': 'RCNN_Masks'}).metadata_mode == 'RCNN_Masks'


def test_the_accumulated_statistics_decide_the_mode(tmp_path):
    found = metadata(tmp_path, {'MetaDataMode': 'RCNN_Masks'}, {'MetaDataMode': 'Classified_Tiles'})
    assert found.metadata_mode == 'Classified_Tiles'


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / EMD_NAME).write_text(json.dumps({'MetaDataMode': 'Classified_Tiles'}), encoding='utf-8-sig')
    assert read_metadata(tmp_path).metadata_mode == 'Classified_Tiles'


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be'])
def test_text_of_windows_editors_is_read(tmp_path, encoding):
    text = json.dumps({'Classes': [{'Value': 1, 'Name': 'Forêt'}]}, ensure_ascii=False)
    (tmp_path / EMD_NAME).write_bytes(text.encode(encoding))
    assert [info.name for info in read_metadata(tmp_path).classes] == ['Forêt']
    (tmp_path / EMD_NAME).write_bytes(text.encode('latin-1'))
    with pytest.raises(ChipFolderError, match='neither UTF-8 nor UTF-16 text .*save it as UTF-8'):
        read_metadata(tmp_path)


def test_numbers_and_colors_that_are_texts_are_read(tmp_path):
    rows = [
        {'Value': '1', 'Name': 'a', 'Color': ['1', '2.0', '3']},
        {'Value': ' 2 ', 'Name': 'b', 'Color': '#0A0b0C'},
        {'Value': '3.0', 'Name': 'c', 'Color': '7, 8, 9'},
    ]
    assert classes(tmp_path, rows) == [(1, 'a', (1, 2, 3)), (2, 'b', (10, 11, 12)), (3, 'c', (7, 8, 9))]


@pytest.mark.parametrize(('space', 'turnable'), [('MAP_SPACE', True), ('PIXEL_SPACE', False), ('IMAGE_SPACE', False)])
def test_only_maps_may_be_turned(tmp_path, space, turnable):
    found = metadata(tmp_path, {'ImageSpaceUsed': space})
    assert (found.image_space, found.dihedral) == (space, turnable)


# --- classes


def test_both_spellings_of_value_and_name_are_read(tmp_path):
    rows = [{'Value': 1, 'Name': 'a', 'Color': [1, 2, 3]}, {'ClassValue': 2, 'ClassName': 'b', 'Color': [4, 5, 6]}]
    assert classes(tmp_path, rows) == [(1, 'a', (1, 2, 3)), (2, 'b', (4, 5, 6))]


@pytest.mark.parametrize(
    'color', [{'Color': [-1, -1, -1]}, {}, {'Color': []}, {'Color': 'red'}, {'Color': [300, 0, 0]}]
)
def test_a_class_without_a_colour_gets_one_of_its_own(tmp_path, color):
    (_, _, first), (_, _, second) = classes(tmp_path, [{'Value': v, 'Name': str(v), **color} for v in (1, 2)])
    assert first != second
    assert all(0 <= part <= 255 for part in first + second)


@pytest.mark.parametrize('name', [{}, {'Name': ''}, {'Name': None}])
def test_a_class_without_a_name_is_called_by_its_value(tmp_path, name):
    assert classes(tmp_path, [{'Value': 255, **name}])[0][1] == '255'


def test_whole_numbers_stored_as_floats_are_values(tmp_path):
    assert classes(tmp_path, [{'Value': 7.0, 'Name': 'x'}])[0][0] == 7


def test_two_classes_of_one_value_are_refused(tmp_path):
    with pytest.raises(ChipFolderError, match=rf'{EMD_NAME}: two classes have the value 3; values must differ'):
        classes(tmp_path, [{'Value': 3, 'Name': 'a'}, {'Value': 3, 'Name': 'b'}])


@pytest.mark.parametrize('value', [1.5, -1, 'x', '1.5', '-1', '', 'nan', '1_0', None, True, [1], math.nan, math.inf])
def test_a_class_without_a_whole_value_is_refused(tmp_path, value):
    with pytest.raises(ChipFolderError, match=r'class 0 has no whole, non-negative Value: .*name-of-it'):
        classes(tmp_path, [{'Value': value, 'Name': 'name-of-it'}])


def test_a_class_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(ChipFolderError, match=r"class 1 is 'x'; an object with Value and Name is needed"):
        classes(tmp_path, [{'Value': 1}, 'x'])


# --- bands and statistics


def test_empty_band_names_stay_empty(tmp_path, write_export):
    assert read_metadata(write_export(tmp_path / 'e', IMAGES, LABELS)).band_names == ('', '', '')


def test_bands_are_named_by_the_statistics_where_the_properties_name_none(tmp_path):
    assert metadata(tmp_path, {'AllTilesStats': [SOUND]}).band_names == ('Red',)


def test_what_geolearn_stored_is_read_back(tmp_path):
    found = metadata(tmp_path, {'geolearn': {'wavelengths_um': [0.665, None, 'x', 1]}})
    assert found.wavelengths_um == (0.665, None, None, 1)


def test_statistics_follow_from_the_running_state(tmp_path):
    state = {'Min': 0, 'Max': 251, 'Mean': 0, 'StdDev': 0, 'M1': 100.97194, 'M2': 434996178474.21, 'Num': 348413952}
    found = metadata(tmp_path, {}, {'BandStatsState': [state]}).statistics
    assert found.mean == (100.97194,)
    assert found.std == pytest.approx([math.sqrt(434996178474.21 / 348413952)])
    assert found.std[0] == pytest.approx(35.334, abs=1e-3)


@pytest.mark.parametrize('change', [{'StdDev': 0}, {'Mean': 300}, {'Min': 'e.g. 0'}, {'Max': None}, {'StdDev': 1e4}])
def test_statistics_that_cannot_be_true_are_left_out(tmp_path, change):
    assert metadata(tmp_path, {'AllTilesStats': [SOUND, SOUND | change]}).statistics is None


@pytest.mark.parametrize('change', [{'Num': 0}, {'Num': -5}, {'M2': -1}, {'M2': None}, {'Num': 1e-290, 'M2': 1e290}])
def test_a_running_state_that_cannot_be_true_is_left_out(tmp_path, change):
    state = {'Min': 0, 'Max': 251, 'M1': 100, 'M2': 1e6, 'Num': 1000} | change
    assert metadata(tmp_path, {}, {'BandStatsState': [state]}).statistics is None


def test_negative_pixel_counts_do_no_harm(tmp_path, write_export):
    counts = {'ClassPixelStats': {'NumClasses': 2, 'NumPixelsPerClass': [-2147483648, -5]}}
    folder = write_export(tmp_path / 'e', IMAGES, LABELS, stats=counts)
    assert [info.value for info in read_metadata(folder).classes] == [1, 2]


@pytest.mark.parametrize(('value', 'count'), [(3, 3), (3.0, 3), (-3, None), (0, None), ('e.g. 3', None), (2.5, None)])
def test_only_a_whole_positive_number_counts_bands(tmp_path, value, count):
    assert metadata(tmp_path, {}, {'NumBands': value}).band_count == count


# --- files that are no metadata


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe', b'[' * 100000, b'9' * 5000, b'{"a": 1}}'])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / EMD_NAME).write_bytes(content)
    with pytest.raises(ChipFolderError, match=rf'{EMD_NAME} is not valid JSON'):
        read_metadata(tmp_path)


@pytest.mark.parametrize(('content', 'kind'), [('[]', 'list'), ('3', 'int'), ('"a"', 'str'), ('null', 'NoneType')])
def test_json_that_is_no_object_is_named(tmp_path, content, kind):
    (tmp_path / EMD_NAME).write_text(content)
    with pytest.raises(ChipFolderError, match=rf'holds a {kind}; a JSON object is needed'):
        read_metadata(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ChipFolderError, match=rf'cannot read .*{EMD_NAME}: No such file'):
        read_metadata(tmp_path)


def test_metadata_larger_than_any_export_s_is_refused_unread(tmp_path):
    with (tmp_path / EMD_NAME).open('wb') as file:
        file.truncate(2**30)
    with pytest.raises(ChipFolderError, match='is 1073741824 bytes; metadata of an export is far smaller'):
        read_json(tmp_path / EMD_NAME)


# --- anything at any key

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 255, 65536, -1, 1e308, 2**63, 10**400])
WORDS = st.text('aé\x00\ud800 .0', max_size=4)  # few letters: the table of all of them takes seconds to make
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.sampled_from(['e.g. 3', 'Red', 'MAP_SPACE'])
INNER = st.sampled_from(
    'Value Name Color ClassValue ClassName BandName Min Max Mean StdDev M1 M2 Num BandNames SensorName x y '
    'wavelengths_um'.split()
)
ANYTHING = st.recursive(
    LEAVES,
    lambda child: st.lists(child, max_size=4) | st.dictionaries(INNER | WORDS, child, max_size=6),
    max_leaves=12,
)
EMD_KEYS = (
    'MetaDataMode ImageSpaceUsed MinCellSize Classes InputRastersProps AllTilesStats geolearn ImageHeight'.split()
)
STATS_KEYS = 'MetaDataMode NumBands Classes InputRastersProps BandStatsState ClassPixelStats'.split()
ROWS = st.lists(st.dictionaries(INNER, NUMBERS | LEAVES, max_size=6), max_size=3)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(EMD_KEYS), ANYTHING | ROWS, max_size=8),
    st.dictionaries(st.sampled_from(STATS_KEYS), ANYTHING | ROWS, max_size=6),
)
def test_anything_at_any_key_is_metadata_or_a_chip_folder_error(emd, stats):
    with TemporaryDirectory() as folder:
        try:
            found = metadata(Path(folder), emd, stats)
        except ChipFolderError as error:
            found = error
    if isinstance(found, ChipFolderError):
        assert EMD_NAME in str(found) or STATS_NAME in str(found)
        return
    assert isinstance(found, ExportMetadata)
    assert found.statistics is None or found.statistics.is_sound()
    assert all(info.value >= 0 and isinstance(info.name, str) for info in found.classes)
    assert found.band_count is None or found.band_count > 0
