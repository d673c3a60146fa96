"""What was found, and its form on disk (``certificate.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.json import make_converter

from safe_framework.evaluation.base_drift_changed import BaseChanged

FILE = "certificate.json"
FORMAT = 1


class Verdict(Enum):
    """What a check says of a law."""

    HOLDS = "holds"
    NOT_APPLICABLE = "not applicable"
    WAIVED = "waived"
    FAILS = "fails"


@attrs.frozen
class Law:
    """One law, and what became of it.

    Attributes:
        key: of docs/laws.md, such as ``"L2"``.
        name: what it demands, in a few words.
        verdict: whether it holds here.
        detail: what was compared, or why the law does not apply.
        findings: each way in which it fails, with the place.
    """

    key: str
    name: str
    verdict: Verdict
    detail: str
    findings: tuple[str, ...] = ()


@attrs.frozen
class Comparison:
    """One call of the model with its senses off, beside the same call of the bare base.

    Attributes:
        call: name of the call.
        off: in which way the senses were off.
        mode: of gradients: ``"no_grad"``, ``"inference"`` or ``"grad"``.
        same: whether every bit was the same.
        note: the first difference, or the error that both raised.
        operations: how many both ran, where they were traced.
        trace: SHA-256 of the operations, where they were traced.
    """

    call: str
    off: str
    mode: str
    same: bool
    note: str = ""
    operations: int | None = None
    trace: str | None = None


@attrs.frozen
class Certificate:
    """What ``verify`` found of one model.

    Attributes:
        format: version of this layout.
        made: when, in UTC.
        versions: of Python and of the libraries that compute.
        device: where the base is.
        dtype: of its weights.
        attention: its attention implementation.
        calls: how many were asked for: ``"full"`` or ``"quick"``.
        inputs: ``"given"`` by the caller, or ``"made up"``.
        base: class, name and fingerprints of the base and its tokenizer.
        modalities: gate, fused layers and fingerprint of each sense.
        laws: each law with its verdict.
        comparisons: each call that was compared with the bare base.
        seconds: how long it took.
        base_changed: what stage B did to the base; None where L1 and L2 were asked.
    """

    format: int
    made: str
    versions: Mapping[str, str]
    device: str
    dtype: str
    attention: str
    calls: str
    inputs: str
    base: Mapping[str, str]
    modalities: Mapping[str, Mapping[str, str]]
    laws: tuple[Law, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float
    base_changed: BaseChanged | None = None

    @property
    def holds(self) -> bool:
        """Whether no law fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Law, ...]:
        """The laws that fail."""
        return tuple(law for law in self.laws if law.verdict is Verdict.FAILS)

    def to_json(self) -> str:
        """The content of ``certificate.json``."""
        return _CONVERTER.dumps(self, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what ``to_json`` wrote."""
        return _CONVERTER.loads(text, cls)

    def write(self, path: Path) -> Path:
        """Write it to ``path``, in one step."""
        whole = path.with_name(f".{path.name}")
        whole.write_text(self.to_json(), "utf-8")
        return whole.replace(path)


_CONVERTER = make_converter()
_IF_CHANGED: Any = {"base_changed": override(omit_if_default=True)}
_CONVERTER.register_unstructure_hook(
    Certificate, make_dict_unstructure_fn(Certificate, _CONVERTER, **_IF_CHANGED)
)


def judged(key: str, name: str, detail: str, findings: list[str]) -> Law:
    """A law that holds if there are no findings."""
    verdict = Verdict.FAILS if findings else Verdict.HOLDS
    return Law(key, name, verdict, detail, tuple(findings))


def not_applicable(key: str, name: str, why: str) -> Law:
    """A law that cannot be asked of this model."""
    return Law(key, name, Verdict.NOT_APPLICABLE, why)
