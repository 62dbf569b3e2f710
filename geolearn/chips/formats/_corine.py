"""Classes of BigEarthNet: CORINE Land Cover level 3, and the 19 classes that are made of it.

Sources: the European Environment Agency's CORINE Land Cover nomenclature; Sumbul et al. 2021, BigEarthNet-MM (IEEE
Geoscience and Remote Sensing Magazine 9(3)), for the 19 classes and what becomes of the 43.
"""

from geolearn.classes import ClassInfo, default_color

_LEVEL_3 = """
111 Continuous urban fabric
112 Discontinuous urban fabric
121 Industrial or commercial units
122 Road and rail networks and associated land
123 Port areas
124 Airports
131 Mineral extraction sites
132 Dump sites
133 Construction sites
141 Green urban areas
142 Sport and leisure facilities
211 Non-irrigated arable land
212 Permanently irrigated land
213 Rice fields
221 Vineyards
222 Fruit trees and berry plantations
223 Olive groves
231 Pastures
241 Annual crops associated with permanent crops
242 Complex cultivation patterns
243 Land principally occupied by agriculture, with significant areas of natural vegetation
244 Agro-forestry areas
311 Broad-leaved forest
312 Coniferous forest
313 Mixed forest
321 Natural grassland
322 Moors and heathland
323 Sclerophyllous vegetation
324 Transitional woodland/shrub
331 Beaches, dunes, sands
332 Bare rock
333 Sparsely vegetated areas
334 Burnt areas
335 Glaciers and perpetual snow
411 Inland marshes
412 Peatbogs
421 Salt marshes
422 Salines
423 Intertidal flats
511 Water courses
512 Water bodies
521 Coastal lagoons
522 Estuaries
523 Sea and ocean
"""

_NINETEEN: dict[str, tuple[int, ...]] = {
    'Urban fabric': (111, 112),
    'Industrial or commercial units': (121,),
    'Arable land': (211, 212, 213),
    'Permanent crops': (221, 222, 223, 241),
    'Pastures': (231,),
    'Complex cultivation patterns': (242,),
    'Land principally occupied by agriculture, with significant areas of natural vegetation': (243,),
    'Agro-forestry areas': (244,),
    'Broad-leaved forest': (311,),
    'Coniferous forest': (312,),
    'Mixed forest': (313,),
    'Natural grassland and sparsely vegetated areas': (321, 333),
    'Moors, heathland and sclerophyllous vegetation': (322, 323),
    'Transitional woodland, shrub': (324,),
    'Beaches, dunes, sands': (331,),
    'Inland wetlands': (411, 412),
    'Coastal wetlands': (421, 422),
    'Inland waters': (511, 512),
    'Marine waters': (521, 522, 523),
}

_ROWS = [line.split(maxsplit=1) for line in _LEVEL_3.strip().splitlines()]

CORINE = tuple(ClassInfo(int(code), name, default_color(position)) for position, (code, name) in enumerate(_ROWS))
"""The 44 classes of level 3; values are CORINE's codes."""

CLASSES_43 = tuple(info for info in CORINE if info.value != 335)
"""What patches of BigEarthNet v1 are labelled with: no glacier lies in the ten countries."""

CLASSES_19 = tuple(ClassInfo(value, name, default_color(value - 1)) for value, name in enumerate(_NINETEEN, 1))
"""The classes of BigEarthNet-MM and v2, in their published order."""

VALUE_43 = {info.name: info.value for info in CLASSES_43}
"""CORINE code of each of the 43 names."""

_VALUE_OF_CODE = {code: value for value, codes in enumerate(_NINETEEN.values(), 1) for code in codes}

VALUE_19: dict[str, int | None] = {name: _VALUE_OF_CODE.get(code) for name, code in VALUE_43.items()} | {
    info.name: info.value for info in CLASSES_19
}
"""Value among the 19 classes of each of the 43 names and of the 19 themselves; None for the 11 that were dropped."""
