"""One thread, fixed seeds, and the same Hypothesis examples on every run."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from safe_framework.utils.seeds import seed_generators

torch.set_num_threads(1)  # the tensors are so small that threads would only wait for each other

# Bits and rounding are compared with those of CPUs; `make check-gpu` runs on a GPU what can.
if "SAFE_TEST_ON_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Some virtual machines announce AMX and forbid it: oneDNN's bfloat16 products then end Python.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],  # the first example imports a model class
)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same state of every generator."""
    random.seed(0)
    np.random.seed(0)
    seed_generators(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests come first, so that at the end no process waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
