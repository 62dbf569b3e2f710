"""Which elements, attributes and values a report may hold: no script, no link elsewhere, nothing that is fetched."""

import re
from html.parser import HTMLParser

from geolearn.report.page import POLICY

HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)
"""How every page begins; what forbids must stand before what it forbids."""

_ANY = re.compile(r'(?s).*')
_WORD = re.compile(r'[a-z0-9]+')
_NUMBER = re.compile(r'[0-9]+')

_COMMON = {'class': _WORD}
_ALLOWED: dict[str, dict[str, re.Pattern[str]]] = {
    'html': {'lang': re.compile('en')},
    'meta': {
        'charset': re.compile('utf-8'),
        'http-equiv': re.compile('Content-Security-Policy'),
        'name': re.compile('viewport'),
        'content': re.compile(f'{re.escape(POLICY)}|width=device-width, initial-scale=1'),
    },
    'div': {'role': re.compile('note')},
    'section': {'id': re.compile('s[0-9]+')},
    'a': {'href': re.compile('#s[0-9]+')},
    'th': {'scope': re.compile('col')},
    'span': {'style': re.compile(r'width:[0-9.]+%|background:#[0-9a-f]{6}')},
    'img': {
        'src': re.compile('data:image/png;base64,[A-Za-z0-9+/=]+'),
        'alt': _ANY,
        'width': _NUMBER,
        'height': _NUMBER,
    },
}
_PLAIN = (
    'head title style body header nav main h1 h2 p dl dt dd ol ul li table thead tbody tr td pre code figure figcaption'
).split()
_FETCHING = re.compile(r'(?i)url\(|@import|expression|\\')


def is_report(page: bytes) -> bool:
    """Whether a page holds nothing but what `render_report` writes: no script, no link, nothing that is fetched.

    Every element, attribute and value must be on a list of those that reports need. The policy at the head of the
    page, which is looked for too, makes browsers refuse the rest.
    """
    try:
        text = page.decode()
    except UnicodeDecodeError:
        return False
    if not text.startswith(HEAD):
        return False
    found = _Checker()
    found.feed(text)
    found.close()
    return found.sound


class _Checker(HTMLParser):
    """Reads a page and remembers whether all of it is allowed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sound = True
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        allowed = _ALLOWED.get(tag, {} if tag in _PLAIN else None)
        self._in_style = tag == 'style'
        if allowed is None:
            self.sound = False
            return
        for name, value in attrs:
            pattern = (allowed | _COMMON).get(name)
            if pattern is None or value is None or not pattern.fullmatch(value):
                self.sound = False

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style and _FETCHING.search(data):
            self.sound = False

    def handle_comment(self, data: str) -> None:
        self.sound = False

    def handle_decl(self, decl: str) -> None:
        self.sound = self.sound and decl == 'doctype html'

    def unknown_decl(self, data: str) -> None:
        self.sound = False

    def handle_pi(self, data: str) -> None:
        self.sound = False
