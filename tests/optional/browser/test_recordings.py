"""Recordings in the playground: a long one in several turns, and one that goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.pretrained import quietly
from tests.optional.browser.conftest import Browser
from tests.optional.browser.test_playground import played, waiting
from tests.runs.conftest import write_whisper
from tests.support.chats import speaking
from tests.support.levels import write_m4a
from tests.support.toys import llama

pytestmark = pytest.mark.browser

RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{folder}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = [0, 1] }}
windows = {{ longest = 400.0 }}
"""
WAIT = 600  # seconds, of a machine that does much else
ENTER = "\ue007"  # as the WebDriver standard numbers its keys


@pytest.fixture(scope="module")
def address(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where an adapter is played that chats, hears 400 s, and listens to the last four seconds."""
    folder = tmp_path_factory.mktemp("recordings")
    words = speaking("chatml")
    base: Any = llama(vocab_size=len(words), max_position_embeddings=512)
    with torch.no_grad():  # so that it answers by words alone
        base.lm_head.weight[words.all_special_ids] = 0
    with quietly():
        base.save_pretrained(folder / "base")
        words.save_pretrained(folder / "base")
    write_whisper(folder / "whisper")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder), "utf-8")
    model = safe_framework.build(folder / "recipe.toml")
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.5)
    with played(model.save_pretrained(folder / "adapter"), "--listen", "4") as url:
        yield url


def tab(browser: Browser, address: str, name: str) -> Any:
    """The page with one of its tabs in front."""
    driver = browser.driver
    browser.open(address)
    found = waiting(driver, WAIT).until(
        lambda d: next(
            (one for one in d.find_elements("css selector", "[role=tab]") if one.text == name), None
        )
    )
    browser.run("arguments[0].click()", found)
    return driver


def test_five_minutes_are_asked_about_in_turns(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    """Law: what a phone recorded is sent once, heard whole, and still heard in the next turns."""
    path = tmp_path / "mine.m4a"
    write_m4a(path, 0.3 * np.sin(np.arange(300 * 8_000) / 8), 8_000)
    driver = tab(browser, address, "Conversation")
    upload = waiting(driver, WAIT).until(
        lambda d: d.find_element("css selector", "#message input[type=file]")
    )
    upload.send_keys(str(path))
    waiting(driver, WAIT).until(
        lambda d: d.find_elements("css selector", "#message .thumbnail-item"),
        message="it was not uploaded",
    )
    for number, asked in enumerate(("what is this", "and that", "what"), start=1):
        field = waiting(driver, WAIT).until(
            lambda d: next(
                one
                for one in d.find_elements("css selector", "#message textarea")
                if one.is_enabled()
            )
        )
        field.send_keys(asked)
        field.send_keys(ENTER)
        waiting(driver, WAIT).until(
            lambda d, n=number: len(answered(d, "talk")) == n and all(answered(d, "talk")),
            message=f"no answer to {asked!r}",
        )
    assert text(driver, "told") == ""
    assert driver.find_element("css selector", "#talk .timestamp").text == "5:00"
    assert len(driver.find_elements("css selector", "#talk .timestamp")) == 1


def answered(driver: Any, chat: str) -> list[str]:
    """The answers that a chat shows."""
    shown = f'#{chat} [data-testid="bot"]'
    return [one.text.strip() for one in driver.find_elements("css selector", shown)]


def test_a_microphone_is_asked_about(browser: Browser, address: str) -> None:
    """Law: while it records, a question is about the last seconds of what was heard by then."""
    driver = tab(browser, address, "Listen")
    start = "#microphone button.record, #microphone .record-button"
    button = waiting(driver, WAIT).until(lambda d: d.find_element("css selector", start))
    browser.run("arguments[0].click()", button)

    def heard(least: int) -> bool:
        """Whether so many seconds were."""
        found = re.search(r"heard 0:(\d\d), of it the last ([\d.]+) s", text(driver, "heard"))
        return found is not None and int(found[1]) >= least

    waiting(driver, WAIT).until(lambda _: heard(2), message=text(driver, "heard"))
    field = driver.find_element("css selector", "#heard-question textarea, #heard-question input")
    assert field.get_attribute("value") == "what is this"
    for count, least in enumerate((2, 6), start=1):
        waiting(driver, WAIT).until(lambda _, n=least: heard(n), message=text(driver, "heard"))
        driver.find_element("id", "ask-heard").click()
        waiting(driver, WAIT).until(
            lambda d, n=count: len(re.findall(r"about the last", text(d, "heard-chat"))) == n,
            message=text(driver, "heard-wrong"),
        )
    told = re.findall(r"at 0:(\d\d), about the last ([\d.]+) s", text(driver, "heard-chat"))
    (first, short), (second, last) = told
    assert int(second) > int(first)
    assert float(short) <= float(last) <= 4.0
    assert float(last) > 3.0  # a window of a second, at most, is between hops
    assert text(driver, "heard-wrong") == ""
    assert "heard 0:" in text(driver, "heard")


def text(driver: Any, name: str) -> str:
    """What an element says."""
    found: str = driver.find_element("id", name).text
    return found
