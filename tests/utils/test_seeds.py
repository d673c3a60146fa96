"""Random numbers start from a seed."""

import torch

from safe_framework.utils.seeds import seed_generators


def test_numbers_are_those_of_torchs_own_seeding() -> None:
    """Law: the same seed gives the same numbers as ``torch.manual_seed``, each time."""
    torch.manual_seed(7)
    wanted = torch.rand(5)
    for _ in range(2):
        seed_generators(7)
        assert torch.equal(torch.rand(5), wanted)
