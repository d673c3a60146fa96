"""A conversation in the playground about clips of one's own, as a person has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import soundfile

from tests.optional.browser.conftest import Browser, free_port, serving

pytestmark = pytest.mark.browser

LOUDNESS = {"quiet": 0.25, "loud": 0.5}
ENTER = "\ue007"  # as the WebDriver standard numbers its keys


@attrs.frozen
class Played:
    """A page, and the file in which stands what its questions gave the model."""

    address: str
    file: Path

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What each answer was given."""
        return list(map(json.loads, self.file.read_text("utf-8").splitlines()))


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    """The playground of a tiny base that chats and hears how loud a clip is."""
    port, file = free_port(), tmp_path / "calls.jsonl"
    command = [sys.executable, "-m", "tests.optional.browser.conversing", str(port), str(file)]
    with serving(command, port) as address:
        yield Played(address, file)


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """Two files of a tenth of a second, the quiet one first."""
    for name, level in LOUDNESS.items():
        soundfile.write(tmp_path / f"{name}.wav", np.full(800, level, np.float32), 8000)
    return [str(tmp_path / f"{name}.wav") for name in LOUDNESS]


def opened(browser: Browser, address: str) -> Any:
    """The tab in which one converses, ready for a message."""
    browser.open(address)
    browser.until(lambda d: d.find_elements("css selector", "button[role=tab]"))
    tabs = browser.driver.find_elements("css selector", "button[role=tab]")
    next(tab for tab in tabs if tab.text == "Conversation").click()
    browser.until(lambda d: d.find_element("css selector", "#message textarea").is_displayed())
    return browser.driver


def upload(browser: Browser, files: list[str]) -> None:
    """Put files beside the message, and wait until each is there."""
    field = browser.driver.find_element("css selector", "#message input[type=file]")
    field.send_keys("\n".join(files))
    thumbnails = "#message .thumbnail-item"
    browser.until(lambda d: len(d.find_elements("css selector", thumbnails)) == len(files))


def ask(
    browser: Browser, played: Played, text: str, answers: int, calls: int | None = None
) -> None:
    """Send a message, and wait until it is answered and the next can be written.

    Args:
        browser: that shows the page.
        played: the page.
        text: of the message.
        answers: that the conversation then has.
        calls: that the model then has answered; as many as answers if None.
    """
    wanted = answers if calls is None else calls
    field = browser.driver.find_element("css selector", "#message textarea")
    field.send_keys(text, ENTER)
    browser.until(lambda _: played.file.exists() and len(played.calls) == wanted)
    bots, mine = "#talk [data-testid=bot]", "#message textarea"
    browser.until(lambda d: len(d.find_elements("css selector", bots)) == answers)
    browser.until(
        lambda d: (
            d.find_element("css selector", mine).get_attribute("value") == ""
            and d.find_element("css selector", mine).is_enabled()
        )
    )


def test_one_goes_on_asking_about_two_clips(
    browser: Browser, played: Played, clips: list[str]
) -> None:
    """Law: in every turn the model hears both clips, in order, where the first message has them."""
    driver = opened(browser, played.address)
    upload(browser, clips)
    asked = ["what is this", "and this", "what"]
    for number, text in enumerate(asked, start=1):
        ask(browser, played, text, number)
        assert not driver.find_elements("css selector", "#told .badge")
    turn, first = ["<|im_start|>", "user"], ["<sound>"] * 4  # each clip's beginning and end
    for number, call in enumerate(played.calls, start=1):
        told = call["told"]
        assert call["clips"] == list(LOUDNESS.values())
        assert told[:9] == [*turn, *first, *asked[0].split()]
        assert told.count("<sound>") == len(first)
        starts = [n for n in range(len(told)) if told[n : n + 2] == turn]
        assert len(starts) == number
        words = asked[number - 1].split()
        assert told[starts[-1] :][-len(words) - 3 : -3] == words  # before what ends a turn
    shown = driver.find_elements("css selector", "#talk [data-testid=user]")
    assert len(shown) == len(clips) + len(asked)


def test_a_cleared_conversation_is_forgotten(
    browser: Browser, played: Played, clips: list[str]
) -> None:
    """Law: once the chat is emptied, by either button, the model is told nothing of it."""
    driver = opened(browser, played.address)
    upload(browser, clips)
    ask(browser, played, "what is this", 1)
    buttons = ("#talk button[aria-label=Clear], #talk button[title=Clear]", "#again")
    for calls, button in enumerate(buttons, start=2):
        browser.run("arguments[0].click()", driver.find_element("css selector", button))
        browser.until(lambda d: not d.find_elements("css selector", "#talk [data-testid=user]"))
        ask(browser, played, "what", 1, calls)
        assert played.calls[-1]["clips"] == []
        assert played.calls[-1]["told"].count("user") == 1


def test_no_button_sends_a_conversation_away(browser: Browser, played: Played) -> None:
    """Law: the page offers nothing that would take what was said to another host."""
    driver = opened(browser, played.address)
    ask(browser, played, "what is this", 1)
    buttons = driver.find_elements("css selector", "#talk button")
    labels = {button.get_attribute("aria-label") or button.text for button in buttons}
    assert labels == {"Clear", "Copy conversation", "Copy message"}
