"""What the linear probe promises."""

import pytest
import torch

from safe_framework.evaluation.probe import pool, probe
from safe_framework.interfaces.types import Frames


def blobs(count, noise, seed):
    """Rows around four corners, and their labels."""
    source = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 3, 0], [0, -3, 0]], dtype=torch.float64)
    rows = corners.repeat(count, 1)
    rows = rows + noise * torch.randn(rows.shape, generator=source, dtype=torch.float64)
    return rows, ["east", "west", "north", "south"] * count


def test_separable_classes_are_named():
    """Clusters that are far apart are told apart on rows never seen."""
    train, labels = blobs(10, 0.3, seed=0)
    test, expected = blobs(5, 0.3, seed=1)
    assert list(probe(train, labels, test)) == expected


def test_pure_noise_is_chance():
    """Where the features say nothing, the probe does not either."""
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 8, generator=source, dtype=torch.float64)
    labels = ["yes", "no"] * 100
    named = probe(rows[:100], labels[:100], rows[100:])
    right = sum(a == b for a, b in zip(named, labels[100:], strict=True))
    assert 30 <= right <= 70


def test_scale_and_offset_of_a_feature_do_not_count():
    """Features are standardised by the training rows."""
    train, labels = blobs(10, 1.0, seed=0)
    test, _ = blobs(5, 1.0, seed=1)
    scale, offset = torch.tensor([1e3, 1e-3, 7.0]).double(), torch.tensor([5.0, -900, 0]).double()
    assert probe(train, labels, test) == probe(
        train * scale + offset, labels, test * scale + offset
    )


def test_the_seed_decides():
    """Two fits of the same rows are equal."""
    train, labels = blobs(6, 2.0, seed=0)
    assert probe(train, labels, train, seed=1) == probe(train, labels, train, seed=1)


@pytest.mark.parametrize("labels", [["one"] * 4, ["a", "b", "c", "d"], ["a", "a", "a", "b"]])
def test_few_rows_are_enough_to_fit(labels):
    """One class, single members and a constant feature are no error."""
    train = torch.tensor([[0.0, 1], [1, 1], [2, 1], [3, 1]], dtype=torch.float64)
    named = probe(train, labels, train)
    assert len(named) == 4
    assert set(named) <= set(labels)


def test_a_single_row_is_enough_to_fit():
    """With one training row there is one answer."""
    assert probe(torch.ones(1, 2).double(), ["only"], torch.zeros(3, 2).double()) == ("only",) * 3


def test_pooling_ignores_padding():
    """Mean and deviation are over real frames; what padding holds has no effect, even NaN."""
    values = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    mask = torch.tensor([[True, True, False]])
    assert pool(Frames(values, mask)).tolist() == [[2.0, 1.0]]


def test_pooling_a_sample_without_frames():
    """A sample whose frames are all padding gives zeros."""
    frames = Frames(torch.ones(1, 2, 1), torch.zeros(1, 2, dtype=torch.bool))
    assert pool(frames).tolist() == [[0.0, 0.0]]
