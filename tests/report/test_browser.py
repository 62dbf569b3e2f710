"""A browser opens the pages: nothing is missing, nothing runs, nothing sticks out."""

import pytest

from geolearn.report.page import Picture, render_report, write_report

LOOK = """() => ({
  images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
  empty: [...document.images].filter(image => image.getBoundingClientRect().width < 50).length,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  scripts: document.scripts.length,
  links: [...document.links].every(link => document.querySelector(link.hash)),
  height: document.documentElement.scrollHeight,
})"""


def look(browser, path, **options):
    """Open a page and return what is on it and everything that the browser complained about."""
    page = browser.new_page(**options)
    told, asked = [], []
    page.on('console', lambda message: told.append(message.text))
    page.on('pageerror', lambda error: told.append(str(error)))
    page.on('dialog', lambda dialog: (told.append(f'dialog {dialog.message}'), dialog.dismiss()))
    page.on('request', lambda request: asked.append(request.url[:40]))
    page.goto(path.as_uri())
    found = page.evaluate(LOOK) | {'told': told, 'shot': page.screenshot(full_page=True)}
    found['asked'] = [url for url in asked if not url.startswith(('data:', path.as_uri()[:40]))]
    page.close()
    return found


@pytest.fixture(scope='module')
def path(pixel_report, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp('report') / 'report.html', pixel_report)


@pytest.mark.parametrize('width', [1280, 800, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_browser_shows_the_whole_page_without_complaint(browser, path, width, scheme):
    found = look(browser, path, viewport={'width': width, 'height': 900}, color_scheme=scheme)
    assert len(found['images']) >= 6
    assert all(found['images'])
    assert (found['told'], found['asked'], found['scripts'], found['empty'], found['wide']) == ([], [], 0, 0, 0)
    assert found['links']
    assert found['height'] > 2000
    assert found['shot'].startswith(b'\x89PNG')


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind', ['PixelRegressor', 'ChangeDetector', 'FeatureClassifier', 'several labels', 'FasterRCNN', 'MaskRCNN']
)
def test_a_browser_shows_the_page_of_every_kind_of_model(browser, report_of, kind, tmp_path):
    report = report_of(kind)
    found = look(browser, write_report(tmp_path / 'report.html', report), viewport={'width': 390, 'height': 900})
    pictures = [part for section in report.sections for part in section.parts if isinstance(part, Picture)]
    assert found['images'] == [True] * len(pictures)
    assert len(pictures) >= 4
    assert (found['told'], found['asked'], found['scripts'], found['empty'], found['wide']) == ([], [], 0, 0, 0)


def test_day_and_night_differ(browser, path):
    day, night = (look(browser, path, color_scheme=scheme)['shot'] for scheme in ('light', 'dark'))
    assert day != night


def test_the_policy_stops_what_gets_in_all_the_same(browser, pixel_report, tmp_path):
    path = tmp_path / 'tampered.html'
    bad = b'<script>alert(1)</script><img src="https://example.invalid/a.png"><img src="x" onerror="alert(2)">'
    path.write_bytes(render_report(pixel_report).replace(b'<main>', b'<main>' + bad))
    found = look(browser, path)
    assert not [text for text in found['told'] if text.startswith('dialog')]
    assert any('Content Security Policy' in text for text in found['told'])


def test_it_prints_on_paper(browser, path):
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.pdf(format='A4').startswith(b'%PDF')
    page.close()
