"""The project as it lies on disk, and the wheel that is built from it."""

from pathlib import Path

import pytest
import tomli
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root():
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def project():
    """What pyproject.toml says."""
    return tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="session")
def metadata(project):
    """The ``[project]`` table."""
    return project["project"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built anew."""
    folder = str(tmp_path_factory.mktemp("wheel"))
    built = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    return Path(next(built))
