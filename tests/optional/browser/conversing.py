"""Serves the playground of a tiny base that chats, and notes what its questions give the model.

Run as ``python -m tests.optional.browser.conversing PORT FILE``: a process of its own, since a page
leaves threads and sockets behind. ``FILE`` gets a JSON line for each answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safe_framework.core.model import SafeModel
from safe_framework.serving.playground import playground
from tests.support.chats import speaking
from tests.support.levels import LevelEncoder
from tests.support.toys import ToyFusion, ToyProjector, llama


def hearing() -> SafeModel:
    """A base that chats and hears how loud each clip is, at its place in the text."""
    words = speaking("chatml")
    model = SafeModel(llama(vocab_size=len(words), max_position_embeddings=512), words)
    encoder = LevelEncoder()
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion()}
    model.add_modality("sound", encoder=encoder, **parts, markers=True)
    return model


def noted(model: SafeModel, call: dict[str, Any]) -> dict[str, Any]:
    """What an answer is given: its words, ``<sound>`` at the place of each clip, and the clips."""
    ids = call["input_ids"]
    words = model.processor.markers.words(ids)[0].tolist()
    told = [
        model.tokenizer.decode([one]) if word else "<sound>"
        for one, word in zip(ids[0].tolist(), words, strict=True)
    ]
    present = call.get("sound__present", ids.new_zeros(1, 0))[0]
    clips = call["sound__values"][0] if len(present) else ()
    assert present.tolist() == [True] * len(clips)
    return {"told": told, "clips": [round(float(clip[40:60].mean()), 2) for clip in clips]}


def main(port: int, file: Path) -> None:
    """Serve until the process is ended."""
    model = hearing()
    generate = model.generate

    def generate_and_note(**inputs: Any) -> Any:
        """Answer as ever, and write down what was asked."""
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(noted(model, inputs)) + "\n")
        return generate(**inputs)

    model.generate = generate_and_note  # type: ignore[method-assign]  # to look at its inputs
    playground(model, "sound").launch(server_name="127.0.0.1", server_port=port, quiet=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
