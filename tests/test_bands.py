import math
from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from geolearn.bands import (
    Band,
    _normalise,
    find_sensor,
    get_bands,
    is_placeholder,
    list_sensors,
    match_bands,
    parse_wavelengths,
    require_wavelengths,
    resolve_bands,
    rgb_indexes,
)
from geolearn.errors import BandError, UnknownNameError

FIXED = [s for s in list_sensors() if s != 'enmap']
RECORDS = yaml.safe_load(files('geolearn').joinpath('sensors.yaml').read_text(encoding='utf-8'))


def wavelengths(names, **sources):
    return [b.wavelength_um for b in resolve_bands(names, **sources)]


# Band


@pytest.mark.parametrize('value', [665, 0.29, 15.01, 0, -1, math.nan, math.inf])
def test_a_band_refuses_a_wavelength_that_cannot_be_micrometers(value):
    with pytest.raises(
        ValueError, match=r"of band 'red' must lie in 0\.3\.\.15 micrometers, got .*; divide nanometers by"
    ):
        Band('red', value)


def test_a_band_may_have_no_wavelength():
    assert Band('elevation').wavelength_um is None


# The tables


def test_all_sensors_of_the_contract_are_there():
    optical = {'sentinel2_l1c', 'sentinel2_l2a', 'landsat5', 'landsat7', 'landsat8', 'hls_l30', 'hls_s30', 'modis'}
    commercial = {'planetscope_4band', 'planetscope_8band', 'worldview2', 'worldview3', 'pleiades', 'pleiades_neo'}
    others = {'sentinel1', 'naip', 'gaofen1', 'gaofen2', 'gaofen6', 'enmap'}
    assert set(list_sensors()) == optical | commercial | others


@pytest.mark.parametrize('sensor', FIXED)
def test_every_sensor_has_unique_bands_each_with_a_wavelength_unless_radar(sensor):
    bands = get_bands(sensor)
    common = [b.common_name for b in bands if b.common_name]
    assert bands
    assert len({_normalise(b.name) for b in bands}) == len(bands)
    assert len(set(common)) == len(common)
    assert all((b.wavelength_um is None) == b.is_radar for b in bands)


@pytest.mark.parametrize('sensor', FIXED)
def test_every_band_is_found_by_its_own_name_and_common_name(sensor):
    for band in get_bands(sensor):
        assert get_bands(sensor, [band.name]) == (band,)
        if band.common_name:
            found = get_bands(sensor, [band.common_name.upper()])[0]
            assert (found.common_name, found.wavelength_um) == (band.common_name, band.wavelength_um)


def test_no_spelling_is_claimed_twice():
    for record in RECORDS['sensors']:
        own = [_normalise(n) for row in record['bands'] for n in {row['id'], *row.get('aliases', [])}]
        assert len(set(own)) == len(own), record['key']
    spellings = [{_normalise(n) for n in [r['key'], r['title'], *r['aliases']]} for r in RECORDS['sensors']]
    assert len(set().union(*spellings)) == sum(map(len, spellings))
    generic = [_normalise(n) for row in RECORDS['names'] for n in row['names']]
    assert len(set(generic)) == len(generic)
    assert not set(generic) & {_normalise(n) for n in RECORDS['ambiguous']}


def test_sentinel2_has_the_wavelengths_that_dofa_was_trained_with():
    l1c = [0.443, 0.490, 0.560, 0.665, 0.705, 0.740, 0.783, 0.842, 0.865, 0.945, 1.375, 1.610, 2.190]
    assert [b.wavelength_um for b in get_bands('sentinel2_l1c')] == l1c
    assert [b.name for b in get_bands('sentinel2_l2a')] == [
        b.name for b in get_bands('sentinel2_l1c') if b.name != 'B10'
    ]


def test_get_bands_keeps_the_order_and_spelling_asked_for():
    bands = get_bands('sentinel2_l2a', ['Red', 'B2', 'B03'])
    assert [b.name for b in bands] == ['Red', 'B2', 'B03']
    assert [b.wavelength_um for b in bands] == [0.665, 0.49, 0.56]


def test_unknown_sensors_and_bands_are_refused_with_a_hint():
    with pytest.raises(UnknownNameError, match=r"unknown sensor 'sentinel3'; did you mean 'sentinel1'"):
        get_bands('sentinel3')
    with pytest.raises(UnknownNameError, match=r"unknown landsat8 band 'B12'; "):
        get_bands('landsat8', ['B4', 'B12'])
    with pytest.raises(BandError, match=r'enmap has no fixed bands; read them from the file or pass wavelengths='):
        get_bands('enmap')


# Sensor names


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('Sentinel-2', 'sentinel2_l2a'),
        ('Sentinel-2 MSI', 'sentinel2_l2a'),
        ('sentinel2', 'sentinel2_l2a'),
        ('S2A', 'sentinel2_l2a'),
        ('Sentinel-2 L1C', 'sentinel2_l1c'),
        ('Sentinel-2 (L1C)', 'sentinel2_l1c'),
        ('Sentinel-1A', 'sentinel1'),
        ('Landsat 8', 'landsat8'),
        ('LANDSAT_8', 'landsat8'),
        ('Landsat 9', 'landsat8'),
        ('Landsat 7 ETM+', 'landsat7'),
        ('Landsat 5', 'landsat5'),
        ('LC08', 'landsat8'),
        ('HLSL30', 'hls_l30'),
        ('HLS S30', 'hls_s30'),
        ('NAIP', 'naip'),
        ('WorldView-3', 'worldview3'),
        ('WV02', 'worldview2'),
        ('Pleiades', 'pleiades'),
        ('Pléiades Neo', 'pleiades_neo'),
        ('GF-2', 'gaofen2'),
        ('SuperDove', 'planetscope_8band'),
        ('EnMAP', 'enmap'),
        ('MODIS', 'modis'),
        ('PlanetScope', None),
        ('Undefined', None),
        ('MultiSpectral', None),
        ('', None),
        (None, None),
    ],
)
def test_sensor_names_as_people_and_arcgis_spell_them(name, key):
    assert find_sensor(name) == key


@pytest.mark.parametrize('key', list_sensors())
def test_every_key_finds_itself(key):
    assert find_sensor(key) == key


# Band names with a sensor

SENTINEL2 = {
    0.443: ['B01', 'B1', 'CoastalAerosol', 'Coastal', 'coastal', 'Aerosol'],
    0.490: ['B02', 'Blue', 'blue', 'B'],
    0.665: ['B04', 'B4', 'b4', 'Band 4', 'band_04', 'Red', 'red', 'S2_B4', 'SR_B4', 'B4_Red', 'B4, central 665 nm'],
    0.705: ['B5', 'VegetationRedEdge_1', 'RedEdge1', 'RedEdge_1', 'rededge071'],
    0.740: ['B6', 'VegetationRedEdge_2', 'RedEdge2', 'RedEdge_2'],
    0.783: ['B7', 'VegetationRedEdge_3', 'RedEdge3', 'RedEdge_3'],
    0.842: ['B8', 'B08', 'NearInfrared', 'NearInfrared_1', 'NIR', 'nir'],
    0.865: ['B8A', 'b8a', 'Band 8A', 'NarrowNIR', 'NarrowNearInfrared', 'NearInfrared_2', 'nir08'],
    0.945: ['B9', 'B09', 'WaterVapor', 'WaterVapour', 'nir09'],
    1.610: ['B11', 'SWIR_1', 'SWIR1', 'ShortWaveInfrared_1', 'MidInfrared_1', 'swir16'],
    2.190: ['B12', 'SWIR_2', 'SWIR2', 'ShortWaveInfrared_2', 'MidInfrared_2', 'swir22'],
}
LANDSAT8 = {
    0.443: ['B1', 'SR_B1', 'CoastalAerosol', 'Coastal', 'UltraBlue'],
    0.482: ['B2', 'B02', 'SR_B2', 'Blue'],
    0.561: ['B3', 'Green'],
    0.655: ['B4', 'B04', 'b4', 'Band 4', 'Red', 'red', 'SR_B4', 'sr_b4'],
    0.865: ['B5', 'NearInfrared', 'NearInfrared_1', 'NIR', 'NarrowNIR', 'nir08', 'nir'],
    1.609: ['B6', 'SWIR', 'ShortWaveInfrared', 'SWIR_1', 'SWIR1', 'ShortWaveInfrared_1', 'MidInfrared_1'],
    2.201: ['B7', 'SWIR_2', 'ShortWaveInfrared_2'],
    0.590: ['B8', 'Panchromatic', 'Pan', 'pan'],
    1.373: ['B9', 'Cirrus', 'cirrus'],
    10.895: ['B10', 'ST_B10', 'Thermal_1', 'TIR_1', 'ThermalInfrared_1', 'lwir11'],
    12.005: ['B11', 'Thermal_2', 'TIR_2', 'ThermalInfrared_2', 'lwir12'],
}


@pytest.mark.parametrize(
    ('sensor', 'name', 'expected'),
    [('Sentinel-2', n, w) for w, names in SENTINEL2.items() for n in names]
    + [('Landsat 8', n, w) for w, names in LANDSAT8.items() for n in names]
    + [
        ('sentinel2_l1c', 'Cirrus', 1.375),
        ('Landsat 5', 'MidInfrared', 1.65),
        ('Landsat 5', 'Thermal', 11.45),
        ('Landsat 5', 'Thermal_1', 11.45),
        ('Landsat 5', 'NIR', 0.83),
        ('Landsat 7', 'Pan', 0.71),
        ('hls_l30', 'B05', 0.865),
        ('hls_s30', 'B8A', 0.865),
        ('modis', 'sur_refl_b02', 0.8585),
        ('NAIP', 'Infrared', 0.845),
        ('NAIP', 'N', 0.845),
        ('SuperDove', 'green_i', 0.531),
        ('SuperDove', 'Green', 0.565),
        ('WorldView-2', 'NearInfrared_2', 0.95),
        ('WorldView-2', 'NIR_1', 0.8325),
        ('WorldView-3', 'SWIR_1', 1.21),
        ('WorldView-3', 'SWIR8', 2.33),
        ('Pleiades Neo', 'Deep Blue', 0.425),
        ('GF6 WFV', 'B5', 0.71),
    ],
)
def test_every_spelling_people_use_finds_the_band_of_its_sensor(sensor, name, expected):
    (band,) = resolve_bands([name], sensor=sensor)
    assert (band.name, band.wavelength_um) == (name, expected)


def test_plain_swir_is_never_guessed_where_the_sensor_has_several():
    assert wavelengths(['SWIR', 'ShortWaveInfrared', 'VegetationRedEdge'], sensor='Sentinel-2') == [None] * 3


def test_default_names_count_positions_and_are_not_band_numbers():
    assert wavelengths(['Band_1', 'Band_2', 'Band_3', 'Band_4'], sensor='Landsat 8') == [None] * 4
    assert wavelengths(['Band_1', 'Band_2', 'Band_3', 'Band_4'], sensor='Sentinel-2') == [None] * 4


def test_a_lone_band_1_is_the_first_of_its_file_and_not_the_sensors_first():
    assert wavelengths(['Band 1'], sensor='Sentinel-2') == [None]
    assert get_bands('sentinel2_l2a', ['Band 1'])[0].common_name == 'coastal'


def test_default_names_resolve_where_the_file_holds_all_bands_of_the_sensor():
    names = [f'Band_{i}' for i in range(1, 14)]
    assert wavelengths(names, sensor='sentinel2_l1c') == [b.wavelength_um for b in get_bands('sentinel2_l1c')]
    assert wavelengths(names[:4], sensor='NAIP') == [0.635, 0.555, 0.465, 0.845]
    assert wavelengths(names[:4], sensor='Gaofen-2') == [0.485, 0.555, 0.66, 0.83]


def test_two_names_that_claim_one_band_are_both_left_unresolved():
    assert wavelengths(['NIR', 'NearInfrared_1', 'Red'], sensor='Landsat 8') == [None, None, 0.655]


def test_bands_of_two_dates_may_share_a_name():
    assert wavelengths(['Red', 'Green', 'Red', 'Green']) == [0.665, 0.56, 0.665, 0.56]


# Band names without a sensor

GENERIC = {
    0.443: ['CoastalAerosol', 'CoastalBlue', 'Coastal'],
    0.490: ['Blue', 'blue', 'B'],
    0.560: ['Green', 'G'],
    0.585: ['Yellow'],
    0.592: ['Panchromatic', 'Pan'],
    0.665: ['Red', 'red', 'sr_red', 'R'],
    0.705: ['RedEdge', 'RedEdge_1', 'VegetationRedEdge_1'],
    0.740: ['VegetationRedEdge_2'],
    0.783: ['VegetationRedEdge_3'],
    0.865: ['Infrared', 'NearInfrared', 'NIR', 'NearInfrared_2', 'NIR_2', 'NarrowNIR'],
    0.842: ['NearInfrared_1', 'NIR_1'],
    0.945: ['WaterVapor'],
    1.375: ['Cirrus'],
    1.610: ['ShortWaveInfrared_1', 'SWIR_1', 'MidInfrared', 'MIR', 'MidInfrared_1', 'MIR_1'],
    2.190: ['ShortWaveInfrared_2', 'SWIR_2', 'MidInfrared_2', 'MIR_2'],
    11.450: ['ThermalInfrared', 'Thermal', 'TIR'],
    10.895: ['ThermalInfrared_1', 'Thermal_1', 'TIR_1'],
    12.005: ['ThermalInfrared_2', 'Thermal_2', 'TIR_2'],
}


@pytest.mark.parametrize(('name', 'expected'), [(n, w) for w, names in GENERIC.items() for n in names])
@pytest.mark.parametrize('sensor', [None, 'MultiSpectral', 'Undefined', 'EnMAP'])
def test_colour_names_resolve_without_a_sensor(name, expected, sensor):
    assert wavelengths([name], sensor=sensor) == [expected]


@pytest.mark.parametrize(
    'name', ['Band_1', 'Band 1', 'B4', 'B04', 'SWIR', 'ShortWaveInfrared', 'QA', 'PseudoRed', 'DEM', 'Alpha', 'Gray']
)
def test_names_that_fix_no_wavelength_stay_unresolved(name):
    assert resolve_bands([name]) == (Band(name),)


def test_empty_names_get_numbered_and_stay_unresolved():
    assert resolve_bands(['', 'Red', ' ']) == (Band('band_1'), Band('Red', 0.665, 'red'), Band('band_3'))
    assert resolve_bands(['', '', '', ''], sensor='NAIP') == tuple(Band(f'band_{i}') for i in range(1, 5))
    assert resolve_bands([]) == ()


@pytest.mark.parametrize('name', ['VV', 'vh', 'HH', 'Hv', 'Sigma0_VV_dB'])
def test_radar_is_known_by_name_and_never_gets_a_wavelength(name):
    (band,) = resolve_bands([name], wavelengths=[None], stored_wavelengths_um=[3.75])
    assert band.is_radar
    assert band.wavelength_um is None
    assert band.common_name in {'vv', 'vh', 'hh', 'hv'}


# Where wavelengths come from


def test_explicit_beats_stored_beats_tags_beats_sensor_beats_name():
    names, sources = ['Red', 'odd'], {}
    assert wavelengths(names) == [0.665, None]
    assert wavelengths(names, sensor='Landsat 8') == [0.655, None]
    sources['tag_wavelengths_um'] = [0.66, None]
    assert wavelengths(names, sensor='Landsat 8', **sources) == [0.66, None]
    sources['stored_wavelengths_um'] = [None, 0.7]
    assert wavelengths(names, sensor='Landsat 8', **sources) == [0.66, 0.7]
    assert wavelengths(names, sensor='Landsat 8', wavelengths=[0.64, 0.71], **sources) == [0.64, 0.71]


def test_a_wavelength_that_contradicts_the_name_takes_the_common_name_away():
    bands = resolve_bands(['Red', 'Green', 'Blue'], wavelengths=[0.842, 0.655, 0.56])
    assert [b.common_name for b in bands] == [None, None, None]
    assert resolve_bands(['Red'], wavelengths=[0.64])[0].common_name == 'red'


def test_radar_needs_no_place_filled_in_explicit_wavelengths():
    assert wavelengths(['VV', 'Red'], wavelengths=[None, 0.66]) == [None, 0.66]
    assert wavelengths(['VV', 'Red'], wavelengths=[3.75, 0.66]) == [None, 0.66]
    with pytest.raises(BandError, match='needed a number of micrometers for every optical band'):
        resolve_bands(['Green', 'Red'], wavelengths=[None, 0.66])


@pytest.mark.parametrize('source', ['wavelengths', 'stored_wavelengths_um', 'tag_wavelengths_um'])
def test_a_list_of_wavelengths_must_have_one_per_band(source):
    with pytest.raises(BandError, match=r'found 1 .*wavelengths, needed 2; give one per selected band, in band order'):
        resolve_bands(['Red', 'Green'], **{source: [0.6]})


def test_a_tag_in_nanometers_is_refused():
    with pytest.raises(BandError, match="band 'x' must lie in"):
        resolve_bands(['x'], tag_wavelengths_um=[665.0])


# parse_wavelengths


@given(st.lists(st.floats(0.3, 15), max_size=12))
def test_micrometers_pass_unchanged(values):
    assert parse_wavelengths(values, len(values)) == tuple(values)


@given(st.lists(st.integers(300, 15000), min_size=1, max_size=12))
def test_nanometers_become_the_same_micrometers_with_a_warning(values):
    with pytest.warns(UserWarning, match='all exceed 100, so they are read as nanometers'):
        found = parse_wavelengths(values, len(values))
    assert found == parse_wavelengths([float(f'{v}e-3') for v in values], len(values))
    assert [round(v * 1000) for v in found] == values


@given(st.lists(st.floats(0.3, 15), min_size=1), st.lists(st.floats(300, 15000), min_size=1), st.randoms())
def test_a_mix_of_units_is_refused(um, nm, random):
    mixed = um + nm
    random.shuffle(mixed)
    with pytest.raises(BandError, match='a mix of nanometers and micrometers; give all in micrometers'):
        parse_wavelengths(mixed, len(mixed))


@pytest.mark.parametrize('value', [0, -0.5, 0.29, 15.1, 60, 100])
def test_impossible_wavelengths_are_refused(value):
    with pytest.raises(BandError, match=r'needed values in 0\.3\.\.15 micrometers; divide nanometers by 1000'):
        parse_wavelengths([value], 1)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_wavelength_must_be_a_finite_number(value):
    with pytest.raises(BandError, match='needed a number of micrometers'):
        parse_wavelengths([0.5, value], 2)


def test_nanometers_out_of_range_are_refused_too():
    with (
        pytest.warns(UserWarning, match='nanometers'),
        pytest.raises(BandError, match=r'found wavelengths \[0\.2, 0\.665\]'),
    ):
        parse_wavelengths([200, 665], 2)


# require_wavelengths


def test_resolved_and_radar_bands_satisfy_a_network_that_needs_wavelengths():
    assert require_wavelengths(resolve_bands(['VV', 'Red']), 'dofa_base') is None


def test_the_error_names_each_unresolved_band_and_shows_the_line_to_paste():
    bands = resolve_bands(['', 'Green', 'VV', 'odd'])
    with pytest.raises(BandError) as caught:
        require_wavelengths(bands, 'dofa_base')
    assert str(caught.value) == (
        "dofa_base needs a wavelength for every band; unresolved: 'band_1', 'odd'. Pass wavelengths= with a number of "
        "micrometers for each band in this order: 'band_1', 'Green' (0.56), 'VV' (None), 'odd'; for example "
        'wavelengths=[0.665, 0.56, 0.49] for red, green, blue, None for radar. Or prepare the data with bands= and '
        "names that tell, such as 'red'"
    )


def test_the_error_says_why_plain_swir_is_not_guessed():
    with pytest.raises(BandError, match=r"'SWIR' may be the band at 1\.375, 1\.61 or 2\.19; rename it Cirrus, SWIR_1"):
        require_wavelengths(resolve_bands(['Red', 'SWIR']), 'dofa_base')


# match_bands


@pytest.mark.parametrize('sensor', FIXED)
@given(random=st.randoms())
def test_any_permutation_of_a_sensors_bands_is_matched_back_exactly(sensor, random):
    wanted = list(get_bands(sensor))
    available = random.sample(wanted, len(wanted))
    assert [available[i] for i in match_bands(available, wanted)] == wanted


@given(random=st.randoms(), count=st.integers(1, 12))
def test_names_without_common_names_are_matched_too(random, count):
    wanted = [Band(f'B{i:02}') for i in range(count)]
    available = random.sample([Band(f'b{i}') for i in range(12)], 12)
    assert [_normalise(available[i].name) for i in match_bands(available, wanted)] == [f'b{i}' for i in range(count)]


def test_sensors_are_matched_by_what_bands_are_and_not_by_their_numbers():
    landsat, wanted = get_bands('landsat8'), get_bands('sentinel2_l2a', ['B4', 'B3', 'B2', 'B11', 'B12'])
    assert [landsat[i].name for i in match_bands(landsat, wanted)] == ['B4', 'B3', 'B2', 'B6', 'B7']
    with pytest.raises(BandError, match=r"no bands fit 'B5'; found .*'B5' \(nir08\).*; needed 'B5' \(rededge071\)"):
        match_bands(landsat, get_bands('sentinel2_l2a', ['B5']))


def test_equal_names_at_far_wavelengths_do_not_match():
    with pytest.raises(BandError, match="no bands fit 'SWIR1'"):
        match_bands(get_bands('landsat8', ['SWIR1']), get_bands('worldview3', ['SWIR1']))


def test_near_infrared_is_served_by_its_twin_only_where_the_exact_band_is_absent():
    b8, b8a = get_bands('sentinel2_l2a', ['B8']), get_bands('sentinel2_l2a', ['B8A'])
    landsat = get_bands('landsat8', ['Red', 'B5'])
    assert match_bands(landsat, b8) == [1]
    assert match_bands(landsat, b8a) == [1]
    assert match_bands(get_bands('naip'), b8a) == [3]
    assert match_bands(b8a + b8, b8) == [1]
    with pytest.raises(BandError, match="no bands fit 'B8'"):
        match_bands(landsat, b8 + b8a)


def test_a_missing_band_is_refused_with_both_lists():
    with pytest.raises(BandError) as caught:
        match_bands(resolve_bands(['Red', '']), resolve_bands(['Red', 'NIR']))
    assert str(caught.value) == (
        "no bands fit 'NIR'; found 'Red' (red), 'band_2' (unknown); needed 'Red' (red), 'NIR' (nir); "
        'name the bands, or choose and order them yourself'
    )
    with pytest.raises(BandError, match='found no bands'):
        match_bands([], resolve_bands(['Red']))


def test_two_bands_that_fit_are_refused():
    with pytest.raises(BandError, match="2 bands fit 'Red'"):
        match_bands(resolve_bands(['Red', 'Red']), resolve_bands(['Red']))


def test_of_two_bands_of_one_kind_the_name_decides():
    available = (Band('Red_2019', 0.665, 'red'), Band('Red_2020', 0.665, 'red'))
    assert match_bands(available, [Band('red 2020', 0.665, 'red')]) == [1]


def test_radar_and_optical_bands_never_match():
    with pytest.raises(BandError, match="no bands fit 'VV'"):
        match_bands([Band('VV', 0.5)], get_bands('sentinel1', ['VV']))


# is_placeholder and rgb_indexes


@pytest.mark.parametrize(
    'name', ['', ' ', 'Band 1', 'Band_2', 'band_3', 'band', 'Layer 4', 'layer_1', 'Channel 2', '7', 'Gray', 'Undefined']
)
def test_words_that_say_nothing_are_placeholders(name):
    assert is_placeholder(name)


@pytest.mark.parametrize('name', ['B1', 'B04', 'Red', 'VV', 'Band 1 (Red)', 'NIR_1', 'Band 8A', 'Bands'])
def test_words_that_say_something_are_no_placeholders(name):
    assert not is_placeholder(name)


@pytest.mark.parametrize(
    ('bands', 'expected'),
    [
        (get_bands('sentinel2_l2a'), (3, 2, 1)),
        (get_bands('naip'), (0, 1, 2)),
        (get_bands('modis'), (0, 3, 2)),
        (resolve_bands([''] * 4, wavelengths=[0.47, 0.55, 0.65, 0.85]), (2, 1, 0)),
        (resolve_bands(['NIR', 'Red', 'Green']), (0, 1, 2)),
        (resolve_bands([''] * 5), (0, 1, 2)),
        (get_bands('sentinel1', ['VV', 'VH']), (0, 0, 0)),
        (resolve_bands(['Gray']), (0, 0, 0)),
        ((), (0, 0, 0)),
    ],
)
def test_the_bands_to_show_are_red_green_blue_where_known_else_the_first_three(bands, expected):
    assert rgb_indexes(bands) == expected
