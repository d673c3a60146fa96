"""A small base that sees: SmolLM2-135M and DINOv2 ViT-S/14, composed on captioned stamps.

The pictures are those of Debian's `tuxpaint-stamps-default` (GPL-2). Unpack it anywhere:

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python examples/compose_stamps.py stamps runs/stamps
    safe compose runs/stamps/recipe.toml

The script writes `train.jsonl`, `test.jsonl` and `recipe.toml`; the command trains the projector
between the two parts, says how well it captions the held-out pictures, and writes the base to
`runs/stamps/base`, which a recipe then names as any other base.
"""

import argparse
import json
import random
from pathlib import Path

HELD_OUT, LONGEST, STEPS = 60, 8, 400

RECIPE = """\
# SmolLM2-135M takes images through DINOv2, and audio through Whisper tiny.en.

[base]
model = "{output}/base"

[base.compose]
vision = "{vision}"
language = "smollm2-135m-instruct-q4"
train = "train.jsonl"
test = "test.jsonl"
prompt = "<|im_start|>user\\n<image>What is this?<|im_end|>\\n<|im_start|>assistant\\n"
image_size = 70
layer = 8
align_steps = 100
max_steps = {steps}
batch_size = 8
learning_rate = 1e-3

[modalities.audio]
encoder = {{ use = "whisper", model = "whisper-tiny.en", layer = 1, seconds = 1.0 }}
projector = {{ use = "standard", tokens = 4, hidden_dim = 256, dropout = 0.2, noise = 0.4 }}
fusion = {{ use = "lora", layers = [16, 20, 24], rank = 16, alpha = 32.0 }}
"""


def captioned(root: Path) -> list[tuple[Path, str]]:
    """Every picture with a caption of at most eight words, but for mirrored copies."""
    found = []
    for picture in sorted(root.rglob("*.png")):
        text = picture.with_suffix(".txt")
        if picture.stem.endswith(("_mirror", "_flip")) or not text.is_file():
            continue
        caption = text.read_text("utf-8", "replace").partition("\n")[0].strip()
        if 0 < len(caption.split()) <= LONGEST:
            found.append((picture.absolute(), caption))
    return found


def prepare(stamps: Path, output: Path, vision: str = "dinov2-small", steps: int = STEPS) -> None:
    """Write `train.jsonl`, `test.jsonl` and `recipe.toml` into a folder."""
    rows = captioned(stamps)
    random.Random(0).shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    for name, part in (("test", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        lines = [json.dumps({"image": str(file), "caption": text}) for file, text in part]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{len(part)} pictures in {output / name}.jsonl")
    recipe = RECIPE.format(output=output, vision=vision, steps=steps)
    (output / "recipe.toml").write_text(recipe, "utf-8")


def main() -> None:
    """Write the two files of captions, and the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stamps", type=Path, help="where the package was unpacked")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--vision", default="dinov2-small", help="card, folder or hub id")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    prepare(chosen.stamps, chosen.output, chosen.vision, chosen.steps)


if __name__ == "__main__":
    main()
