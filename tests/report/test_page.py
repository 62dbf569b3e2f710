"""The page: what is in it, that it is safe, and that it is the same each time."""

import io
import math
import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser

import pytest
from harmless_page import is_report
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geolearn.errors import FileWriteError
from geolearn.report.page import (
    Code,
    Facts,
    Notes,
    Picture,
    ReportContents,
    Section,
    Share,
    Swatch,
    Table,
    render_report,
    write_report,
)

HOSTILE = '<script>alert(1)</script>"\'>&amp;<img src=x onerror=alert(2)>'


def png(width=30, height=20):
    buffer = io.BytesIO()
    Image.new('RGB', (width, height), 'red').save(buffer, 'PNG')
    return buffer.getvalue()


def contents(*parts, title='Model', warnings=()):
    return ReportContents(title, (('task', 'pixels'),), (Section('One', parts),), date(2026, 1, 2), warnings)


def body(*parts):
    page = render_report(contents(*parts)).decode()
    return page[page.index('<main>') : page.index('</main>')]


class Reader(HTMLParser):
    """What a browser would see: elements, and all text outside of the style sheet."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], '', []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += '' if self.open and self.open[-1] == 'style' else data


def everywhere(text):
    return ReportContents(
        text,
        ((text, text),),
        (
            Section(
                text,
                (
                    text,
                    Table((text,), ((text,), (Swatch(text, (1, 2, 3)),)), text),
                    Facts(((text, text),)),
                    Notes((text,)),
                    Code(text),
                    Picture(png(), text, text),
                ),
            ),
        ),
        date(2026, 1, 2),
        (text,),
    )


def test_every_part_is_on_the_page_and_every_element_is_closed():
    found = Reader(render_report(everywhere('Wald & Straße')))
    assert not found.open
    # title and heading, tile of two, warning, link, section of heading, paragraph, table of four, facts, note, code,
    # caption of the picture
    assert found.text.count('Wald & Straße') == 17
    assert 'Made by geolearn on 2026-01-02.' in found.text


def test_hostile_text_stays_text():
    page = render_report(everywhere(HOSTILE))
    found = Reader(page)
    assert found.text.count(HOSTILE) == 17
    assert {tag for tag, _ in found.tags}.isdisjoint({'script', 'iframe', 'object', 'link', 'base', 'form'})
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith('on')]
    assert is_report(page)


@given(st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=60)
def test_any_text_at_all_makes_a_sound_page(text):
    page = render_report(everywhere(text))
    assert is_report(page)
    assert not Reader(page).open
    assert page == render_report(everywhere(text))


def test_pictures_are_in_the_page_at_their_size():
    section = body(Picture(png(300, 200), 'a map', 'Where', density=2))
    assert re.search(r'<img src="data:image/png;base64,[\w+/=]+" alt="a map" width="150" height="100">', section)
    assert '<figcaption>Where</figcaption>' in section


def test_a_page_asks_for_nothing_from_elsewhere():
    page = render_report(contents(Picture(png(), 'a'))).decode()
    assert 'http://' not in page
    assert 'https://' not in page
    assert 'url(' not in page
    assert page.index('Content-Security-Policy') < page.index('<title>')


def test_cells_are_written_by_kind():
    cells = (12345, 0.123456, Share(0.25), Share(math.nan), math.nan, None, Share(1.5))
    section = body(Table(tuple('abcdefg'), (cells,)))
    assert [re.sub('<.*?>', '', cell) for cell in re.findall('<td.*?>(.*?)</td>', section)] == [
        '12,345',
        '0.1235',
        '0.250',
        '–',  # noqa: RUF001
        '–',  # noqa: RUF001
        '–',  # noqa: RUF001
        '1.500',
    ]
    assert re.findall('width:([0-9.]+)%', section) == ['25.0', '100.0']


def test_columns_of_numbers_are_set_right_and_others_left():
    section = body(Table(('name', 'count'), (('a', 1), ('b', None))))
    assert '<th scope="col">name</th><th scope="col" class="number">count</th>' in section


def test_without_warnings_there_is_no_box():
    assert 'class="warnings"' not in render_report(contents()).decode()
    assert 'Before you trust' in render_report(contents(warnings=('few chips',))).decode()


def test_only_the_date_changes_a_page():
    one = contents('text', Picture(png(), 'a'))
    assert render_report(one) == render_report(replace(one))
    other = render_report(replace(one, made=date(2027, 3, 4))).decode()
    assert other.replace('2027-03-04', '2026-01-02') == render_report(one).decode()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='a row of 1 cells does not fit the 2 columns'):
        Table(('a', 'b'), (('x',),))
    with pytest.raises(ValueError, match=r"the picture 'a map' must be a PNG, found bytes that begin with b'GIF89a"):
        Picture(b'GIF89a' + b'0' * 50, 'a map')
    with pytest.raises(ValueError, match='must have three parts in 0..255'):
        Swatch('a', (0, 0, 256))


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    path = write_report(tmp_path / 'report.html', contents('text'))
    assert path.read_bytes() == render_report(contents('text'))
    assert [p.name for p in tmp_path.iterdir()] == ['report.html']
    with pytest.raises(FileWriteError, match='does not exist; create it first'):
        write_report(tmp_path / 'absent' / 'report.html', contents())


# -- what `is_report` of these tests refuses


def with_body(text):
    return render_report(contents()).replace(b'<main>', b'<main>' + text.encode())


@pytest.mark.parametrize(
    'text',
    [
        '<script>alert(1)</script>',
        '<p onclick="alert(1)">a</p>',
        '<img src="https://example.com/a.png" alt="" width="1" height="1">',
        '<img src="data:image/svg+xml;base64,AAAA" alt="" width="1" height="1">',
        '<a href="javascript:alert(1)">a</a>',
        '<a href="https://example.com">a</a>',
        '<iframe srcdoc="a"></iframe>',
        '<meta http-equiv="refresh" content="0;url=https://example.com">',
        '<form action="https://example.com"></form>',
        '<style>p { background: url(https://example.com) }</style>',
        '<style>@import "a.css";</style>',
        '<span style="position:fixed"></span>',
        '<base href="https://example.com">',
        '<svg onload="alert(1)"></svg>',
        '<!-- hidden -->',
        '<?php a ?>',
    ],
)
def test_a_page_with_more_than_reports_hold_is_no_report(text):
    assert is_report(with_body('<p class="made">a</p>'))
    assert not is_report(with_body(text))


def test_a_page_without_the_policy_is_no_report():
    page = render_report(contents())
    assert is_report(page)
    assert not is_report(page.replace(b"default-src 'none'", b'default-src *'))
    assert not is_report(b'<p>a</p>')
    assert not is_report(b'\xff' + page)
    assert not is_report(b'')
