"""Numbers for PyTorch, the same for every form and every device: element i of a stream is a hash (src/numbers.rs)."""

import math

import torch


def hashes(seed, count, device=None):
    mask = 0xFFFFFFFF
    h = (torch.arange(count, dtype=torch.int64, device=device) * 0x9E3779B1 + seed * 0x85EBCA77) & mask
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & mask
    h = ((h ^ (h >> 15)) * 0x846CA68B) & mask
    return (h ^ (h >> 16)) >> 8


def uniform(seed, *shape, bound=1.0, device=None):
    """In [−bound, bound)."""
    return ((hashes(seed, math.prod(shape), device).float() / 8388608.0 - 1.0) * bound).reshape(shape)


def random_bytes(seed, *shape, device=None):
    return (hashes(seed, math.prod(shape), device) >> 16).to(torch.uint8).reshape(shape)


def mean_abs(*tensors):
    count = sum(t.numel() for t in tensors)
    return sum(t.detach().abs().double().sum().item() for t in tensors) / count


def relative_error(results, expected):
    """|result − expected| by |expected|, both over all tensors together; NaN where a result is."""
    wrong = whole = 0.0
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape, (result.shape, wanted.shape)
        wrong += (result.detach().double() - wanted.double()).square().sum().item()
        whole += wanted.double().square().sum().item()
    return math.sqrt(wrong / whole)
