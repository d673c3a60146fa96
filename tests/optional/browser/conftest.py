"""A headless Chromium that says what it asked the network for and what its console said."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.runs.conftest import cache, world

__all__ = ["cache", "world"]

MISSING = """\
these tests drive Chromium, which is not installed
hint: `apt-get install chromium chromium-driver`, or set CHROME and CHROMEDRIVER to their files"""


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(command: Sequence[str], port: int) -> Iterator[str]:
    """The address of a page that a command serves within the block, once it answers."""
    url, served = f"http://127.0.0.1:{port}/", subprocess.Popen(command)
    try:
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
    pytest.fail(f"{url} never answered; its command ended with {served.poll()}")


class Browser:
    """Chromium, and what happened in it.

    Args:
        driver: of Selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path | str, *, dark: bool = False, width: int = 1200) -> None:
        """Load a page in a window of ``width`` CSS pixels that asks for light or dark."""
        self.driver.get("about:blank")  # so that nothing of the page before arrives late
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str) -> Any:
        """What a script returns that gives its result to ``arguments[0]``."""
        return self.driver.execute_async_script(script)

    def until(self, holds: Callable[[Any], Any], seconds: float = 60) -> None:
        """Wait until something is true of the page."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds).until(holds)

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened."""
        events = [
            json.loads(row["message"])["message"] for row in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the console shows."""
        return [row["message"] for row in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for each module: it asks for the icon of a site that it showed even later."""
    from os import environ

    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    names = ("chromium", "chromium-browser", "google-chrome")
    chrome = environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    driver = environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.fail(MISSING, pytrace=False)
    options = ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--autoplay-policy=no-user-gesture-required", "--hide-scrollbars",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    opened.set_script_timeout(60)
    try:
        yield Browser(opened)
    finally:
        opened.quit()
