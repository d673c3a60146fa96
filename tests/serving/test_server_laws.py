"""``safe verify --server``: an honest server is certified, and one that leaks is caught."""

from __future__ import annotations

from typing import Any

import pytest

from safe_framework.core.model import SafeModel
from safe_framework.serving.server_laws import ServerClient, server_laws
from safe_framework.verification.certificate import Verdict
from tests.serving.hearing import hearing_model, serving


def verdicts(model: SafeModel, reference: SafeModel | None) -> dict[str, Verdict]:
    """What is said of a server of the model, by the name of each law."""
    with serving(model) as (url, _):
        laws = server_laws(ServerClient(url), reference)
    return {law.name: law.verdict for law in laws}


def test_an_honest_server_holds_every_law() -> None:
    """Law: of a server as it is, all laws hold, bit for bit beside the bare base."""
    model = hearing_model()
    with serving(model) as (url, _):
        laws = server_laws(ServerClient(url), model)
    assert {law.verdict for law in laws} == {Verdict.HOLDS}
    assert len(laws) == 5
    assert [law.detail for law in laws if "the base" in law.name] == ["4 answers, bit for bit"]


def test_a_leak_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a server that lets one request's sample act in the next one's answer fails."""
    model = hearing_model()
    prepare: Any = model._prepare
    kept = dict[str, Any]()

    def leaking(args: Any, inputs: Any, gate: Any) -> Any:
        """Keep the last sample, and give it to whoever has none."""
        samples = {key: value for key, value in inputs.items() if key.startswith("audio__")}
        if samples:
            kept.update(samples)
        elif kept:
            inputs, gate = {**inputs, **kept}, None
        return prepare(args, inputs, gate)

    monkeypatch.setattr(model, "_prepare", leaking)
    found = verdicts(model, None)
    assert found["no answer knows the sample of another"] is Verdict.FAILS


def test_another_base_is_caught() -> None:
    """Law: a server whose words are not the base's fails beside it."""
    other = hearing_model()
    other.base.lm_head.weight.data *= 1.1  # type: ignore[union-attr, operator]  # a Llama's
    assert verdicts(other, hearing_model())["without a sample it is the base"] is Verdict.FAILS
