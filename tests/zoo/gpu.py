"""``make check-gpu``: the certificate on a CUDA device, written into docs/compatibility.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import attrs
import torch
from rich.console import Console

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.verification.certificate import Certificate
from safe_framework.verification.target import with_made_up_sense
from safe_framework.verification.verify import verify
from tests.zoo.examine import train
from tests.zoo.models import tiny
from tests.zoo.page import with_gpu

PAGE = Path("docs/compatibility.md")
ADAPTER = Path("runs/quickstart/adapter")
ARCHITECTURES = (
    ("causal", "llama"),
    ("causal", "gpt2"),
    ("causal", "mamba"),
    ("causal", "mixtral"),
    ("image_text", "gemma3"),
    ("image_text", "llava"),
    ("image_text", "qwen2_vl"),
    ("seq2seq", "t5"),
)
DTYPES = (torch.float32, torch.bfloat16)


@attrs.frozen
class Measured:
    """One model on the device.

    Attributes:
        name: of the architecture or adapter.
        certificate: what was found.
        attention: the attention operations that a forward call ran.
    """

    name: str
    certificate: Certificate
    attention: tuple[str, ...]


def main() -> int:
    """Measure on the device; 1 if a law fails anywhere."""
    parser = argparse.ArgumentParser(prog="check-gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    arguments = parser.parse_args()
    console = Console()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        console.print("there is no CUDA device here: nothing was measured")
        return 1
    found = []
    for measured in measure(arguments.device, arguments.adapter):
        found.append(measured)
        for law in measured.certificate.failures:
            console.print(f"{measured.name}: {law.key} {law.name} fails: {law.findings[0]}")
    before = arguments.page.read_text("utf-8")
    arguments.page.write_text(with_gpu(before, section(found)), "utf-8")
    console.print(f"wrote {arguments.page}: {len(found)} models")
    return 0 if all(measured.certificate.holds for measured in found) else 1


def measure(device: str, adapter: Path) -> Iterator[Measured]:
    """The certificates of every architecture in every type of numbers, and of the adapter."""
    for task, kind in ARCHITECTURES:
        for dtype in DTYPES:
            base = tiny(task, kind)
            inputs = {
                key: value.to(device, dtype) if value.is_floating_point() else value.to(device)
                for key, value in base.inputs.items()
            }
            model = with_made_up_sense(base.model.to(device, dtype))
            train(model)
            certificate = verify(model, inputs=inputs)
            yield Measured(kind, certificate, _attention(model, inputs))
    model = safe_framework.load(adapter, device=device)
    batch = dict(model.processor(["Which instrument is this?"]).to(device))
    yield Measured("quickstart's adapter", verify(model), _attention(model, batch))


def _attention(model: SafeModel, inputs: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """The names of the attention kernels of a forward call without padding."""
    plain = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with torch.profiler.profile() as profile, torch.no_grad():
        model(**plain)
    names = {event.key for event in profile.key_averages()}
    return tuple(sorted(name for name in names if "dot_product" in name and "_flash" in name))


def section(found: list[Measured]) -> str:
    """What the page says of the device."""
    device = found[0].certificate.device
    lines = [
        f"Measured on {device} with torch {version('torch')} and transformers "
        f"{version('transformers')}.",
        "",
        "| model | numbers | holds | calls compared | flash attention | seconds |",
        "|---|---|---|---|---|---|",
        *map(_row, found),
    ]
    return "\n".join(lines) + "\n"


def _row(measured: Measured) -> str:
    certificate = measured.certificate
    fails = ", ".join(f"{law.key} {law.name}" for law in certificate.failures)
    cells = [
        f"`{measured.name}`",
        certificate.dtype,
        f"**no**: {fails}" if fails else "yes",
        str(len(certificate.comparisons)),
        "yes" if measured.attention else "no",
        f"{certificate.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
