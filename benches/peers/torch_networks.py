"""torchvision's networks as medmerge builds them, what convolutions they have, and sources to merge."""

import torch
import torchvision

import works
from torch_data import uniform
from torch_merging import Sources

SEED = 1000  # distance between the seeds of two sources; between two sets of buffers a hundred times that


def build(name, image_size, classes):
    """Small images get a 3×3 stem of stride 1, without pooling."""
    model = torchvision.models.get_model(name, num_classes=classes)
    if works.has_small_stem(image_size):
        if name.startswith("densenet"):
            features = model.features
            features.conv0, features.pool0 = small_stem(features.conv0), torch.nn.Identity()
        else:
            model.conv1, model.maxpool = small_stem(model.conv1), torch.nn.Identity()
    return model


def small_stem(conv):
    return torch.nn.Conv2d(3, conv.out_channels, 3, stride=1, padding=1, bias=False)


def named_convs(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]


def convolutions(name, image_size, batch):
    """Every convolution in the order of a forward pass: its name and its sizes. Nothing is computed."""
    found = []

    def note(layer):
        def hook(conv, inputs, _):
            (n, c, h, w), (r, s) = inputs[0].shape, conv.kernel_size
            found.append((layer, {
                "n": n, "h": h, "w": w, "c": c, "k": conv.out_channels, "r": r, "s": s,
                "stride": conv.stride[0], "pad": conv.padding[0],
            }))
        return hook

    with torch.device("meta"), torch.no_grad():
        model = build(name, image_size, works.classes(image_size))
        for layer, conv in named_convs(model):
            conv.register_forward_hook(note(layer))
        model(torch.empty(batch, 3, image_size, image_size))
    return found


def distinct(convs):
    """(name of the first, sizes, how often, whether its input is the images) of those that differ."""
    alike = {}
    for index, (name, conv) in enumerate(convs):
        alike.setdefault((index == 0, *conv.values()), []).append((name, conv))
    return [(*same[0], len(same), key[0]) for key, same in alike.items()]


# ---- merging

def norm_behind(conv):
    """The batch norm that a convolution feeds alone has its name."""
    if conv.endswith("downsample.0"):
        return conv.removesuffix("0") + "1"
    before, dot, last = conv.rpartition(".")
    if last.startswith("conv"):
        # A DenseNet normalises before it convolves: behind conv0 comes norm0, behind a layer's conv1 its norm2.
        number = {"conv0": "norm0", "conv1": "norm2"} if before.startswith("features") else {last: "bn" + last[4:]}
        return before + dot + number[last] if last in number else None
    return None


def merged_parameters(model):
    """Layer by layer the names of the parameters that share α: W, and γ and β of the batch norm that it feeds."""
    known = dict(model.named_parameters())
    layers = []
    for conv, _ in named_convs(model):
        norm = norm_behind(conv)
        names = [f"{conv}.weight", f"{norm}.weight", f"{norm}.bias"] if norm else [f"{conv}.weight"]
        assert all(name in known for name in names), names
        layers.append(names)
    return layers


def is_head(name):
    return name.startswith(("fc.", "classifier."))


def merge_counts(model):
    """How many parameters have an α, how many are taken from the anchor as they are, and how many α there are."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if not is_head(name)}
    layers = merged_parameters(model)
    weights = sum(sizes[name] for layer in layers for name in layer)
    return weights, sum(sizes.values()) - weights, sum(conv.out_channels for _, conv in named_convs(model))


def sources(network, count, device, set_=0):
    """Random ones, which differ from set to set."""
    with torch.device("meta"):
        model = build(network, 224, 1000)
    shapes = [model.get_parameter(name).shape for layer in merged_parameters(model) for name in layer]
    filters = [conv.out_channels for _, conv in named_convs(model)]
    seed = 100 * SEED * set_

    def tensors(number):
        return [uniform(seed + SEED * number + i, *shape, device=device) for i, shape in enumerate(shapes)]

    alphas = [
        list(uniform(seed + SEED * (count + 2) + m, sum(filters), device=device).split(filters)) for m in range(count)
    ]
    return Sources([tensors(m + 1) for m in range(count)], tensors(count + 1), alphas)
