"""torchvision's networks as medmerge builds them, what convolutions they have, whose filters make which channels, and
sources to merge.

A layer is a convolution, or a hidden fully connected layer of a VGG, whose rows are merged as filters are. Layers are
numbered in the order of `layers`, and their filters one layer after the other.
"""

import torch
import torchvision

import works
from torch_data import uniform
from torch_merging import Sources

SEED = 1000  # distance between the seeds of two sources; between two sets of buffers a hundred times that
HEADS = ("fc.", "classifier.weight", "classifier.bias", "classifier.6.")  # of a ResNet, a DenseNet, a VGG
# Pixels, down and across, that a VGG's first hidden layer sees.
POOLED = 7


# Basic blocks of each of the three stages.
CIFAR_BLOCKS = {"resnet8": 1, "resnet20": 3}


class CifarResNet(torch.nn.Module):
    """The ResNet for images of 32 pixels: three stages of 16, 32 and 64 channels, with torchvision's blocks and names."""

    def __init__(self, blocks, classes):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = self.stage(16, 16, blocks), self.stage(16, 32, blocks), self.stage(32, 64, blocks)
        self.fc = torch.nn.Linear(64, classes)

    @staticmethod
    def stage(inputs, channels, blocks):
        shortcut = None
        if inputs != channels:
            conv = torch.nn.Conv2d(inputs, channels, 1, stride=2, bias=False)
            shortcut = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(channels))
        block = torchvision.models.resnet.BasicBlock
        first = block(inputs, channels, stride=1 if shortcut is None else 2, downsample=shortcut)
        return torch.nn.Sequential(first, *(block(channels, channels) for _ in range(blocks - 1)))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


def build(name, image_size, classes):
    """Small images get a 3×3 stem of stride 1, without pooling, where a network has a stem. A VGG drops nothing: nor
    does it in `medmerge bench`."""
    if name in CIFAR_BLOCKS:
        return CifarResNet(CIFAR_BLOCKS[name], classes)
    if name.startswith("vgg"):
        return torchvision.models.get_model(name, num_classes=classes, dropout=0.0)
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


def is_head(name):
    """Whether a parameter is one of the classifier."""
    return name.startswith(HEADS)


def layers(model):
    """By name, in torchvision's order."""
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    return {name: module for name, module in modules if not is_head(f"{name}.weight")}


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
        for layer, module in layers(model).items():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(note(layer))
        model(torch.empty(batch, 3, image_size, image_size))
    return found


def hidden_layers(name, batch):
    """Hidden layers as the convolutions that they are to medmerge: the first has a window of all that is pooled."""
    with torch.device("meta"):
        model = build(name, 224, 1000)
    found, side = [], POOLED
    for layer, module in layers(model).items():
        if isinstance(module, torch.nn.Linear):
            found.append((layer, {
                "n": batch, "h": side, "w": side, "c": module.in_features // side**2, "k": module.out_features,
                "r": side, "s": side, "stride": 1, "pad": 0,
            }))
            side = 1
    return found


def distinct(convs):
    """(name of the first, sizes, how often, whether its input is the images) of those that differ."""
    alike = {}
    for index, (name, conv) in enumerate(convs):
        alike.setdefault((index == 0, *conv.values()), []).append((name, conv))
    return [(*same[0], len(same), key[0]) for key, same in alike.items()]


# ---- merging

def before_norms(model):
    """By batch norm, the convolutions whose filters make its channels, in their order."""
    if isinstance(model, torchvision.models.DenseNet):
        return before_norms_of_densenet(model.features)
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    return {norm: [before_norm(norm)] for norm in norms}


def before_norm(norm):
    """The convolution of the same number, or in a row of modules the one before."""
    before, dot, last = norm.rpartition(".")
    return before + dot + (str(int(last) - 1) if last.isdigit() else last.replace("bn", "conv"))


def before_norms_of_densenet(features):
    """A layer reads what its block read and what all layers before it made."""
    found, made = {"features.norm0": ["features.conv0"]}, ["features.conv0"]
    for block, module in features.named_children():
        if block.startswith("denseblock"):
            for layer in (f"features.{block}.{name}" for name, _ in module.named_children()):
                found[f"{layer}.norm1"], found[f"{layer}.norm2"] = list(made), [f"{layer}.conv1"]
                made.append(f"{layer}.conv2")
        elif block.startswith("transition"):
            found[f"features.{block}.norm"] = made
            made = [f"features.{block}.conv"]
    return {**found, "features.norm5": made}


def merged_parameters(model):
    """By parameter, the numbers of the layers whose filters' α it takes: W and a bias of their own layer, γ and β of
    those that make the channels."""
    numbers = {name: number for number, name in enumerate(layers(model))}
    norms = before_norms(model)
    found = {}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        if not is_head(name):
            found[name] = tuple(numbers[layer] for layer in norms.get(owner, [owner]))
    return found


def filters(model):
    """How many each layer has."""
    return [len(module.weight) for module in layers(model).values()]


def merge_counts(model):
    """How many parameters have an α, and how many α there are."""
    return sum(model.get_parameter(name).numel() for name in merged_parameters(model)), sum(filters(model))


def sources(network, count, device, set_=0):
    """Random ones, which differ from set to set."""
    with torch.device("meta"):
        model = build(network, 224, 1000)
    merged = merged_parameters(model)
    shapes = [model.get_parameter(name).shape for name in merged]
    seed, alphas = 100 * SEED * set_, sum(filters(model))

    def tensors(number):
        return [uniform(seed + SEED * number + i, *shape, device=device) for i, shape in enumerate(shapes)]

    alpha = [uniform(seed + SEED * (count + 2) + m, alphas, device=device) for m in range(count)]
    fed = list(merged.values())
    return Sources([tensors(m + 1) for m in range(count)], tensors(count + 1), alpha, fed, filters(model))
