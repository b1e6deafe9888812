"""Goldens of narrow networks, small enough to store whole: passes, gradients, statistics, optimiser steps."""

import torch
from torch.nn import functional

import networks
from passes import eval_logits, gradients, training_pass

CLASS_WEIGHTS = [0.5, 1.0, 2.0, 1.5, 0.25]
LABEL_SMOOTHING = 0.1
STEPS = 5
BATCH = 6
CLASSES = 5

# The seeds are chosen: with these, rounding in float32 opens or closes no ReLU, nor does it in five steps of training.
# With most seeds it does somewhere, and two correct programs then differ by up to 1e-4 in normalised error.


def resnet20(dtype):
    case = Case(networks.resnet20, (3, 13, 11), seed=3, dtype=dtype)
    return common_goldens(case) | adamw_steps(case) | weighted_loss(case)


def resnet18_stem3(dtype):
    return common_goldens(Case(networks.resnet18_stem3, (1, 14, 14), seed=3, dtype=dtype))


def resnet18_stem7(dtype):
    return common_goldens(Case(networks.resnet18_stem7, (3, 37, 33), seed=187, dtype=dtype))


def resnet20_option_a(dtype):
    return common_goldens(Case(networks.resnet20_option_a, (3, 13, 11), seed=3, dtype=dtype))


def resnext(dtype):
    return common_goldens(Case(networks.resnext, (3, 13, 11), seed=3, dtype=dtype))


def densenet(dtype):
    return common_goldens(Case(networks.densenet, (3, 40, 36), seed=4, dtype=dtype))


def vgg(dtype):
    return common_goldens(Case(networks.vgg, (3, 19, 27), seed=16, dtype=dtype))


def vgg_bn(dtype):
    return common_goldens(Case(networks.vgg_bn, (3, 37, 33), seed=14, dtype=dtype))


class Case:
    """A network, the state it starts from, and one batch.

    State and images are drawn in float32 and widened afterwards: what the file stores is exactly what PyTorch
    computed with.
    """

    def __init__(self, network, image_shape, seed, dtype):
        torch.manual_seed(seed)
        self.network = network
        self.dtype = dtype
        model = network()
        networks.randomise_norms(model)
        self.state = networks.copy_of(model.state_dict())
        self.images = torch.randn(BATCH, *image_shape)
        self.labels = torch.randint(CLASSES, (BATCH,))

    def start(self):
        """A fresh model in the initial state, and the images, both in the precision of the computation."""
        model = self.network()
        model.load_state_dict(self.state)
        return model.to(self.dtype), self.images.to(self.dtype)


def common_goldens(case):
    out = {"input": case.images, "labels": case.labels}
    out |= prefixed("state", case.state)
    return out | single_passes(case) | sgd_steps(case)


def single_passes(case):
    model, images = case.start()
    out = {"eval/logits": eval_logits(model, images)}
    logits, loss = training_pass(model, images, case.labels)
    out |= {"train/logits": logits, "train/loss": loss}
    out |= prefixed("grad", gradients(model))
    return out | prefixed("running", networks.copy_of(dict(model.named_buffers())))


def sgd_steps(case):
    def optimiser(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    return optimiser_steps(case, "steps", optimiser)


def adamw_steps(case):
    def optimiser(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)

    return optimiser_steps(case, "adamw", optimiser)


def optimiser_steps(case, prefix, make_optimiser):
    """Loss before each of five updates on the one batch, and the state after the last."""
    model, images = case.start()
    optimiser = make_optimiser(model.parameters())
    losses = []
    for _ in range(STEPS):
        _, loss = training_pass(model, images, case.labels)
        losses.append(loss)
        optimiser.step()
    out = {f"{prefix}/loss": torch.stack(losses)}
    return out | prefixed(f"{prefix}/state", networks.copy_of(model.state_dict()))


def weighted_loss(case):
    """Label smoothing together with class weights: the two interact in how PyTorch normalises the mean."""
    model, images = case.start()
    model.train()
    logits = model(images)
    logits.retain_grad()
    weights = torch.tensor(CLASS_WEIGHTS, dtype=case.dtype)
    loss = functional.cross_entropy(logits, case.labels, weight=weights, label_smoothing=LABEL_SMOOTHING)
    loss.backward()
    return {
        "weighted/loss": loss.detach(),
        "weighted/dlogits": logits.grad,
        "weighted/grad/fc.weight": model.fc.weight.grad,
        "weighted/grad/fc.bias": model.fc.bias.grad,
    }


def prefixed(prefix, tensors):
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
