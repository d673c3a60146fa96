"""Two modalities that were trained apart, on one base: each alone, both, and what that costs.

After `make demo` and `python examples/add_depth_modality.py`:

    python examples/two_modalities.py runs/quickstart runs/depth

Both adapters are loaded together. Switched alone, each must give bit for bit the logits that it
gives as the only one. The first table says how many test questions, asked in as many forms as in
each run, are answered right; what is lost is what a modality answers right alone and no longer
beside an active other one. Where both have a relevance head, columns have the gates decide by
themselves, and a second table says how often each opens: for questions about one modality, about
both, and about neither, of which the first says how many whole answers stay the base's.
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
from safe_framework.data.examples import Example
from safe_framework.data.irrelevant import TEST, read_irrelevant
from safe_framework.evaluation.answers import answer, model_inputs
from safe_framework.evaluation.metrics import exact_match
from safe_framework.evaluation.read_once import prompts_read_once
from safe_framework.evaluation.relevance import opens
from safe_framework.evaluation.results import WHOLE_ANSWER
from safe_framework.runs.finished import RunFolder, open_run
from safe_framework.utils.catalogue import FOLDER
from safe_framework.utils.tensors import bitwise_equal

COMPARED = 8  # questions of each modality whose logits are compared
BATCH = 32  # questions whose gates are asked together
BOTH, NEITHER = "both", "neither"
ABOUT_BOTH = (
    "What do you hear, and how far away is the nearest thing?",
    "Which instrument is playing, and what is closest to the camera?",
    "Name the sound and the nearest object.",
    "Tell me what you hear and what the depth map shows nearest.",
    "Is it a piano that plays, and is there a chair within two metres?",
    "First say what the clip is, then how far the closest surface is.",
    "What makes this sound, and what stands in front of me?",
    "Listen, look at the depth map, and name what you hear and what is nearest.",
)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, evenly from the first to the last."""
    return [items[index * len(items) // count] for index in range(min(count, len(items)))]


def questions(runs: Mapping[str, RunFolder], count: int) -> dict[str, list[Example]]:
    """Test questions of each run, each beside a sample of every other modality too."""
    own = {name: spread(run.examples(name), count) for name, run in runs.items()}
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
    together: SafeModel, runs: Mapping[str, RunFolder], asked: Mapping[str, Sequence[Example]]
) -> dict[str, bool]:
    """Whether each modality, the other one off, says bit for bit what its adapter says by itself.

    The model with both modalities is taken apart: its base goes on to carry one adapter at a time.
    """
    found = {}
    for name in runs:
        others = [other for other in together.modalities if other != name]
        with together.off(*others):
            found[name] = logits(together, asked[name][:COMPARED], name)
    base, tokenizer = together.detach(), together.base_processor
    same = {}
    for name, run in runs.items():
        single = safe_framework.load(run.folder, base=base, tokenizer=tokenizer)
        same[name] = bitwise_equal(found[name], logits(single, asked[name][:COMPARED], name))
        single.detach()
    return same


Gates = dict[str, Any]


def right(model: SafeModel, asked: Sequence[Example], gates: Gates) -> float:
    """The share of right answers at these gates."""
    answers = answer(model, asked, gate=gates)
    return float(exact_match(answers, [example.answer for example in asked]).mean())


def composition(
    model: SafeModel, asked: Mapping[str, Sequence[Example]], nothing: Sequence[Example]
) -> Table:
    """A row for the questions of each modality at each gate, columns for it alone and with both."""
    names = list(model.modalities)
    off: Gates = dict.fromkeys(names, 0.0)
    table = Table("questions about", "gate", "neither on", "alone", "both on", "lost")
    none = {name: right(model, examples, off) for name, examples in asked.items()}
    base = answer(model, nothing, gate=off, max_new_tokens=WHOLE_ANSWER)
    for gate in (1.0, "auto") if decides(model) else (1.0,):
        both: Gates = dict.fromkeys(names, gate)
        for name, examples in asked.items():
            alone, beside = (right(model, examples, gates) for gates in ({**off, name: gate}, both))
            shares = (none[name], alone, beside, alone - beside)
            table.add_row(name, str(gate), *(f"{share:.3f}" for share in shares))
        given = answer(model, nothing, gate=both, max_new_tokens=WHOLE_ANSWER)
        kept = float(exact_match(given, base).mean())
        table.add_row(f"{NEITHER}, as the base", str(gate), "1.000", "", f"{kept:.3f}", "")
    return table


def decides(model: SafeModel) -> bool:
    """Whether every modality has a relevance head."""
    return all(model.modality(name).relevance is not None for name in model.modalities)


def opened(
    model: SafeModel, asked: Mapping[str, Sequence[Example]], nothing: Sequence[Example]
) -> Table:
    """How many of the questions each gate opens on."""
    table = Table("opens for questions about", *model.modalities)
    for about, examples in {**asked, BOTH: of_texts(model, ABOUT_BOTH), NEITHER: nothing}.items():
        counts = [sum(opens(model, name, examples, batch_size=BATCH)) for name in model.modalities]
        table.add_row(about, *(f"{count} of {len(examples)}" for count in counts))
    return table


def of_texts(
    model: SafeModel, texts: Sequence[str], beside: Sequence[Example] = ()
) -> list[Example]:
    """Questions in the prompt of the model, beside the samples of these examples in turn."""
    prompt = model.processor.template
    samples = [one.samples for one in beside] or [{}]
    return [
        Example(prompt.replace("{question}", text), "", samples[number % len(samples)])
        for number, text in enumerate(texts)
    ]


def main() -> None:
    """Load both adapters, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path, help="the run of the quickstart, or its adapter")
    parser.add_argument("depth", type=Path, help="the run of add_depth_modality.py")
    parser.add_argument("--questions", type=int, default=144, help="asked of each modality")
    chosen = parser.parse_args()
    console = Console(highlight=False)

    opened_runs = [open_run(path) for path in (chosen.audio, chosen.depth)]
    runs = {run.evaluation.modality: run for run in opened_runs}
    model = safe_framework.load(*(run.folder for run in opened_runs))
    asked = questions(runs, chosen.questions)
    (bank,) = read_irrelevant(["everyday"], FOLDER)
    nothing = of_texts(model, spread(bank.of(TEST), chosen.questions), next(iter(asked.values())))
    with prompts_read_once(model):
        console.print(composition(model, asked, nothing))
    if decides(model):
        console.print(opened(model, asked, nothing))
    for name, same in alone_is_as_before(model, runs, asked).items():
        words = "bit for bit as before" if same else "NOT as before"
        console.print(f"{name} alone, beside the other adapter: {words}")


if __name__ == "__main__":
    main()
