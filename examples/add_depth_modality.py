"""Give a language model a depth modality: the tour to follow when you add one of your own.

    pip install -c .ci/constraints.txt -e '.[demo]'
    python examples/add_depth_modality.py

A frozen SmolLM2-135M-Instruct learns to say what is nearest in a depth map, and how far away it
is. Where PyBullet is installed, the maps are rendered anew from meshes; otherwise those that ship
are used. The adapter, its report and its certificate are written to `runs/depth`.

    python examples/add_depth_modality.py --vision

gives the same modality to a base that sees: SmolLM2 and DINOv2, composed on captioned pictures as
`examples/compose_stamps.py` says, trained for fewer steps, and written to `runs/depth-vision`. With
depth switched off, pictures must get bit for bit the composed base's captions.

To add a modality of your own, four things are needed, and this file shows each:

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
from vision_base import captions_with_depth_off, composed

import safe_framework
from safe_framework import SafeModel
from safe_framework.config.read import read_recipe
from safe_framework.core.adapter import CERTIFICATE
from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.tasks import unique
from safe_framework.errors import SafeError
from safe_framework.evaluation.answers import answer, without_modality
from safe_framework.evaluation.results import Evaluation
from safe_framework.runs.run import METRICS, run_recipe
from safe_framework.utils.catalogue import recipe_path
from safe_framework.utils.run_folder import ADAPTER
from safe_framework.verification.certificate import Certificate, summary

SHIPPED = "../data/depth"
VISION_STEPS = 50


def recipe_with_maps(source: Path, folder: Path, render: bool, base: Path | None = None) -> Path:
    """The recipe in `folder`, on maps that are rendered there or on those that ship.

    With `base`, a folder, the modality is given to that one instead, and trained for fewer steps.
    """
    maps = (source.parent / SHIPPED).resolve()
    if render:
        maps = folder / "maps"
        write(maps)
    text = source.read_text("utf-8")
    text = text.replace(f'"{SHIPPED}/', f'"{maps.resolve()}/')
    text = text.replace('"../data/', f'"{(source.parent.parent / "data").resolve()}/')
    if base is not None:
        recipe = read_recipe(str(source))
        text = text.replace(f'model = "{recipe.base.model}"', f'model = "{base.resolve()}"', 1)
        steps = min(VISION_STEPS, recipe.training.max_steps)
        text = text.replace(f"max_steps = {recipe.training.max_steps}", f"max_steps = {steps}")
    path = folder / "depth.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def ask(model: SafeModel, recipe: Path, count: int = 3) -> list[tuple[Example, str, str]]:
    """Test questions about a few scenes, with the answers that see and those that do not."""
    examples = RecipeData(read_recipe(str(recipe))).examples("test", model.encoders)
    maps = unique([str(example.files["depth"]) for example in examples])
    shown = set(maps[:: max(1, len(maps) // count)][:count])
    chosen = [example for example in examples if str(example.files["depth"]) in shown]
    seeing = answer(model, chosen)
    blind = answer(model, without_modality(chosen, "depth"))
    return list(zip(chosen, seeing, blind, strict=True))


def show_pictures(model: SafeModel, folder: Path, example: Example, console: Console) -> bool:
    """Whether pictures get bit for bit the composed base's captions while depth is off."""
    depth = model.processor.modality("depth", [example.samples["depth"]])
    seen = captions_with_depth_off(model, folder, depth)
    for picture in seen:
        console.print(f"a picture of {picture.caption!r}: {picture.answer!r}", markup=False)
    return all(picture.same for picture in seen)


def certify(model: SafeModel, adapter: Path) -> Certificate:
    """Compare the trained model, switched off, with its unwrapped base, bit for bit."""
    certificate = safe_framework.verify(model, calls="quick")
    certificate.write(adapter / CERTIFICATE)
    return certificate


def main() -> None:
    """Train, measure, ask, certify."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=recipe_path("depth"))
    parser.add_argument("--output", type=Path, help="default: runs/depth or runs/depth-vision")
    parser.add_argument("--shipped", action="store_true", help="use the maps that ship")
    parser.add_argument("--vision", action="store_true", help="on a base that sees pictures")
    parser.add_argument(
        "--composed", type=Path, default=Path("runs/stamps"), help="the composed base's folder"
    )
    parser.add_argument(
        "--stamps", type=Path, default=Path("stamps"), help="pictures to compose it with"
    )
    chosen = parser.parse_args()
    console = Console(highlight=False)
    output = chosen.output or Path("runs/depth-vision" if chosen.vision else "runs/depth")
    try:
        base = composed(chosen.composed, chosen.stamps, console) if chosen.vision else None
    except SafeError as error:
        parser.error(str(error))

    render = not chosen.shipped and util.find_spec("pybullet") is not None
    recipe = recipe_with_maps(chosen.recipe, output, render, base)
    run_recipe(str(recipe), output=output)
    report(output, recipe, chosen.composed if chosen.vision else None, console)


def report(output: Path, recipe: Path, pictures: Path | None, console: Console) -> None:
    """Ask the trained model, certify it, and say what it gained and kept.

    Args:
        output: the run's folder.
        recipe: that was run.
        pictures: the folder of the composed base, if the base is one.
        console: to print on.
    """
    model = safe_framework.load(output / ADAPTER)
    model.print_trainable_parameters()
    asked = ask(model, recipe)
    for example, seeing, blind in asked:
        question = example.prompt.partition("user\n")[2].partition("<")[0] or example.prompt
        console.print(f"{question} {seeing!r}, right is {example.answer!r}; blind: {blind!r}")
    kept = pictures is None or show_pictures(model, pictures, asked[0][0], console)
    certificate = certify(model, output / ADAPTER)
    console.print(summary(certificate))

    found = Evaluation.from_json((output / METRICS).read_text("utf-8"))
    over = found.gain.over_shuffled
    console.print(
        f"gain over shuffled depth       {over.value:.3f} [{over.low:.3f}, {over.high:.3f}]"
    )
    absent = found.retention.absent
    same = "bit for bit" if absent.identical else "NOT bit for bit"
    console.print(f"retention, depth absent        {absent.agreement:.3f}, {same}")
    console.print(f"... beside irrelevant depth    {found.retention.overall.agreement.value:.3f}")
    if pictures is not None:
        bits = "bit for bit" if kept else "NOT bit for bit"
        console.print(f"captions, depth switched off   {bits} the composed base's")
    head = model.modality("depth").relevance
    if head is not None and head.statement is not None:
        console.print(head.statement["sentence"], soft_wrap=True)
    console.print(f"every law of the certificate   {'holds' if certificate.holds else 'FAILS'}")
    console.print(f"adapter                        {output / ADAPTER}")


if __name__ == "__main__":
    main()
