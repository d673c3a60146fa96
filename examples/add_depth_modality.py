"""Give a language model a sense of depth: the tour to follow when you add a sense of your own.

    pip install -c .ci/constraints.txt -e '.[demo]'
    python examples/add_depth_modality.py

A frozen SmolLM2-135M-Instruct learns to say what is nearest in a depth map, and how far away it
is. Where PyBullet is installed, the maps are rendered anew from meshes; otherwise those that ship
are used. The adapter, its report and its certificate are written to `runs/depth`.

To add a sense of your own, four things are needed, and this file shows each:

1. an encoder, which turns a sample into frames: `depth` ships, and
   `plugins/safe_framework_plugins/encoders/depth.py` is how it looks inside;
2. data: a JSONL file whose rows have a question, an answer and a file with a sample;
3. a recipe, which names them: `registry/safe_framework_registry/recipes/depth.toml`;
4. a run, which trains, measures and saves.
"""

import argparse
from importlib import util
from pathlib import Path

from depth_scenes import write
from rich.console import Console

import safe_framework
from safe_framework import SafeModel
from safe_framework.catalogue import recipe_path
from safe_framework.certificate.result import FILE, Certificate
from safe_framework.certificate.summary import summary
from safe_framework.data.examples import Example, distinct, read_examples
from safe_framework.evaluation import Evaluation
from safe_framework.evaluation.answers import answer, without
from safe_framework.run import ADAPTER, METRICS, run_recipe

SHIPPED = "../data/depth"


def recipe_with_maps(source: Path, folder: Path, render: bool) -> Path:
    """The recipe in `folder`, on maps that are rendered there or on those that ship."""
    maps = (source.parent / SHIPPED).resolve()
    if render:
        maps = folder / "maps"
        write(maps)
    text = source.read_text("utf-8")
    text = text.replace(f'"{SHIPPED}/', f'"{maps.resolve()}/')
    text = text.replace('"../data/', f'"{(source.parent.parent / "data").resolve()}/')
    path = folder / "depth.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def ask(model: SafeModel, recipe: Path, count: int = 3) -> list[tuple[Example, str, str]]:
    """Test questions about a few scenes, with the answers that see and those that do not."""
    data = model.recipe.data
    assert data is not None
    encoders = {name: model.modality(name).encoder for name in model.modalities}
    examples = read_examples(recipe.parent / data.test, encoders, data.prompt)
    maps = distinct([str(example.files["depth"]) for example in examples])
    shown = set(maps[:: max(1, len(maps) // count)][:count])
    chosen = [example for example in examples if str(example.files["depth"]) in shown]
    seeing = answer(model, chosen)
    blind = answer(model, without(chosen, "depth"))
    return list(zip(chosen, seeing, blind, strict=True))


def certify(model: SafeModel, adapter: Path) -> Certificate:
    """Compare the trained model, switched off, with its bare base, bit for bit."""
    certificate = safe_framework.verify(model, calls="quick")
    certificate.write(adapter / FILE)
    return certificate


def main() -> None:
    """Train, measure, ask, certify."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=recipe_path("depth"))
    parser.add_argument("--output", type=Path, default=Path("runs/depth"))
    parser.add_argument("--shipped", action="store_true", help="use the maps that ship")
    chosen = parser.parse_args()
    console = Console(highlight=False)

    render = not chosen.shipped and util.find_spec("pybullet") is not None
    recipe = recipe_with_maps(chosen.recipe, chosen.output, render)
    run_recipe(str(recipe), output=chosen.output)

    model = safe_framework.load(chosen.output / ADAPTER)
    model.print_trainable_parameters()
    for example, seeing, blind in ask(model, recipe):
        question = example.prompt.partition("user\n")[2].partition("<")[0] or example.prompt
        console.print(f"{question} {seeing!r}, right is {example.answer!r}; blind: {blind!r}")
    certificate = certify(model, chosen.output / ADAPTER)
    console.print(summary(certificate))

    found = Evaluation.from_json((chosen.output / METRICS).read_text("utf-8"))
    over = found.gain.over_shuffled
    console.print(
        f"gain over shuffled depth       {over.value:.3f} [{over.low:.3f}, {over.high:.3f}]"
    )
    absent = found.retention.absent
    same = "bit for bit" if absent.identical else "NOT bit for bit"
    console.print(f"retention, depth absent        {absent.agreement:.3f}, {same}")
    console.print(f"... beside irrelevant depth    {found.retention.overall.agreement.value:.3f}")
    console.print(f"every law of the certificate   {'holds' if certificate.holds else 'FAILS'}")
    console.print(f"adapter                        {chosen.output / ADAPTER}")


if __name__ == "__main__":
    main()
