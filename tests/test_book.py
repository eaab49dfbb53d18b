"""The rendered book in a real browser, opened from the disk as a reader without a network would."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from tools.first_cell import REPOSITORY, ROOT
from wsol_lib import figures

BOOK = ROOT / "_build" / "html"
DOOR = "index.html"  # leads on to the first page
PAGES = sorted({p.relative_to(BOOK).as_posix() for p in BOOK.rglob("*.html") if "_static" not in p.parts} - {DOOR})
PHONE = {"width": 390, "height": 844}
needs_book = pytest.mark.skipif(not PAGES, reason="the book is not rendered: run make book")
each_page = pytest.mark.parametrize("page_name", PAGES)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page of the book, or given HTML, and gives it with the list of what went wrong on it."""
    contexts = []

    def open_page(name=None, *, html=None, **options):
        contexts.append(browser.new_context(**options))
        page, troubles = contexts[-1].new_page(), []
        page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:100]}"))
        page.on("request", lambda request: leaves(request.url) and troubles.append(f"request: {request.url}"))
        if html is None:
            page.goto((BOOK / name).as_uri())
            page.evaluate("window.MathJax?.startup?.promise?.then(() => true)")
        else:
            page.set_content(html)
        return page, troubles

    yield open_page
    for context in contexts:
        context.close()


def leaves(url):
    return urlsplit(url).scheme not in ("file", "data", "blob", "about")


NO_ALT = "[...document.images].filter(i => i.checkVisibility() && !i.alt.trim()).map(i => i.src.slice(0, 100))"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 100))"
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@needs_book
@each_page
def test_page_loads_quietly_and_from_the_disk_alone(open_page, page_name):
    page, troubles = open_page(page_name)
    assert troubles == []
    assert page.title()
    assert page.evaluate(NO_ALT) == []
    assert page.evaluate(BROKEN) == []
    assert page.locator("mjx-merror").count() == 0


@needs_book
def test_the_door_leads_to_the_first_page(browser):
    page = browser.new_page()
    page.goto((BOOK / DOOR).as_uri())
    page.wait_for_url("**/book/index.html")
    page.close()


@needs_book
@each_page
def test_page_fits_a_phone(open_page, page_name):
    page, _ = open_page(page_name, viewport=PHONE)
    assert page.evaluate(WIDE) <= 0


def luminance(colour):
    values = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


COLOURS = """() => {
    const of = (selector, key) => getComputedStyle(document.querySelector(selector))[key];
    const text = of('article p', 'color'), link = of('article a.reference', 'color');
    return {text, link, paper: of('body', 'backgroundColor')};
}"""


@needs_book
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_links_stand_out_in_both_themes(open_page, scheme):
    page, _ = open_page("book/protocols.html", color_scheme=scheme)
    colours = page.evaluate(COLOURS)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert (luminance(colours["paper"]) < 0.1) == (scheme == "dark")
    assert contrast(colours["text"], colours["paper"]) >= 7
    assert contrast(colours["link"], colours["paper"]) >= 4.5


@needs_book
def test_formulas_are_drawn(open_page):
    page, _ = open_page("book/notation.html")
    assert page.locator("mjx-container svg").count() > 20


@needs_book
def test_search_finds_a_word_of_the_book(open_page):
    page, _ = open_page("search.html")
    page.goto((BOOK / "search.html").as_uri() + "?q=threshold")
    page.locator("#search-results li").first.wait_for(timeout=10_000)
    assert page.locator("#search-results li a").count() > 0


def slider_state(slider):
    return (
        slider.locator("output").inner_text(),
        slider.locator("input").get_attribute("aria-valuetext"),
        slider.locator("img:visible").get_attribute("data-label"),
    )


@pytest.fixture(scope="module")
def three_frames():
    pictures = [torch.full((3, 40, 60), level) for level in (0.1, 0.5, 0.9)]
    return figures.slider(pictures, ["low", "middle", "high"], alt="A grey card.", title="grey")._repr_html_()


def test_slider_moves_by_keyboard(open_page, three_frames):
    page, troubles = open_page(html=three_frames * 2)
    first, second = page.locator(".wsol-slider").nth(0), page.locator(".wsol-slider").nth(1)
    page.keyboard.press("Tab")
    seen = [slider_state(first)]
    for key in ("ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"):
        page.keyboard.press(key)
        seen.append(slider_state(first))
    assert seen == [(label,) * 3 for label in ("low", "middle", "high", "high", "middle", "low")]
    page.keyboard.press("End")
    assert slider_state(second) == ("low",) * 3
    assert troubles == []


def test_slider_shows_its_first_frame_where_scripts_do_not_run(open_page, three_frames):
    page, _ = open_page(html=three_frames, java_script_enabled=False)
    assert page.locator("img:visible").count() == 1
    assert page.locator("img:visible").get_attribute("alt") == "A grey card. grey: low."


@needs_book
def test_sliders_of_the_book_move(open_page):
    names = [name for name in PAGES if 'class="wsol-slider"' in (BOOK / name).read_text()]
    assert names
    for name in names:
        page, troubles = open_page(name, viewport=PHONE)
        for slider in page.locator(".wsol-slider").all():
            before = slider_state(slider)
            slider.locator("input").focus()
            page.keyboard.press("ArrowRight")
            after = slider_state(slider)
            assert len(set(after)) == 1
            assert after != before
        assert troubles == []


class Names(HTMLParser):
    """The links, ids and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def names():
    return {name: Names((BOOK / name).read_text()) for name in PAGES}


def target(name, link):
    parts = urlsplit(link)
    path = (BOOK / name).parent / unquote(parts.path) if parts.path else BOOK / name
    return Path(path).resolve(), unquote(parts.fragment)


@needs_book
@each_page
def test_links_within_the_book_resolve(names, page_name):
    dead = []
    for link in names[page_name].links + names[page_name].loaded:
        if urlsplit(link).scheme or link.startswith("//"):
            continue
        path, anchor = target(page_name, link)
        known = names.get(path.relative_to(BOOK).as_posix()) if path.is_relative_to(BOOK) else None
        if not path.exists() or (anchor and known and anchor not in known.ids):
            dead.append(link)
    assert dead == []


@needs_book
@each_page
def test_page_names_no_file_of_the_network(names, page_name):
    text = (BOOK / page_name).read_text()
    assert [src for src in names[page_name].loaded if src.startswith(("http", "//"))] == []
    assert re.findall(r"(?:unpkg|jsdelivr|cdnjs|googleapis|gstatic)\.\w+", text) == []


@needs_book
def test_styles_load_nothing_from_the_network():
    remote = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")
    assert [path.name for path in BOOK.rglob("*.css") if remote.search(path.read_text())] == []


@needs_book
def test_every_chapter_opens_in_colab(names):
    chapters = [name for name in PAGES if name.startswith("notebooks/")]
    assert chapters
    address = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    for name in chapters:
        assert f"{address}/blob/main/{name.replace('.html', '.ipynb')}" in names[name].links
