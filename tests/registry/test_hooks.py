"""Events reach every hook that works, and one that does not is named."""

import sys
import warnings

import pytest

from safe_framework.hooks import hook_manager


@pytest.fixture
def manager(installed):
    """The manager that the fake distributions give, and what was warned about meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = hook_manager()
    return found, [str(warning.message) for warning in caught]


def test_an_event_reaches_an_installed_hook(manager):
    """A hook is called with the event's arguments."""
    manager[0].hook.safe_training_step(step=3, metrics={"loss": 0.5})
    assert sys.modules["acme_hooks"].seen[-1] == (3, {"loss": 0.5})


def test_a_hook_may_ignore_an_event(manager):
    """An event that nobody answers is no error."""
    assert manager[0].hook.safe_run_finished(run_folder="run", metrics={}) == []


def test_each_broken_hook_is_named_and_skipped(manager):
    """A hook that cannot be imported, or answers no event of ours, costs only itself."""
    first, second = sorted(manager[1])
    assert first == (
        "hooks `broken` of acme-safe 0.1 (acme_broken) are skipped:"
        " ModuleNotFoundError: No module named 'a_library_that_nobody_has'"
    )
    assert second.startswith(
        "hooks `unknown` of acme-safe 0.1 (acme_unknown_hook) are skipped:"
        " PluginValidationError: unknown hook 'safe_trainig_step'"
    )


def test_without_hooks_nothing_is_warned_about():
    """A plain installation has no hooks and no warnings."""
    assert hook_manager().hook.safe_training_step(step=0, metrics={}) == []
