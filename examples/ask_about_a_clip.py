"""Ask the quickstart's model about a clip, with its new modality shut, half open and open.

After `make demo`:

    .venv/bin/python examples/ask_about_a_clip.py runs/quickstart/adapter
"""

import argparse

from torch import Tensor

import safe_framework
from safe_framework.data.audio import read_audio
from safe_framework.utils.catalogue import recipe_path

CLIP = recipe_path("quickstart").parent.parent / "data" / "instruments" / "clips" / "violin-b4.ogg"
QUESTION = "What is playing?"


def main() -> None:
    """Load the adapter, ask at three gates, and show that off is the base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapter", help="the folder that a run wrote")
    parser.add_argument("--clip", default=CLIP, help="a sound of at most one second")
    chosen = parser.parse_args()

    model = safe_framework.load(chosen.adapter)
    model.print_trainable_parameters()
    batch = model.processor(question=QUESTION, audio=read_audio(chosen.clip, 16_000))
    for gate in (0.0, 0.5, 1.0):
        ids = model.generate(**batch, gate=gate, max_new_tokens=12, do_sample=False)
        print(f"gate {gate}: {text(model, ids)}")
    with model.off():
        ids = model.generate(**batch, max_new_tokens=12, do_sample=False)
    print(f"off     : {text(model, ids)}")


def text(model: safe_framework.SafeModel, ids: Tensor) -> str:
    """Question and answer in one line: where the answer begins depends on the markers."""
    return " ".join(model.processor.decode(ids[0], skip_special_tokens=True).split())


if __name__ == "__main__":
    main()
