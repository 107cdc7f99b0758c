"""The built documentation in a browser: ``make site``, or ``pytest tests/test_site.py`` after ``make docs``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from chromium import PROGRAM as CHROMIUM

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
MADE_BY_SPHINX = {"genindex.html", "py-modindex.html", "search.html"}
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)
PHONE = 390

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGES, reason="the documentation is not built: run `make docs` first"),
]

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] > 0.5) return c; } return [255, 255, 255, 1]; };
  const bad = new Set();
  for (const e of document.querySelectorAll('.bd-article *, .bd-sidebar-primary *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('.headerlink, script, style')) continue;
    const style = getComputedStyle(e), text = light(rgba(style.color)), back = light(behind(e));
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    const what = `${e.tagName}.${e.className}: ${e.textContent.slice(0, 30)}`;
    if (ratio < (large ? 3 : 4.5)) bad.add(`${ratio.toFixed(1)} ${what}`);
  }
  return [...bad];
}"""
UNLOADED = "[...document.images].filter((i) => i.loading !== 'lazy' && !i.naturalWidth).map((i) => i.src)"
TOO_WIDE = """() => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth) return [];
  const wide = [...document.querySelectorAll('.bd-main *')].filter((e) =>
    e.getBoundingClientRect().right > root.clientWidth + 1
    && !e.closest('.highlight, .pst-scrollable-table-container, .output, .math'));
  return [`${root.scrollWidth} px`, ...wide.slice(0, 3).map((e) => `${e.tagName}.${e.className}`)];
}"""


@pytest.fixture(scope="module")
def soups() -> dict[str, Any]:
    bs4 = pytest.importorskip("bs4", reason="Beautiful Soup reads the pages")
    return {page: bs4.BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser") for page in PAGES}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="`make site` installs playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def _open(browser: Any, server: str, width: int, **context: Any) -> tuple[Any, list[str]]:
    """Return a page without access to other hosts, and the list of its errors."""
    page = browser.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce", **context).new_page()
    page.route(
        lambda url: not url.startswith(server),
        lambda route: route.fulfill(status=200, body="", headers={"Access-Control-Allow-Origin": "*"}),
    )
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    return page, errors


def test_links_and_images_exist(soups: dict[str, Any]) -> None:
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in soups.items()}
    broken = []
    for page, soup in soups.items():
        for tag, attribute in [("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")]:
            for link in {t[attribute] for t in soup.find_all(tag) if t.get(attribute)}:
                address, fragment = urldefrag(link)
                if urlparse(address).scheme or address.startswith("//"):
                    continue
                target = (SITE / page).parent / unquote(urlparse(address).path) if address else SITE / page
                name = str(target.resolve().relative_to(SITE))
                if not target.is_file() or (fragment and name in anchors and unquote(fragment) not in anchors[name]):
                    broken.append(f"{page}: {link}")
    assert [b for b in broken if not b.endswith("#")] == []


def test_equations_are_mathml(soups: dict[str, Any]) -> None:
    assert len(soups["method.html"].find_all("math")) > 20
    articles = {page: soup.article.text for page, soup in soups.items() if soup.article}
    raw = [page for page, text in articles.items() if r"\(" in text or r"\[" in text]
    assert raw == [], "TeX that a script would have to draw"


def test_figures_have_an_alternative_text(soups: dict[str, Any]) -> None:
    bare = [f"{page}: {image.get('src')}" for page, soup in soups.items() for image in soup.find_all("img")
            if len(image.get("alt", "").strip()) < 4 or image["alt"].endswith((".png", ".svg"))]  # fmt: skip
    assert bare == []


def test_every_page_loads_without_error_and_fits_a_phone(browser: Any, server: str) -> None:
    page, errors = _open(browser, server, PHONE)
    found = {}
    for name in PAGES:
        errors.clear()
        page.goto(server + name)
        page.wait_for_load_state("load")
        too_wide = page.evaluate(TOO_WIDE) if name not in MADE_BY_SPHINX else []
        if problems := [*errors, *page.evaluate(UNLOADED), *too_wide]:
            found[name] = problems
    assert not found, "\n".join(f"{page}: {problems}" for page, problems in found.items())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, server: str, scheme: str) -> None:
    page, _ = _open(browser, server, 1300, color_scheme=scheme)
    faint = {}
    for name in [p for p in PAGES if p.count("/") < 2 or p.endswith(("tl.segment.html", "quickstart.html"))]:
        page.goto(server + name)
        page.wait_for_timeout(50)  # the scheme is set by a script
        if bad := page.evaluate(CONTRAST):
            faint[name] = bad[:8]
    assert not faint, "\n".join(f"{page}: {bad}" for page, bad in faint.items())


def test_search_finds_segment(browser: Any, server: str) -> None:
    page, errors = _open(browser, server, 1300)
    page.goto(server + "search.html?q=segment")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    page.wait_for_function("document.querySelectorAll('ul.search li a').length > 3")
    assert any("tl.segment" in link for link in page.locator("ul.search li a").all_inner_texts())
    assert errors == []


def test_one_search_box_and_a_menu_on_a_phone(browser: Any, server: str) -> None:
    page, _ = _open(browser, server, 1300)
    page.goto(server + "index.html")
    assert page.locator(".search-button-field:visible, .search-button:visible").count() == 1
    page.set_viewport_size({"width": PHONE, "height": 844})
    page.locator("button.primary-toggle:visible, label.sidebar-toggle.primary-toggle:visible").first.click()
    page.wait_for_timeout(500)
    assert page.locator(".bd-sidebar-primary a:visible", has_text="Tutorials").count() >= 1
