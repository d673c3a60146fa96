"""A tiny base and a tiny Whisper on disk, shared with the core's tests."""

from tests.core.conftest import checkpoints as checkpoints
from tests.core.conftest import recipe as recipe
