"""SSL4EO-S12: small vision transformers pretrained on Sentinel-2 (or Sentinel-1) by DINO, MAE and MoCo v3.

Wang et al. 2023, "SSL4EO-S12: A Large-Scale Multi-Modal, Multi-Temporal Dataset for Self-Supervised Learning in Earth
Observation", arXiv:2211.07044. Weights are read in the authors' layouts (each method's wrapper, with or without heads)
and in torchgeo's.
"""

from geolearn.backbones import catalog
from geolearn.backbones.backbone import Backbone, BackboneOptions
from geolearn.backbones.building import (
    PatchEmbed,
    build_fixed_band,
    make_config,
    read_checkpoint,
    register_family,
    require_kinds,
)
from geolearn.backbones.trunk import ViT
from geolearn.bands import Band


@register_family('ssl4eo')
def build_ssl4eo(name: str, bands: tuple[Band, ...], options: BackboneOptions) -> Backbone:
    """Build one of SSL4EO-S12's transformers."""
    record = catalog.get_record(name)
    require_kinds(record, bands)
    checkpoint = read_checkpoint(record, bands, options)
    config = make_config(record, options, checkpoint=checkpoint)
    trunk = ViT(config, PatchEmbed(len(bands), record.dim, record.patch), record.patch)
    return build_fixed_band(record, trunk, bands, options, checkpoint=checkpoint, may_be_missing=('norm.*',))
