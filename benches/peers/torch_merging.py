"""Merging per filter in every form that a PyTorch user might write: W[k] = Σ_m α_m[k]·W_m[k], and dα from dW.

A form takes `Sources` and returns what runs it. That gives the blend's tensors; or dα, for each source (or for all of
them in one) a number per filter.
"""

import functools
import itertools
import typing

import torch


class Feeds(typing.NamedTuple):
    """Whose α the tensors of a network take: those of one layer's filters (W, a bias, γ and β behind it), or those of
    several layers, whose outputs are joined before a batch norm."""

    filters: tuple  # how many each layer has
    layers: tuple  # per layer the numbers of the tensors that take its α alone, W among them
    joint: tuple  # the numbers of the others
    index: torch.Tensor  # for these, one behind the other, the number of each channel's α

    @classmethod
    def of(cls, fed, filters, device=None):
        """`fed`: per tensor the numbers of the layers."""
        starts = list(itertools.accumulate(filters, initial=0))
        layers = tuple(tuple(i for i, by in enumerate(fed) if by == (layer,)) for layer in range(len(filters)))
        joint = tuple(i for i, by in enumerate(fed) if len(by) > 1)
        index = [number for i in joint for layer in fed[i] for number in range(starts[layer], starts[layer + 1])]
        return cls(tuple(filters), layers, joint, torch.tensor(index, dtype=torch.int64, device=device))


class Sources:
    """M sources, a list of tensors each, and as many of dW.

    `flat_alpha[m]` has an α per filter of the network, `alpha[m][i]` is what tensor i takes of it, shaped to broadcast.
    """

    def __init__(self, tensors, gradient, flat_alpha, fed, filters):
        self.count = len(tensors)
        self.tensors = tensors
        self.gradient = gradient
        self.flat_alpha = flat_alpha
        self.feeds = Feeds.of(fed, filters, gradient[0].device)
        self.alpha = [shaped(alpha, self.feeds, gradient) for alpha in flat_alpha]
        self.parameters = sum(t.numel() for t in gradient)

    def joined(self, dots):
        return joined(dots, self.feeds)

    def stacked(self):
        """Per tensor (K, M, P): the sources of one filter beside each other."""
        return [torch.stack([t.reshape(t.shape[0], -1) for t in ts], 1).contiguous() for ts in zip(*self.tensors)]

    def stacked_alpha(self):
        """Per tensor (K, 1, M)."""
        return [torch.stack([a.reshape(-1) for a in alphas], 1).unsqueeze(1).contiguous() for alphas in zip(*self.alpha)]


def shaped(alpha, feeds, tensors):
    """Of the α of a network what each tensor takes, shaped to broadcast over it."""
    taken = {i: a for a, layer in zip(alpha.split(feeds.filters), feeds.layers) for i in layer}
    if feeds.joint:
        taken.update(zip(feeds.joint, alpha.index_select(0, feeds.index).split([len(tensors[i]) for i in feeds.joint])))
    return [taken[i].view(-1, *[1] * (tensor.dim() - 1)) for i, tensor in enumerate(tensors)]


def joined(dots, feeds):
    """What each filter has in all tensors that take its α, added up: the way back from `shaped`."""
    dalpha = torch.cat([functools.reduce(torch.add, [dots[i] for i in layer]) for layer in feeds.layers])
    if feeds.joint:
        dalpha.index_add_(0, feeds.index, torch.cat([dots[i] for i in feeds.joint]))
    return dalpha


def mixed(sources, alphas):
    """Tensor by tensor Σ_m α_m·W_m, without the needless 0 + … of Python's `sum`."""
    terms = ([a * w for a, w in zip(a_s, ws)] for a_s, ws in zip(zip(*alphas), zip(*sources)))
    return [functools.reduce(torch.add, products) for products in terms]


def blend_eager(s):
    return lambda: mixed(s.tensors, s.alpha)


def blend_out(s):
    outs = [torch.empty_like(t) for t in s.gradient]

    def run():
        for i, out in enumerate(outs):
            torch.mul(s.tensors[0][i], s.alpha[0][i], out=out)
            for m in range(1, s.count):
                out.addcmul_(s.tensors[m][i], s.alpha[m][i])
        return outs

    return run


def blend_einsum(s):
    stacked = [torch.stack(ts) for ts in zip(*s.tensors)]
    alphas = [torch.stack([a.reshape(-1) for a in form]) for form in zip(*s.alpha)]
    return lambda: [torch.einsum("mk,mk...->k...", a, w) for a, w in zip(alphas, stacked)]


def blend_bmm(s):
    stacked, alphas = s.stacked(), s.stacked_alpha()
    outs = [w.new_empty(w.shape[0], 1, w.shape[2]) for w in stacked]

    def run():
        for out, a, w in zip(outs, alphas, stacked):
            torch.bmm(a, w, out=out)
        return outs

    return run


def blend_foreach(s):
    def run():
        merged = torch._foreach_mul(s.tensors[0], s.alpha[0])
        for m in range(1, s.count):
            torch._foreach_addcmul_(merged, s.tensors[m], s.alpha[m])
        return merged

    return run


def blend_lerp(s):
    """W_0 + α_1·(W_1 − W_0): its α sum to one, so its result differs from the others' and is not checked."""
    outs = [torch.empty_like(t) for t in s.gradient]

    def run():
        for out, first, second, a in zip(outs, *s.tensors, s.alpha[1]):
            torch.lerp(first, second, a, out=out)
        return outs

    return run


compiled_mixed = torch.compile(mixed, dynamic=False)


def blend_compile(s):
    return lambda: compiled_mixed(s.tensors, s.alpha)


def rows(tensor):
    return tensor.reshape(tensor.shape[0], -1)


def dalpha_autograd(s):
    """Backward alone: the graph of the eager blend stays."""
    leaves = [alpha.detach().requires_grad_() for alpha in s.flat_alpha]
    with torch.enable_grad():
        merged = mixed(s.tensors, [shaped(alpha, s.feeds, s.gradient) for alpha in leaves])
    return lambda: torch.autograd.grad(merged, leaves, s.gradient, retain_graph=True)


def dalpha_eager(s):
    return lambda: dots(s.gradient, s.tensors, s.feeds)


def dalpha_vecdot(s):
    return lambda: [
        s.joined([torch.linalg.vecdot(rows(d), rows(w)) for d, w in zip(s.gradient, tensors)])
        for tensors in s.tensors
    ]


def dalpha_einsum(s):
    stacked = [torch.stack(ts) for ts in zip(*s.tensors)]
    return lambda: [s.joined([torch.einsum("k...,mk...->km", d, w) for d, w in zip(s.gradient, stacked)])]


def dalpha_bmm(s):
    stacked = s.stacked()
    return lambda: [
        s.joined([torch.bmm(w, rows(d).unsqueeze(2)).squeeze(2) for d, w in zip(s.gradient, stacked)])
    ]


def dalpha_foreach(s):
    def run():
        products = [torch._foreach_mul(s.gradient, tensors) for tensors in s.tensors]
        return [s.joined([rows(p).sum(1) for p in ps]) for ps in products]

    return run


def dots(gradient, sources, feeds):
    return [joined([(rows(d) * rows(w)).sum(1) for d, w in zip(gradient, tensors)], feeds) for tensors in sources]


compiled_dots = torch.compile(dots, dynamic=False)


def dalpha_compile(s):
    return lambda: compiled_dots(s.gradient, s.tensors, s.feeds)


BLEND = {
    "eager": blend_eager, "out": blend_out, "einsum": blend_einsum, "bmm": blend_bmm, "foreach": blend_foreach,
    "lerp": blend_lerp, "compile": blend_compile,
}
DALPHA = {
    "autograd": dalpha_autograd, "eager": dalpha_eager, "vecdot": dalpha_vecdot, "einsum": dalpha_einsum,
    "bmm": dalpha_bmm, "foreach": dalpha_foreach, "compile": dalpha_compile,
}
