"""The playground, driven as a person would."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import urlopen

import pytest

from safe_framework.runs.run import run_recipe
from tests.optional.browser.conftest import Browser

pytestmark = pytest.mark.browser

CONTROL, DELETE = "\ue009", "\ue017"  # as the WebDriver standard numbers its keys


def waiting(driver: Any, seconds: float) -> Any:
    """Selenium's own wait; imported here, since other tests are collected where it is not."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds)


@pytest.fixture(scope="module")
def address(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the playground of a tiny trained adapter is."""
    folder = tmp_path_factory.mktemp("runs") / "played"
    run_recipe(str(world / "recipe.toml"), output=folder, quiet=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("safe")), "play", str(folder / "adapter")]
    options = ["--port", port, "--question", "what is this", "--max-new-tokens", "3"]
    served = subprocess.Popen([*command, *options])  # in a process whose warnings are its own
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait_for(url, served)
        yield url
    finally:
        served.terminate()
        served.wait(30)


def _wait_for(url: str, served: subprocess.Popen[bytes]) -> None:
    """Come back once the page answers."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and served.poll() is None:
        with contextlib.suppress(OSError), urlopen(url):
            return
        time.sleep(0.5)
    pytest.fail(f"{url} never answered; `safe play` ended with {served.poll()}")


def badge(browser: Browser, *, until: str) -> str:
    """The badge's text, once it holds ``until``."""
    driver = browser.driver
    waiting(driver, 60).until(
        lambda _: until in driver.find_element("id", "badge").text,
        message=f"the badge never said {until!r}",
    )
    text: str = driver.find_element("id", "badge").text
    return text


def set_gate(browser: Browser, value: float) -> None:
    """Type a strength into the slider's number, and leave it."""
    field = browser.driver.find_element("css selector", "#gate input[type=number]")
    browser.run(
        "arguments[0].value = arguments[1];"
        "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('blur', {bubbles: true}));",
        field, value,
    )  # fmt: skip


def click(browser: Browser) -> None:
    """Ask both."""
    browser.driver.find_element("id", "ask").click()


def opened(browser: Browser, address: str) -> Any:
    """The page, ready to be used."""
    browser.open(address)
    waiting(browser.driver, 60).until(lambda d: d.find_elements("id", "ask"))
    return browser.driver


def test_the_badge_follows_the_gate(browser: Browser, address: str, world: Path) -> None:
    """Law: with a clip the badge says bitwise the base at gate 0, and at gate 1 that it is not."""
    driver = opened(browser, address)
    click(browser)
    assert "no sample" in badge(browser, until="bitwise the base")
    upload = driver.find_element("css selector", "#sample input[type=file]")
    upload.send_keys(str(world / "test0.wav"))
    waiting(driver, 60).until(
        lambda d: not d.find_elements("css selector", "#sample input[type=file]")
    )
    click(browser)
    assert re.search(r"[\d.]+ % of the question's", badge(browser, until="not the base"))
    set_gate(browser, 0)
    click(browser)
    assert "(gate 0)" in badge(browser, until="bitwise the base")
    base, safe = (
        driver.find_element("css selector", f"#{name} textarea").get_attribute("value")
        for name in ("base", "safe")
    )
    assert base == safe


def test_a_question_is_needed(browser: Browser, address: str) -> None:
    """Law: an empty question is answered with what to do, not with a made-up answer."""
    driver = opened(browser, address)
    field = driver.find_element("css selector", "#question textarea, #question input")
    field.send_keys(CONTROL, "a")
    field.send_keys(DELETE)
    click(browser)
    assert "write one" in badge(browser, until="there is no question")


def test_nothing_leaves_this_machine(browser: Browser, address: str) -> None:
    """Law: the page asks no other host for anything."""
    opened(browser, address)
    hosts = {urlparse(url).hostname for url in browser.requests() if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
