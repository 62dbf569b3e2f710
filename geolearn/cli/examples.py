"""Command lines that `--help` shows."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    'export-chips': (
        'geolearn export-chips scene.tif chips --labels landuse.gpkg --class-field use',
        'geolearn export-chips drone.tif houses --labels buildings.geojson --format RCNN_Masks --tile-size 512',
        'geolearn export-chips B02.tif B03.tif B04.tif B08.tif chips --labels classes.tif --sensor Sentinel-2',
    ),
    'train': (
        'geolearn train chips landcover --model UNet --backbone resnet34 --epochs 20',
        'geolearn train chips landcover.dlpk --backbone dofa_base --lora-rank 8 --split blocks --block-size 2000',
        'geolearn train houses trees --model MaskRCNN --report trees.html',
        'geolearn train landcover.yaml --epochs 50',
    ),
    'compare': ('geolearn compare chips best --models UNet UPerNet --backbones resnet34 dofa_base --time-limit 60',),
    'pretrain': (
        'geolearn pretrain scenes/*.tif --method mae --backbone vit_small --epochs 100',
        'geolearn pretrain radar.tif --sensor Sentinel-1 --scale db --backbone vit_nano --figure losses.png',
    ),
    'evaluate': (
        'geolearn evaluate landcover.dlpk chips',
        'geolearn evaluate landcover.dlpk test_chips --all --json',
    ),
    'report': ('geolearn report landcover.dlpk chips landcover.html',),
    'show': (
        'geolearn show chips batch.png',
        'geolearn show chips results.png --model landcover.dlpk',
        'geolearn show map.tif map.html --image scene.tif',
    ),
    'predict': (
        'geolearn predict landcover.dlpk scene.tif map.tif --outputs classes,confidence',
        'geolearn predict landcover.dlpk S2B_MSIL2A_20220601T100559.SAFE map.tif --scale 1 --offset -1000 --resume',
        'geolearn predict landcover.dlpk scenes maps --each',
        'geolearn predict parcels.dlpk scene.tif named.gpkg --polygons parcels.gpkg',
    ),
    'detect': (
        'geolearn detect trees.dlpk aerial.tif trees.gpkg --threshold 0.4',
        'geolearn detect houses.dlpk aerial.tif houses.gpkg --outline orthogonal --aoi town.geojson',
    ),
    'lines': ('geolearn lines roads.dlpk scene.tif roads.gpkg --bridge 30',),
    'embed': ('geolearn embed scene.tif embeddings.tif --backbone dofa_base --sensor Sentinel-2',),
    'vectorize': ('geolearn vectorize map.tif polygons.gpkg',),
    'probe': ('geolearn probe chips --backbone dofa_base',),
    'benchmark': ('geolearn benchmark burn_scars.yaml --out burn_scars', 'geolearn benchmark grid.yaml --part 3/8'),
    'study': ('geolearn study bigearthnet BigEarthNet-S1',),
    'serve': ('geolearn serve landcover.dlpk --allow scenes',),
    'weights': ("geolearn weights list '*dofa*'", 'geolearn weights download dofa_base'),
    'info': ('geolearn info chips', 'geolearn info landcover.dlpk', 'geolearn info scene.tif'),
    'demo': ('geolearn demo --out demo_output',),
}
"""Some of each command; every one parses, which a test checks."""


def show_examples(command: str) -> str | None:
    """Return the end of a command's help, None where it has no examples."""
    lines = EXAMPLES.get(command, ())
    return 'examples:\n' + '\n'.join(f'  {line}' for line in lines) if lines else None
