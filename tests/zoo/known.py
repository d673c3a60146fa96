"""What ``safe check`` knows of the types without loading transformers, written by the zoo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.zoo.examine import Entry
from tests.zoo.models.build import TASKS, class_names

FILE = Path("safe_framework/pretrained/known_types.json")


def known_types(entries: Sequence[Entry]) -> dict[str, Any]:
    """The content of the file.

    Args:
        entries: what was found of every type.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        for name in class_names(task):
            found.setdefault(name, {"tasks": []})["tasks"].append(task)
    for name, facts in found.items():
        facts |= _processor(name) if "image_text" in facts["tasks"] else {}
    for entry in entries:
        facts = found[entry.model_type]
        if entry.status == "refused" and len(facts["tasks"]) == 1:
            facts["refused"] = entry.reason.partition("\n")[0]
        if any(_needs_pixels(limit) for limit in entry.limits):
            facts["needs_picture"] = True
    return {"transformers": version("transformers"), "types": dict(sorted(found.items()))}


def written(content: dict[str, Any]) -> str:
    """The file's text: a line for each type."""
    lines = [f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in content["types"].items()]
    release = json.dumps(content["transformers"])
    return f'{{"transformers": {release}, "types": {{\n' + ",\n".join(lines) + "\n}}\n"


def _needs_pixels(limit: str) -> bool:
    return limit.startswith("wants an `example`") and "pixel_values" in limit


def _processor(model_type: str) -> dict[str, Any]:
    """What of a type's processor needs torchvision: ``"videos"``, or ``"pictures"`` as well."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    kind: Any = getattr(transformers, name) if name else None
    if (kind is not None and _is_placeholder(kind)) or (backends and "pil" not in backends):
        return {"torchvision": "pictures"}
    if kind is not None and "video_processor" in kind.get_attributes():
        return {"torchvision": "videos"}
    return {}


def _is_placeholder(kind: Any) -> bool:
    """Whether the class stands for one that cannot be imported without torchvision."""
    try:
        kind.get_attributes()
    except ImportError:
        return True
    return False
