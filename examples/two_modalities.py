"""Two modalities that were trained apart, on one base: each alone, both, and what that costs.

After `make demo` and `python examples/add_depth_modality.py`:

    python examples/two_modalities.py runs/quickstart/adapter runs/depth/adapter

Both adapters are loaded together. Switched alone, each must give bit for bit the logits that it
gives as the only one. The table says how many answers are right in every combination of modalities;
interference is what a modality loses when the other one is active beside it. Where both have a
relevance head, a column has both gates decide by themselves, and a row says how many whole answers
to questions about neither stay the base's.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import safe_framework
from safe_framework import SafeModel
from safe_framework.data.examples import Example, read_examples
from safe_framework.data.irrelevant import TEST, read_irrelevant
from safe_framework.evaluation.answers import answer, model_inputs
from safe_framework.evaluation.metrics import exact_match
from safe_framework.evaluation.results import WHOLE_ANSWER
from safe_framework.utils.catalogue import FOLDER
from safe_framework.utils.tensors import bitwise_equal

TESTS = {"audio": FOLDER / "data/instruments/test.jsonl", "depth": FOLDER / "data/depth/test.jsonl"}
COMPARED = 8  # questions of each modality whose logits are compared


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, evenly from the first to the last."""
    return [items[index * len(items) // count] for index in range(min(count, len(items)))]


def questions(model: SafeModel, tests: Mapping[str, Path], count: int) -> dict[str, list[Example]]:
    """Some test questions of each modality, each beside a sample of every other modality too."""
    encoders = model.encoders
    template = model.processor.template
    own = {name: spread(read_examples(tests[name], encoders, template), count) for name in tests}
    return {
        name: [
            attrs.evolve(
                example,
                samples={
                    other: rows[index % len(rows)].samples[other] for other, rows in own.items()
                },
            )
            for index, example in enumerate(rows)
        ]
        for name, rows in own.items()
    }


@torch.no_grad()
def logits(model: SafeModel, asked: Sequence[Example], name: str) -> Tensor:
    """What the model says with the modality `name` alone."""
    samples = [{name: example.samples[name]} for example in asked]
    batch = model_inputs(model, [example.prompt for example in asked], samples)
    found: Tensor = model(**batch).logits
    return found


def alone_is_as_before(
    together: SafeModel, folders: Mapping[str, Path], asked: Mapping[str, Sequence[Example]]
) -> dict[str, bool]:
    """Whether each modality, the other one off, says bit for bit what its adapter says by itself.

    The model with both modalities is taken apart: its base goes on to carry one adapter at a time.
    """
    found = {}
    for name in folders:
        others = [other for other in together.modalities if other != name]
        with together.off(*others):
            found[name] = logits(together, asked[name][:COMPARED], name)
    base, tokenizer = together.detach(), together.base_processor
    same = {}
    for name, folder in folders.items():
        single = safe_framework.load(folder, base=base, tokenizer=tokenizer)
        same[name] = bitwise_equal(found[name], logits(single, asked[name][:COMPARED], name))
        single.detach()
    return same


Gates = Mapping[str, Any]


def right(model: SafeModel, asked: Sequence[Example], gate: Gates) -> float:
    """The share of right answers at these gates."""
    answers = answer(model, asked, gate=gate)
    return float(exact_match(answers, [example.answer for example in asked]).mean())


def composition(model: SafeModel, asked: Mapping[str, Sequence[Example]]) -> Table:
    """A row for the questions of each modality, a column for each combination of modalities."""
    names = list(model.modalities)
    on = {"neither": [], **{f"{name} alone": [name] for name in names}, "both": names}
    gates: dict[str, Gates] = {
        words: {name: float(name in enabled) for name in names} for words, enabled in on.items()
    }
    if all(model.modality(name).relevance is not None for name in names):
        gates["both, auto"] = dict.fromkeys(names, "auto")
    table = Table("questions about", *gates, "interference")
    for name, examples in asked.items():
        shares = {words: right(model, examples, gate) for words, gate in gates.items()}
        lost = shares[f"{name} alone"] - list(shares.values())[-1]
        table.add_row(name, *(f"{share:.3f}" for share in shares.values()), f"{lost:.3f}")
    if "both, auto" in gates:
        nothing = about_nothing(model, next(iter(asked.values())))
        base = answer(model, nothing, gate=gates["neither"], max_new_tokens=WHOLE_ANSWER)
        kept = [
            answer(model, nothing, gate=gate, max_new_tokens=WHOLE_ANSWER)
            for gate in gates.values()
        ]
        same = [float(exact_match(some, base).mean()) for some in kept]
        table.add_row("neither, as the base", *(f"{share:.3f}" for share in same), "")
    return table


def about_nothing(model: SafeModel, beside: Sequence[Example]) -> list[Example]:
    """Everyday questions, each beside the samples of one of these."""
    (bank,) = read_irrelevant(["everyday"], FOLDER)
    texts = spread(bank.of(TEST), len(beside))
    prompt = model.processor.template
    return [
        Example(prompt.replace("{question}", text), "", one.samples)
        for text, one in zip(texts, beside, strict=False)
    ]


def main() -> None:
    """Load both adapters, compare, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path, help="the adapter of the quickstart")
    parser.add_argument("depth", type=Path, help="the adapter of add_depth_modality.py")
    parser.add_argument("--questions", type=int, default=36, help="asked of each modality")
    for name, path in TESTS.items():
        parser.add_argument(f"--{name}-test", type=Path, default=path)
    chosen = parser.parse_args()
    console = Console(highlight=False)

    model = safe_framework.load(chosen.audio, chosen.depth)
    tests = {"audio": chosen.audio_test, "depth": chosen.depth_test}
    asked = questions(model, tests, chosen.questions)
    console.print(composition(model, asked))
    folders = {"audio": chosen.audio, "depth": chosen.depth}
    for name, same in alone_is_as_before(model, folders, asked).items():
        words = "bit for bit as before" if same else "NOT as before"
        console.print(f"{name} alone, beside the other adapter: {words}")


if __name__ == "__main__":
    main()
