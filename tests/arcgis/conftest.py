"""A driver that calls a bundle's raster function as ArcGIS Pro does, as far as that is known."""

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest


class Pro:
    """ArcGIS Pro with a bundle: it unpacks it, and runs the class of the file that the .emd names.

    Args:
        dlpk: The bundle.
        folder: Where to unpack it.
        as_text: Whether the function gets the text of the .emd instead of its path.
        scalars: What the user of the tool says.
    """

    def __init__(self, dlpk, folder, *, as_text=False, **scalars):
        with zipfile.ZipFile(dlpk) as archive:
            archive.extractall(folder)
        (emd,) = Path(folder).glob('*.emd')
        self.emd = json.loads(emd.read_text())
        file = emd.parent / self.emd['InferenceFunction']
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert file.stem not in sys.modules
        self.function = getattr(module, file.stem)()
        self.function.initialize(model=emd.read_text() if as_text else str(emd), device=-1)
        self.parameters = {row['name']: row for row in self.function.getParameterInfo()}
        given = {name: str(row['value']) for name, row in self.parameters.items() if 'value' in row}
        self.configuration = self.function.getConfiguration(**(given | {n: str(v) for n, v in scalars.items()}))

    def blocks(self, raster, valid=None):
        """Yield corner, pixels and mask of each block of a raster (bands, height, width): padded, one size."""
        pixels = raster[list(self.configuration['extractBands'])]
        known = np.ones(raster.shape[1:], bool) if valid is None else valid
        edge, tx, ty = (self.configuration[name] for name in ('padding', 'tx', 'ty'))
        height, width = known.shape
        room = ((edge, edge + -height % ty), (edge, edge + -width % tx))
        pixels, known = np.pad(pixels, ((0, 0), *room)), np.pad(known, room)
        for top in range(0, height, ty):
            for left in range(0, width, tx):
                part = np.s_[..., top : top + ty + 2 * edge, left : left + tx + 2 * edge]
                mask = np.broadcast_to(known[part], pixels[part].shape).astype('u1')
                yield (top, left), pixels[part].copy(), mask

    def map(self, raster, valid=None):
        """Classify a raster; returns pixels (height, width), where they are known, and what the output is."""
        info = self.function.updateRasterInfo(output_info={})['output_info']
        ty, tx = self.configuration['ty'], self.configuration['tx']
        shape = [-(-length // step) * step for length, step in zip(raster.shape[1:], (ty, tx))]
        found, known = np.zeros(shape, info['pixelType']), np.zeros(shape, bool)
        for (top, left), pixels, mask in self.blocks(raster, valid):
            given = {'raster_pixels': pixels, 'raster_mask': mask}
            out = self.function.updatePixels((left, top), None, {'pixelType': info['pixelType']}, **given)
            assert out['output_pixels'].shape == out['output_mask'].shape == (1, ty, tx)
            assert out['output_pixels'].dtype == info['pixelType']
            found[top : top + ty, left : left + tx] = out['output_pixels'][0]
            known[top : top + ty, left : left + tx] = out['output_mask'][0]
        inside = np.s_[: raster.shape[1], : raster.shape[2]]
        return found[inside], known[inside], info

    def detect(self, raster):
        """Return the features of a raster, with their rings in its pixels."""
        features = []
        for (top, left), pixels, mask in self.blocks(raster):
            told = self.function.vectorize(raster_pixels=pixels, raster_mask=mask)['output_vectors']
            for feature in json.loads(told)['features']:
                shift = np.array([left, top]) - self.configuration['padding']
                rings = [(np.array(ring) + shift).tolist() for ring in feature['geometry']['rings']]
                features.append(feature['attributes'] | {'rings': rings})
        return features


@pytest.fixture
def open_in_pro(tmp_path):
    """Give a bundle to ArcGIS Pro: `open_in_pro(dlpk, padding=16)`."""

    def opened(dlpk, **scalars):
        return Pro(dlpk, tmp_path / 'unpacked', **scalars)

    return opened
