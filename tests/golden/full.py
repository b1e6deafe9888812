"""Goldens of torchvision's networks at full width.

Their parameters come from a formula that any language can compute bit for bit, so the files hold results only:
of each large tensor its norm and 64 samples. `README.md` beside this file states the formula.
"""

import math

import numpy
import torch
import torchvision

import networks
from passes import eval_logits, gradients, training_pass

# The input is generated under a name too. Where the input of a ReLU is nearer to zero than float32's rounding error,
# the gradients of two correct programs differ by a per cent. "input" brings ResNet-18 to such a place in its last
# block; "input10" keeps every ReLU of it far away. No name does that for ResNet-50: `README.md` says what to expect.
RESNET18_INPUT = "input10"
RESNET50_INPUT = "input"

CLASSES = 10
LABELS = [3, 7]
INPUT_SHAPE = (2, 3, 64, 64)
SAMPLES = 64
# One of each kind of tensor, for a reader to test its generator before it tests anything else.
CHECKED = [
    "conv1.weight",
    "layer1.0.conv1.weight",
    "bn1.weight",
    "bn1.bias",
    "bn1.running_mean",
    "bn1.running_var",
    "fc.weight",
    "fc.bias",
]


def resnet18_full(dtype):
    return full_goldens(torchvision.models.resnet18(num_classes=CLASSES), "bn2", RESNET18_INPUT, dtype)


def resnet50_full(dtype):
    return full_goldens(torchvision.models.resnet50(num_classes=CLASSES), "bn3", RESNET50_INPUT, dtype)


def resnext50_32x4d_full(dtype):
    return evaluation_goldens(torchvision.models.resnext50_32x4d(num_classes=CLASSES), dtype)


def densenet121_full(dtype):
    return evaluation_goldens(torchvision.models.densenet121(num_classes=CLASSES), dtype)


def vgg16_full(dtype):
    return evaluation_goldens(torchvision.models.vgg16(num_classes=CLASSES), dtype)


def vgg16_bn_full(dtype):
    return evaluation_goldens(torchvision.models.vgg16_bn(num_classes=CLASSES), dtype)


def evaluation_goldens(model, dtype):
    """The logits of one image. The weights of every layer keep the variance of what passes through it forward."""
    fill(model, fan=fan_in)
    images = generate_input("input")[:1]
    return {"eval/logits": eval_logits(model.to(dtype), images.to(dtype))}


def full_goldens(model, last_norm, input_name, dtype):
    """`last_norm` is the batch norm that ends a residual block."""
    images = generate_input(input_name)
    fill(model, fan_out, last_norm)
    state = model.state_dict()
    out = {"labels": torch.tensor(LABELS), "check/input": first(images)}
    out |= {f"check/{name}": first(state[name]) for name in CHECKED + [f"layer1.0.{last_norm}.weight"]}

    model.to(dtype)
    images = images.to(dtype)
    out["eval/logits"] = eval_logits(model, images)
    out["train/logits"], out["train/loss"] = training_pass(model, images, torch.tensor(LABELS))
    out |= summaries("grad", gradients(model))
    statistics = {name: tensor for name, tensor in model.named_buffers() if networks.is_running_statistic(name)}
    return out | summaries("running", statistics)


def fill(model, fan, last_norm=None):
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float32:
            tensor.copy_(generate(name, tensor.shape, fan, last_norm))


def generate(name, shape, fan, last_norm):
    """The tensor `name` by formula. Every step is exact or one float32 rounding, so its bits are unique."""
    signed = signed_unit(name, math.prod(shape))
    if len(shape) == 1 and name.endswith((".weight", ".running_var")):
        values = numpy.float32(1.0) + numpy.float32(0.25) * signed
        if last_norm and name.endswith(f"{last_norm}.weight") and name.startswith("layer"):
            values = numpy.float32(0.5) * values
    else:
        values = signed * scale(fan(shape))
    assert values.dtype == numpy.float32
    return torch.from_numpy(values).reshape(shape)


def generate_input(name):
    return torch.from_numpy(signed_unit(name, math.prod(INPUT_SHAPE))).reshape(INPUT_SHAPE)


def scale(fan):
    """What keeps the variance of what passes through `fan` weights and a ReLU; without those, something small."""
    return numpy.float32(math.sqrt(3.0) * math.sqrt(2.0 / fan)) if fan else numpy.float32(0.1)


def fan_out(shape):
    """Of convolutions alone: K·R·S, what passes back through them."""
    return shape[0] * shape[2] * shape[3] if len(shape) == 4 else None


def fan_in(shape):
    """Of convolutions and linear layers: the weights of a row."""
    return math.prod(shape[1:]) if len(shape) > 1 else None


def signed_unit(name, count):
    """`2u - 1` for `u` in [0, 1) with 24 bits: element `i` is the output `i` of SplitMix64 seeded by the name."""
    index = numpy.arange(1, count + 1, dtype=numpy.uint64)
    z = numpy.uint64(fnv1a(name)) + index * numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    z = z ^ (z >> numpy.uint64(31))
    unit = (z >> numpy.uint64(40)).astype(numpy.float32) * numpy.float32(2.0**-24)
    return numpy.float32(2.0) * unit - numpy.float32(1.0)


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def summaries(prefix, tensors):
    out = {}
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        out[f"{prefix}_norm/{name}"] = flat.double().norm()
        out[f"{prefix}_sample/{name}"] = flat[sample_indices(flat.numel())]
    return out


def sample_indices(count):
    samples = min(SAMPLES, count)
    return torch.tensor([j * count // samples for j in range(samples)])


def first(tensor):
    return tensor.flatten()[:4].clone()
