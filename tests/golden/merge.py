"""Goldens of the merge: narrow networks blended with given weights α, and the gradient of every α.

For M sources, `W[k] = Σ_m α_m[k] · W_m[k]`. What has a number per channel (γ and β of a batch norm, a bias) is blended
with the α of the filter that feeds each channel; `feeds.py` says which. Autograd differentiates through the blend, so
nothing here depends on a formula for the gradient.
"""

import torch
from torch.func import functional_call
from torch.nn import functional

import feeds
import networks

BATCH = 6
CLASSES = 5


def merge(dtype):
    torch.manual_seed(3)
    problem = Problem(networks.resnet18_stem3, "fc", feeds.of_resnet, (1, 14, 14), dtype, sources=3)
    out = problem.stored()
    for count in (2, 3):
        for granularity in ("model", "layer", "filter", "kernel"):
            alphas = draw(problem, granularity, count, mean=1 / count)
            prefix = f"m{count}/{granularity}"
            out |= {f"{prefix}/{key}": alpha for key, alpha in alphas.items()}
            out |= run(problem, prefix, alphas, identity)
            if granularity == "filter":
                out |= run(problem, f"{prefix}_anchor", alphas, identity, anchor_norms=True)
        out |= constrained(problem, f"m{count}/affine", affine, rows=count - 1, mean=1 / count)
        out |= constrained(problem, f"m{count}/simplex", simplex, rows=count, mean=0.0)
    return out


def merge_densenet(dtype):
    torch.manual_seed(3)
    return two_sources(Problem(networks.densenet, "classifier", feeds.of_densenet, (3, 33, 37), dtype))


def merge_vgg(dtype):
    torch.manual_seed(3)
    return two_sources(Problem(networks.vgg_equal_hidden, "classifier.6", feeds.of_vgg, (3, 11, 13), dtype))


def two_sources(problem):
    out = problem.stored()
    for granularity in ("filter", "kernel"):
        alphas = draw(problem, granularity, rows=2, mean=1 / 2)
        prefix = f"m2/{granularity}"
        out |= {f"{prefix}/{key}": alpha for key, alpha in alphas.items()}
        out |= run(problem, prefix, alphas, identity)
    return out


class Problem:
    """The sources, the head and the batch, drawn in float32 so that the file stores them exactly.

    `feeds` finds out which filters feed which channels of a network. `layers` are those whose filters are merged: all
    convolutions, and all linear layers but the head.
    """

    def __init__(self, network, head, feeds, image_shape, dtype, sources=2):
        self.network = network
        self.dtype = dtype
        self.sources = [self.draw_source(head) for _ in range(sources)]
        state = networks.copy_of(network().state_dict())
        self.head = {name: tensor for name, tensor in state.items() if name.startswith(f"{head}.")}
        self.images = torch.randn(BATCH, *image_shape)
        self.labels = torch.randint(CLASSES, (BATCH,))
        self.model = network().to(dtype).train()
        self.layers = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and name != head
        ]
        self.feeds = feeds(self.model, self.layers)

    def draw_source(self, head):
        model = self.network()
        networks.randomise_norms(model)
        state = networks.copy_of(model.state_dict())
        return {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}

    def stored(self):
        out = {"input": self.images, "labels": self.labels}
        out |= {f"head/{name}": tensor for name, tensor in self.head.items()}
        for index, source in enumerate(self.sources):
            out |= {f"source{index}/{name}": tensor for name, tensor in source.items()}
        return out

    def stacked(self, name, count):
        """The tensor `name` of the first `count` sources, the source being the first dimension."""
        return torch.stack([source[name] for source in self.sources[:count]]).to(self.dtype)


# What is learned, before a constraint turns it into α. One tensor for the whole network is called `alpha`, one
# per convolution is called `alpha/<convolution>`.


def draw(problem, granularity, rows, mean):
    if granularity == "model":
        return {"alpha": draw_one((rows,), mean)}
    drawn = {}
    for name in problem.layers:
        filters, channels = kernels(name, problem.sources[0][f"{name}.weight"])
        shape = {"layer": (rows,), "filter": (rows, filters), "kernel": (rows, filters, channels)}[granularity]
        drawn[f"alpha/{name}"] = draw_one(shape, mean)
    return drawn


def kernels(name, weight):
    """Filters, and channels that each reads. A VGG's first linear layer reads channels of 7×7 pixels."""
    filters, channels = weight.shape[:2]
    return (filters, channels // 49) if name == "classifier.0" else (filters, channels)


def draw_one(shape, mean):
    """Numbers on both sides of zero and of one: unconstrained α may be negative, and need not sum to one."""
    return mean + 0.3 * torch.randn(shape)


# The constraints. Each turns what is learned, sources first, into α.


def identity(learned):
    return learned


def affine(learned):
    """Source 0 is the anchor: it takes what the others leave, so that the weights sum to one."""
    return torch.cat([1 - learned.sum(0, keepdim=True), learned])


def simplex(learned):
    return learned.softmax(0)


def constrained(problem, prefix, constraint, rows, mean):
    """Filter granularity under a constraint; the file names both tensors by their convolution alone."""
    learned = draw(problem, "filter", rows, mean)
    out = run(problem, prefix, learned, constraint)
    out = {key.replace("/grad/alpha/", "/grad/"): tensor for key, tensor in out.items()}
    return out | {f"{prefix}/{key.replace('alpha/', 'learned/')}": tensor for key, tensor in learned.items()}


def run(problem, prefix, learned, constraint, anchor_norms=False):
    """Loss, logits and gradients of one merged training pass."""
    leaves = {key: leaf(tensor, problem.dtype) for key, tensor in learned.items()}
    head = {name: leaf(tensor, problem.dtype) for name, tensor in problem.head.items()}
    alphas = {name: constraint(leaf_of(leaves, name)) for name in problem.layers}
    parameters = blend(problem, alphas, anchor_norms) | head
    # The model's own running statistics are updated and ignored: a training pass does not read them.
    logits = functional_call(problem.model, parameters, problem.images.to(problem.dtype))
    loss = functional.cross_entropy(logits, problem.labels)
    loss.backward()
    out = {f"{prefix}/loss": loss.detach(), f"{prefix}/logits": logits.detach()}
    return out | {f"{prefix}/grad/{key}": tensor.grad for key, tensor in (leaves | head).items()}


def leaf(tensor, dtype):
    """A copy to differentiate by: the runs share their α and their head, and must not add up their gradients."""
    return tensor.to(dtype, copy=True).requires_grad_()


def leaf_of(leaves, layer):
    return leaves["alpha"] if "alpha" in leaves else leaves[f"alpha/{layer}"]


def blend(problem, alphas, anchor_norms):
    """The merged trunk. α is [M], [M, K] or [M, K, C], and is broadcast over what it does not distinguish."""
    merged = {f"{layer}.weight": blend_one(problem, f"{layer}.weight", alpha) for layer, alpha in alphas.items()}
    for name, layers in problem.feeds.items():
        if anchor_norms:
            merged[name] = problem.sources[0][name].to(problem.dtype)
        else:
            channels = [problem.sources[0][f"{layer}.weight"].shape[0] for layer in layers]
            alpha = [per_channel(alphas[layer], count) for layer, count in zip(layers, channels)]
            merged[name] = blend_one(problem, name, torch.cat(alpha, 1))
    return merged


def blend_one(problem, name, alpha):
    tensors = problem.stacked(name, alpha.shape[0])
    return (alpha[..., None] * tensors.reshape(alpha.shape + (-1,))).sum(0).reshape(tensors.shape[1:])


def per_channel(alpha, channels):
    """The α of each filter. Where each of its input slices has its own, their mean stands for the filter."""
    if alpha.dim() == 1:
        return alpha[:, None].expand(-1, channels)
    return alpha.mean(2) if alpha.dim() == 3 else alpha
