"""The playground, driven as a person would."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch

import safe_framework
from safe_framework.pretrained import quietly
from safe_framework.runs.run import run_recipe
from tests.optional.browser.conftest import Browser, free_port, serving
from tests.support.seeing import picture, save, seeing_bases

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
    with played(folder / "adapter") as url:
        yield url


@pytest.fixture(scope="module")
def seeing_address(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where that of an adapter is whose base sees, moved away from its silent start."""
    folder = tmp_path_factory.mktemp("seeing")
    with quietly():
        base = save(folder / "base", *seeing_bases()["llava"]())
    text = (world / "recipe.toml").read_text("utf-8").replace(f'"{world}/base"', f'"{base}"')
    recipe = world / "seeing.toml"
    recipe.write_text(text, "utf-8")
    model = safe_framework.build(recipe)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.5)
    with played(model.save_pretrained(folder / "adapter")) as url:
        yield url


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of pictures by their colour, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    found = {name: folder / f"{name}.png" for name in ("red", "blue", "broken")}
    for colour in ("red", "blue"):
        picture(colour, 20, 16).save(found[colour])
    found["broken"].write_text("no picture")
    return found


@contextlib.contextmanager
def played(adapter: Path, *more: str) -> Iterator[str]:
    """Play an adapter within the block, in a process whose warnings are its own."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("safe")), "play", str(adapter)]
    options = ["--port", str(port), "--question", "what is this", "--max-new-tokens", "3"]
    with serving([*command, *options, *more], port) as url:
        yield url


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


# A picture beside the sample


def asked(
    address: str, picture_file: Path | None, clip: Path | None, gate: float
) -> tuple[str, str, str, list[Any]]:
    """What the page's own interface answers: badge, both answers and the chat."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    files = [None if file is None else handle_file(str(file)) for file in (clip, picture_file)]
    found: tuple[str, str, str, list[Any]] = client.predict(
        *files, "what is this", gate, [], api_name="/ask"
    )
    return found


def test_the_interface_takes_a_picture(
    seeing_address: str, pictures: dict[str, Path], world: Path
) -> None:
    """Law: both see the picture that is sent, and the chat holds it, the sound and the answers."""
    clip = world / "test0.wav"
    shut, base, safe, chat = asked(seeing_address, pictures["red"], clip, 0.0)
    assert "bitwise the base (gate 0)" in shut
    assert base == safe
    assert asked(seeing_address, pictures["blue"], clip, 0.0)[1] != base
    opened, still, _, _ = asked(seeing_address, pictures["red"], clip, 1.0)
    assert "not the base" in opened
    assert still == base
    assert [message["role"] for message in chat] == ["user"] * 3 + ["assistant"] * 2
    held = str(chat)
    assert "red.png" in held
    assert "test0.wav" in held
    assert chat[-1]["metadata"]["title"] == "With audio, gate 0"


def test_the_interface_tells_of_a_broken_picture(
    seeing_address: str, pictures: dict[str, Path]
) -> None:
    """Law: a file that is no picture is said with its name, as a broken sound is; no answer."""
    said, base, safe, chat = asked(seeing_address, pictures["broken"], None, 1.0)
    assert "broken.png" in said
    assert "cannot be read" in said
    assert (base, safe, chat) == ("", "", [])


def test_a_base_that_reads_has_no_place_for_a_picture(address: str) -> None:
    """Law: the page of a text base asks for a sample, a question, a gate and nothing else."""
    from gradio_client import Client

    client = Client(address, verbose=False)
    endpoint = client.view_api(return_format="dict")["named_endpoints"]["/ask"]
    assert [one["label"] for one in endpoint["parameters"]][:3] == ["audio", "Question", "Gate"]
    assert "picture" not in str(endpoint["parameters"])


DROP = """
const [field, name, colour] = arguments;
const canvas = document.createElement('canvas');
canvas.width = canvas.height = 16;
const pen = canvas.getContext('2d');
pen.fillStyle = colour; pen.fillRect(0, 0, 16, 16);
const bytes = atob(canvas.toDataURL('image/png').split(',')[1]);
const data = Uint8Array.from(bytes, letter => letter.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([data], name, {type: 'image/png'}));
for (const kind of ['dragenter', 'dragover', 'drop'])
  field.dispatchEvent(new DragEvent(kind, {dataTransfer: given, bubbles: true, cancelable: true}));
"""


def preview(browser: Browser) -> Any:
    """The picture's preview, once it is drawn."""
    shown = "#picture img"
    waiting(browser.driver, 60).until(
        lambda d: any(
            browser.run("return arguments[0].naturalWidth", node) > 0
            for node in d.find_elements("css selector", shown)
        ),
        message="no picture was shown",
    )
    return browser.driver.find_element("css selector", shown)


def remove(browser: Browser) -> None:
    """Take the picture away."""
    driver = browser.driver
    names = ("Clear", "Remove Image", "Remove")
    found = [
        button
        for button in driver.find_elements("css selector", "#picture button[aria-label]")
        if button.get_attribute("aria-label") in names
    ]
    assert found
    browser.run("arguments[0].click()", found[0])
    waiting(driver, 60).until(lambda d: not d.find_elements("css selector", "#picture img"))


def test_a_picture_is_seen_asked_about_and_removed(
    browser: Browser, seeing_address: str, pictures: dict[str, Path]
) -> None:
    """Law: an upload is shown beside the question, stands in the chat, and can be taken away."""
    driver = opened(browser, seeing_address)
    upload = driver.find_element("css selector", "#picture input[type=file]")
    upload.send_keys(str(pictures["red"]))
    preview(browser)
    click(browser)
    assert "no sample" in badge(browser, until="bitwise the base")
    waiting(driver, 60).until(lambda d: d.find_elements("css selector", "#chat img"))
    assert "what is this" in driver.find_element("id", "chat").text
    seen = driver.find_element("css selector", "#base textarea").get_attribute("value")
    remove(browser)
    click(browser)
    waiting(driver, 60).until(
        lambda d: d.find_element("css selector", "#base textarea").get_attribute("value") != seen,
        message="the answer without the picture is the one with it",
    )


def test_a_picture_can_be_dropped(browser: Browser, seeing_address: str) -> None:
    """Law: a file that is dragged onto the field is taken as an uploaded one."""
    driver = opened(browser, seeing_address)
    field = driver.find_element("css selector", "#picture input[type=file]")
    target = browser.run("return arguments[0].closest('button') || arguments[0].parentNode", field)
    assert not driver.find_elements("css selector", "#picture img")
    browser.run(DROP, target, "dropped.png", "blue")
    assert preview(browser).is_displayed()


def test_a_broken_picture_is_told(
    browser: Browser, seeing_address: str, pictures: dict[str, Path]
) -> None:
    """Law: a file that is no picture is said in the badge, with its name."""
    driver = opened(browser, seeing_address)
    driver.find_element("css selector", "#picture input[type=file]").send_keys(
        str(pictures["broken"])
    )
    waiting(driver, 60).until(
        lambda d: not d.find_elements("css selector", "#picture input[type=file]")
    )
    click(browser)
    assert "broken.png" in badge(browser, until="cannot be read")
