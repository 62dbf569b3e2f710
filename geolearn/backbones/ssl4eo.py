"""SSL4EO-S12: small vision transformers pretrained on Sentinel-2 (or Sentinel-1) by DINO, MAE and MoCo v3.

Wang et al. 2023, "SSL4EO-S12: A Large-Scale Multi-Modal, Multi-Temporal Dataset for Self-Supervised Learning in Earth
Observation", arXiv:2211.07044. Weights are read in the authors' layouts (each method's wrapper, with or without heads)
and in torchgeo's.
"""

from geolearn.backbones import backbone, building, catalog
from geolearn.backbones.trunk import ViT
from geolearn.bands import Band


@building.register_family('ssl4eo')
def build_ssl4eo(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of SSL4EO-S12's transformers."""
    record = catalog.get_record(name)
    building.require_kinds(record, bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options, checkpoint=checkpoint)
    trunk = ViT(config, building.PatchEmbed(len(bands), record.dim, record.patch), record.patch)
    return building.build_fixed_band(record, trunk, bands, options, checkpoint=checkpoint, may_be_missing=('norm.*',))
