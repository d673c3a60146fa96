"""What `bitwise_equal` promises."""

import torch

from safe_framework.utils.tensors import as_bytes, bitwise_equal

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
DTYPES = [
    *FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.complex64, torch.complex128,
]  # fmt: skip
SHAPES = [(), (0,), (3,), (2, 3)]


def same(dtypes, first, second):
    """The dtypes in which two tensors are the same bits."""
    return [dtype for dtype in dtypes if bitwise_equal(first.to(dtype), second.to(dtype))]


def test_equal_tensors_have_the_same_bits():
    """A copy of a tensor of any dtype and shape equals it."""
    made = {(d, s): torch.ones(s).to(d) for d in DTYPES for s in SHAPES}
    assert [key for key, tensor in made.items() if not bitwise_equal(tensor, tensor.clone())] == []


def test_any_differing_element_counts():
    """One element that differs is seen in every dtype."""
    first, second = torch.ones(4), torch.ones(4)
    second[2] = 0
    assert same(DTYPES, first, second) == []


def test_signs_of_zero_differ():
    """0.0 and -0.0 are not the same bits."""
    zero = torch.zeros(2)
    assert same(FLOATS, zero, -zero) == []


def test_nan_equals_its_own_bits():
    """NaN is equal to the same NaN."""
    nan = torch.tensor([float("nan")])
    assert same(FLOATS, nan, nan) == FLOATS


def test_nan_of_another_payload_differs():
    """Two NaN with different bits are not the same."""
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert not bitwise_equal(nans[:1], nans[1:])


def test_dtype_and_shape_count():
    """Equal bytes of another dtype or shape are not the same tensor."""
    tensor = torch.arange(4)
    assert not bitwise_equal(tensor, tensor.view(2, 2))
    assert not bitwise_equal(tensor.to(torch.int32), tensor.to(torch.int32).view(torch.float32))


def test_layout_does_not_count():
    """A transposed view equals a contiguous tensor of the same elements."""
    tensor = torch.randn(3, 4)
    assert bitwise_equal(tensor.T, tensor.T.contiguous())


def test_lazy_conjugate_and_negative_are_resolved():
    """Views that PyTorch has not computed yet are compared by what they hold."""
    tensor = torch.randn(3, dtype=torch.complex64)
    assert bitwise_equal(tensor.conj(), tensor.conj().clone())
    assert not bitwise_equal(tensor.conj(), tensor)
    assert bitwise_equal(tensor.conj().imag, -tensor.imag)


def test_gradients_do_not_count():
    """A parameter is compared by its bits alone."""
    tensor = torch.randn(3)
    assert bitwise_equal(torch.nn.Parameter(tensor), tensor)


def test_integers_are_the_bytes():
    """1.0 in fp32 is the bytes 00 00 80 3f."""
    assert as_bytes(torch.tensor(1.0)).tolist() == [0x00, 0x00, 0x80, 0x3F]
