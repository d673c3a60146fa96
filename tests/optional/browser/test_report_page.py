"""The report as a reader's browser shows it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from safe_framework.cli import main
from safe_framework.runs.run import run_recipe
from tests.optional.browser.conftest import Browser

pytestmark = pytest.mark.browser

PLAY_ALL = """
const done = arguments[0];
Promise.all([...document.querySelectorAll('audio')].map(sound => new Promise(resolve => {
  sound.onended = () => resolve('ended');
  sound.onerror = () => resolve('error ' + sound.error.message);
  sound.play().catch(problem => resolve('refused ' + problem));
}))).then(done);
"""
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const light = colour => {
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => {
    part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour; }
  return 'white'; };
const worst = {};
for (const node of document.querySelectorAll('body *')) {
  const written = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!written || node.closest('svg')) continue;
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = node.tagName + '.' + node.className;
  worst[name] = Math.min(worst[name] ?? 99, ratio); }
return worst;
"""


@pytest.fixture(scope="module")
def page(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole report of a tiny run, with everything that a report can hold."""
    folder = tmp_path_factory.mktemp("runs") / "shown"
    run_recipe(str(world / "recipe.toml"), output=folder, quiet=True)
    assert main(["verify", str(folder / "adapter"), "--quick"]) == 0
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True])
def test_it_loads_without_a_complaint_or_a_request(
    browser: Browser, page: Path, dark: bool
) -> None:
    """Law: the browser asks for the page alone, and its console stays empty."""
    browser.open(page, dark=dark)
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [page.as_uri()]
    assert browser.complaints() == []


def test_a_request_or_a_complaint_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """Law: these tests are informed of an image that is asked for and of a script that fails."""
    page = tmp_path / "loud.html"
    page.write_text("<img src='missing.png'><script>nothing.here</script>")
    browser.open(page)
    assert (tmp_path / "missing.png").as_uri() in browser.requests()
    assert any("nothing is not defined" in line for line in browser.complaints())


def test_every_sound_plays_to_its_end(browser: Browser, page: Path) -> None:
    """Law: each player decodes its clip and plays it."""
    browser.open(page)
    assert browser.wait_for(PLAY_ALL) == ["ended"] * 4
    assert browser.complaints() == []


def test_every_picture_is_drawn(browser: Browser, page: Path) -> None:
    """Law: each picture has a size, something in it, and words for those who do not see it."""
    browser.open(page)
    pictures = browser.run(
        "return [...document.querySelectorAll('[role=img]')].map(node => {"
        "const box = node.querySelector('svg').getBoundingClientRect();"
        "return [box.width, box.height, node.querySelectorAll('path, use, text').length,"
        "node.getAttribute('aria-label').length]})"
    )
    assert len(pictures) >= 7
    for width, height, marks, words in pictures:
        assert width > 100
        assert height > 50
        assert marks > 10
        assert words > 20


def test_the_three_numbers_are_seen_at_once(browser: Browser, page: Path) -> None:
    """Law: gain, off and kept stand in the first screen, larger than all other text."""
    browser.open(page, width=1200)
    numbers = browser.run(
        "return [...document.querySelectorAll('.number')].map(node => ["
        "node.getBoundingClientRect().bottom, parseFloat(getComputedStyle(node).fontSize)])"
    )
    assert len(numbers) == 3
    assert max(bottom for bottom, _ in numbers) < 900
    others = "return Math.max(...[...document.querySelectorAll('body *:not(.number)')].map("
    largest = browser.run(others + "node => parseFloat(getComputedStyle(node).fontSize)))")
    assert min(size for _, size in numbers) >= largest


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_it_fits_the_screen(browser: Browser, page: Path, width: int) -> None:
    """Law: the page itself never scrolls sideways, its details open or closed."""
    browser.open(page, width=width)
    browser.run("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    clipped = "return [...document.querySelectorAll('.number')].filter(node => node.scrollWidth >"
    assert browser.run(clipped + "node.clientWidth).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(browser: Browser, page: Path, dark: bool) -> None:
    """Law: all text has a contrast of 4.5 or more to what is behind it (WCAG 2.2, 1.4.3)."""
    browser.open(page, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(node => node.open = true)")
    worst = browser.run(CONTRAST)
    assert len(worst) > 10
    assert {name: ratio for name, ratio in worst.items() if ratio < 4.5} == {}


def test_colours_follow_the_reader(browser: Browser, page: Path) -> None:
    """Law: dark is dark and light is light, curves included."""
    ground, ink = [], []
    for dark in (False, True):
        browser.open(page, dark=dark)
        ground.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        found = "return getComputedStyle(document.querySelector('svg text')).fill"
        ink.append(browser.run(found))
    means = [np.mean([int(part) for part in text[4:-1].split(",")]) for text in ground]
    assert means[0] > 230
    assert means[1] < 40
    assert ink[0] != ink[1]


def test_headings_are_an_outline(browser: Browser, page: Path) -> None:
    """Law: one first heading, and no level is left out below it."""
    browser.open(page)
    levels = browser.run(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(node => +node.tagName[1])"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_everything_is_reached_by_keyboard(browser: Browser, page: Path) -> None:
    """Law: players and details take the focus, and a detail opens with the enter key."""
    browser.open(page)
    assert browser.run(
        "const all = [...document.querySelectorAll('audio, summary')];"
        "return all.length > 5 && all.every(node => {node.focus();"
        "return document.activeElement === node})"
    )
