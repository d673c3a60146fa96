"""Imports each module that is named as the first of all, and prints those that could not be.

The libraries are imported once, and each module in a fork of that state, in which no module of ours
is known: a cycle shows that hides as long as another module is imported before. Python imports a
module's package before it, so modules are forked from where their package has just been imported.
"""

import gc
import importlib
import os
import sys
import traceback

LIBRARIES = (
    "peft", "transformers.trainer", "datasets", "rich.progress", "cattrs.preconf.json", "tomli",
)  # fmt: skip
OWN = ("safe_framework", "safe_framework_plugins", "safe_framework_registry")
AT_ONCE = 2
EXTRAS = ("lm_eval", "vllm")
"""What a module may lack that is an extra's alone."""


def main(names, libraries=LIBRARIES):
    """Import each; gives whether any failed."""
    for library in libraries:
        importlib.import_module(library)
    known = [name for name in sys.modules if name.partition(".")[0] in OWN]
    assert not known, known
    print(f"{len(names)} modules", flush=True)
    gc.disable()  # it would look through what the libraries made, and so copy it in each fork
    return not below("", names)


def below(package, names):
    """Whether all modules right below a package can be imported, and all below them."""
    deeper = {name.rpartition(".")[0] for name in names}
    whole, running = True, set()
    for name in names:
        if name.rpartition(".")[0] != package:
            continue
        if name in sys.modules and name not in deeper:
            continue  # its package has imported it, and so shown that it can be
        if len(running) == AT_ONCE:
            whole &= ended(running)
        running.add(forked(name, names))
    while running:
        whole &= ended(running)
    return whole


def forked(name, names):
    """A fork of this process that imports the module and what is below it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        importlib.import_module(name)
        code = not below(name, names)
    except ModuleNotFoundError as error:
        code = failed(name) if error.name not in EXTRAS else 0
    except BaseException:
        code = failed(name)
    finally:
        os._exit(code)


def ended(running):
    """Wait for one of the forks; gives whether it was fine."""
    child, status = os.wait()
    running.remove(child)
    return status == 0


def failed(name):
    """Print what happened."""
    traceback.print_exc()
    print(f"failed: {name}", flush=True)
    sys.stderr.flush()
    return 1
