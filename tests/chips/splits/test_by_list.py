import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.splits.divide import split_list
from geolearn.chips.splits.split import Split
from geolearn.errors import ChipFolderError, UnknownNameError

NAMES = [f'forest/{i:03d}' for i in range(6)]


def test_chips_go_where_the_lists_say_and_others_are_dropped():
    given = {'train': NAMES[:2], 'valid': [NAMES[4]], 'test': [NAMES[3]]}
    assert split_list(NAMES, given) == Split((0, 1), (4,), (3,), (2, 5))


def test_without_a_list_to_train_on_all_others_are():
    assert split_list(NAMES, {'val': ['forest/001.tif', 'forest\\002']}) == Split((0, 3, 4, 5), (1, 2))


def test_lists_are_read_from_text_files(tmp_path):
    (tmp_path / 'val ü.txt').write_text('\ufeffforest/001\r\n\r\n  forest/002.tif \r\n', encoding='utf-8')
    assert split_list(NAMES, {'valid': tmp_path / 'val ü.txt'}).valid == (1, 2)


@pytest.mark.parametrize('divider', [',', ';', '\t'])
@pytest.mark.parametrize('heading', ['', 'name{0}split\n'])
def test_one_table_may_tell_every_part(tmp_path, divider, heading):
    rows = f'forest/000{divider}train\n"forest/001"{divider}Validation\n\nforest/005{divider} test\n'
    (tmp_path / 'parts.csv').write_text(heading.format(divider) + rows)
    assert split_list(NAMES, tmp_path / 'parts.csv') == Split((0,), (1,), (5,), (2, 3, 4))


def test_names_that_no_chip_bears_are_told_a_few_of_them():
    words = (
        r"the list for 'valid' names 'x0', 'x1', 'x2', 'x3', 'x4' and 1,995 more, which no chip bears; "
        "names look like 'forest/000', 'forest/001'"
    )
    with pytest.raises(ChipFolderError, match=words):
        split_list(NAMES, {'valid': [f'x{i}' for i in range(2000)]})


def test_a_chip_in_two_parts_is_refused():
    with pytest.raises(ChipFolderError, match="'forest/001' in both 'train' and 'valid'; name each chip in one part"):
        split_list(NAMES, {'train': NAMES[:2], 'valid': ['forest/001.tif']})


def test_parts_that_are_missing_or_unknown_are_refused():
    with pytest.raises(ChipFolderError, match="the lists name no chip for 'valid'; at least 1 is needed"):
        split_list(NAMES, {'train': NAMES})
    with pytest.raises(ChipFolderError, match="the lists name no chip for 'train'"):
        split_list(NAMES, {'valid': NAMES})
    with pytest.raises(UnknownNameError, match="unknown part 'vaild'; did you mean 'valid'"):
        split_list(NAMES, {'vaild': NAMES})


def test_files_that_are_no_lists_are_named(tmp_path):
    file = tmp_path / 'parts.csv'
    with pytest.raises(ChipFolderError, match=r'cannot read the list of chips .*parts\.csv'):
        split_list(NAMES, file)
    for content, words in (
        (b'\xff\xfe\x00', 'cannot read the list of chips'),
        (b'forest/000\n', r'line 1 of .*parts\.csv has 1 columns; 2 are needed, name and part'),
        (b'a,train\nforest/001,other\n', r"line 2 of .*parts\.csv names the part 'other'"),
        (b'a,b\n"' + b'x' * 200_000, r'parts\.csv is no CSV file'),
    ):
        file.write_bytes(content)
        with pytest.raises(ChipFolderError, match=words):
            split_list(NAMES, file)


@settings(max_examples=60)
@given(st.binary(max_size=60) | st.text(',;\t\n\r"tesrainvald/0', max_size=60).map(str.encode))
def test_any_file_is_a_split_or_a_chip_folder_error(tmp_path_factory, content):
    file = tmp_path_factory.mktemp('lists') / 'parts.csv'
    file.write_bytes(content)
    for given_as in (file, {'valid': file}):
        with contextlib.suppress(ChipFolderError):
            assert isinstance(split_list(NAMES, given_as), Split)
