"""A small plain transformer for any bands, without published weights: to be pretrained on imagery of one's own."""

from geolearn.backbones import backbone, building, catalog
from geolearn.backbones.trunk import ViT
from geolearn.bands import Band


@building.register_family('plain_vit')
def build_plain_vit(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build the transformer; weights can only be a file of one's own.

    Raises:
        WeightsError: If pretrained weights are asked for: there are none.
    """
    record = catalog.get_record(name)
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options)
    trunk = ViT(config, building.PatchEmbed(len(bands), record.dim, record.patch), record.patch)
    report = None if checkpoint is None else building.load_checkpoint(trunk, checkpoint, options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
