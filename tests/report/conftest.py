"""A browser, where the machine has one, and the report of a small model."""

import shutil
from datetime import date

import pytest

BROWSERS = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome')


@pytest.fixture(scope='session')
def browser():
    """A headless Chromium of the system, driven by playwright."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright: pip install playwright')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f'needs a browser on PATH, one of {", ".join(BROWSERS)}; on Debian: apt-get install chromium')
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path)
        yield opened
        opened.close()


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
    """What there is to say of it."""
    from geolearn.models.pixels._report import report_pixel_classifier

    return report_pixel_classifier(pixel_model, made=date(2026, 1, 2))
