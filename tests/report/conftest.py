"""The report of a small model."""

import functools
import io
import shutil
from datetime import date

import pytest
from report_kinds import KINDS


@pytest.fixture(scope='session')
def pixel_model(scene_chips, tmp_path_factory):
    """DeepLab on ResNet-18, trained for an epoch on twelve chips with hostile class names; four to validate on."""
    import torch

    from geolearn import DeepLab, prepare_data

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = prepare_data(
        scene_chips,
        {1: '<script>alert(1)</script>', 2: '$x$ & "y" \N{RIGHT-TO-LEFT OVERRIDE}'},
        chip_size=32,
        batch_size=4,
        val_split_pct=0.25,
        ignore_classes=[0],
        working_dir=tmp_path_factory.mktemp('work'),
    )
    model = DeepLab(data, backbone='resnet18', pretrained=False, dice_loss_fraction=0.5).fit(1, lr=1e-3)
    yield model
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def pixel_report(pixel_model):
    """Its report."""
    return pixel_model.report_contents(made=date(2026, 1, 2))


@pytest.fixture(scope='session')
def make_model(scene_files, scene_chips, tmp_path_factory):
    """Train a small model of a kind for an epoch on chips of the scene; returns it and the folder of its chips.

    Kinds are names of classes, or ``'several labels'`` for a classifier of chips that hold any number of classes.
    """
    import torch

    import geolearn
    from geolearn.synthetic import CLASSES

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp('kind')
        chips, name = folder / 'chips', KINDS[kind].model
        if name == 'ChangeDetector':
            shutil.copytree(scene_chips, chips)
            shutil.copytree(chips / 'images', chips / 'images2')
        elif export := KINDS[kind].export:
            options = {'classes': CLASSES, 'tile_size': 32, 'sensor': 'Sentinel-2'}
            geolearn.export_training_data(*scene_files, chips, export, **options)
        else:
            chips = scene_chips
        options = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.25, 'working_dir': folder}
        data = geolearn.prepare_data(chips, **options, **KINDS[kind].chips)
        torch.manual_seed(0)
        model = getattr(geolearn, name)(data, 'test_resnet', pretrained=False, **KINDS[kind].options)
        return model.fit(1, lr=1e-3, checkpoint=False), chips

    yield make
    torch.set_num_threads(threads)


DRAWN_ELSEWHERE = {'several labels', 'ChangeDetector', 'FCOS'}
"""Kinds whose figures are those of another kind: drawing them takes 3 s each."""


def dot(figure, *, dpi=100):
    """A picture of one pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new('L', (1, 1)).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture(scope='session')
def report_of(make_model):
    """The report of the model of a kind."""

    @functools.cache
    def make(kind):
        with pytest.MonkeyPatch.context() as patch:
            if kind in DRAWN_ELSEWHERE:
                patch.setattr('geolearn.models.reports.report.png', dot)
            return make_model(kind)[0].report_contents(made=date(2026, 1, 2))

    return make


@pytest.fixture
def no_drawing(monkeypatch):
    """Pictures of one pixel, for tests in which it does not matter what they show."""
    monkeypatch.setattr('geolearn.models.reports.report.png', dot)
