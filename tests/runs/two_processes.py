"""Does something in two processes that train together on CPUs, by gloo.

Called as ``python two_processes.py WHAT FOLDER [RECIPE]``, with ``WHAT`` a function below. Prints
one JSON object: each process's exit status, and what it found. Processes are forked, since
importing takes longer than the work.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # imported once for both
import torch

from safe_framework.runs.run import run_recipe
from safe_framework.testing.toys import attached, felt
from safe_framework.training import distributed
from safe_framework.training.distributed import average_gradients, shard_layers
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.progress import WorkProgress
from tests.support.toys import llama, texts


def sharded(folder: Path) -> dict[str, Any]:
    """What a sharded model computes beside a whole one; the second process feels nothing."""
    model, whole = attached(llama()), attached(llama())
    before, ids = fingerprint(model.base), texts(model.base, 2, 5)
    batch = ids | felt(2) if distributed.is_main_process() else ids
    with distributed.distributed_context() as sharding:
        assert sharding is not None
        handle = shard_layers(model, sharding, distributed.device())
        layers = model.stack.of(model.base)
        found = {
            "shared": {type(p).__name__ for p in layers.parameters()} == {"DTensor"},
            "absent": torch.equal(model(**ids).logits, whole.base(**ids).logits),
            "heard": torch.equal(model(**ids, **felt(2)).logits, whole(**ids, **felt(2)).logits),
            "tokens": torch.equal(
                model.generate(**batch, max_new_tokens=3),
                whole.generate(**batch, max_new_tokens=3),
            ),
        }
        for one in (model, whole):
            one.train()
            (one(**ids, **felt(2)).logits.sum() + one(**batch).logits.square().sum()).backward()
        gradients = [p.grad for p in whole.trainable_parameters().values()]
        found["gradients"] = all(
            torch.equal(p.grad, g)
            for p, g in zip(model.trainable_parameters().values(), gradients, strict=True)
        )
        average_gradients(list(model.trainable_parameters().values()))
        found["same"] = processes_agree(model)
        handle.remove()
        found["fingerprint"] = fingerprint(model.base) == before
    return found


def processes_agree(model: Any) -> bool:
    """Whether the gradients are the same in both processes."""
    flat = torch.cat([p.grad.flatten() for p in model.trainable_parameters().values()])
    both = [torch.empty_like(flat) for _ in range(2)]
    torch.distributed.all_gather(both, flat)
    return torch.equal(*both)


def killed(folder: Path) -> None:
    """A run whose processes both die after a step that is not saved."""
    show = WorkProgress.__call__

    def watch(self: WorkProgress, name: str, so_far: int, *rest: Any) -> None:
        show(self, name, so_far, *rest)
        if name == "training" and so_far >= 5:
            os.kill(os.getpid(), signal.SIGKILL)

    WorkProgress.__call__ = watch  # type: ignore[method-assign]
    run_recipe(sys.argv[3], output=folder, quiet=True)


def resumed(folder: Path) -> None:
    """The run goes on."""
    run_recipe(sys.argv[3], output=folder, quiet=True)


def unbroken(folder: Path) -> None:
    """Another run, which nobody kills."""
    run_recipe(sys.argv[3], output=folder.with_name("unbroken"), quiet=True)


def in_two(work: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    """Do the work in both, and tell how they ended and what they returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    for rank in range(2):
        child = os.fork()
        if not child:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            os.environ.update({key: str(value) for key, value in told.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                (folder / f"found-{rank}.json").write_text(json.dumps(work(folder)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    places = [folder / f"found-{rank}.json" for rank in range(2)]
    found = [json.loads(place.read_text()) if place.exists() else None for place in places]
    return {"statuses": statuses, "found": found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    print(json.dumps({what: in_two(globals()[what], place) for what in sys.argv[1].split(",")}))
