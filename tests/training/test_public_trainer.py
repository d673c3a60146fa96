"""Our trainers extend the Hugging Face Trainer by its public names alone.

Private members change between versions without notice, and silently: an override is just not
called any more. So this is read from our own source, and compared with the installed version.
"""

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import Trainer, TrainingArguments

from safe_framework.experimental.vision_language.scene_training import SceneTrainer
from safe_framework.experimental.vision_language.train import CaptionTrainer
from safe_framework.training.trainer import (
    CompleteCheckpoint,
    SafeTrainer,
    SafeTrainingArguments,
)

OURS = [SafeTrainer, CaptionTrainer, SceneTrainer, SafeTrainingArguments, CompleteCheckpoint]


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The private names of the Trainer and of its arguments, of the classes and of instances."""
    args = TrainingArguments(str(tmp_path_factory.mktemp("trainer")), report_to="none")
    trainer = Trainer(nn.Linear(1, 1), args)
    assert args.n_gpu is not None  # which some versions find out when they are asked
    found = {name for one in (args, trainer) for name in {*dir(one), *vars(one)}}
    return set(filter(is_private, found))


def used_names(source: str) -> set[str]:
    """All names that a piece of code reads, writes or defines on an object."""
    tree = ast.parse(textwrap.dedent(source))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return attributes | assigned | functions | {text for text in texts if isinstance(text, str)}


def test_there_are_private_names(private: set[str]) -> None:
    """Law: what is compared with holds members of the classes and of instances."""
    assert {"_save_checkpoint", "_get_train_sampler", "_train_batch_size", "_n_gpu"} <= private


@pytest.mark.parametrize("own", OURS, ids=lambda own: own.__name__)
def test_no_private_name_is_used_or_overridden(own: Any, private: set[str]) -> None:
    """Law: no private name of the Trainer, or of its arguments, is used or taken."""
    assert not used_names(inspect.getsource(own)) & private


def test_every_trainer_of_ours_is_looked_at() -> None:
    """Law: there is no other subclass of the Trainer or of its arguments in the package."""
    import safe_framework

    bases = {"Trainer", "TrainingArguments", "SafeTrainer", "SafeTrainingArguments"}
    found = {
        node.name
        for path in Path(safe_framework.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and bases & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    assert found == {kind.__name__ for kind in OURS} - {"CompleteCheckpoint"}


@pytest.mark.parametrize(
    "line",
    [
        "def _save(self): pass",
        "_save = None",
        "super()._save_checkpoint(model, trial)",
        "args._n_gpu = 1",
        "getattr(self, '_get_output_dir')",
    ],
)
def test_a_private_name_would_be_seen(line: str, private: set[str]) -> None:
    """Law: to define, call, write or look up a private member is found."""
    assert used_names(line) & private
