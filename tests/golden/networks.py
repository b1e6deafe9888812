"""The networks of the golden files: torchvision's own ResNet, DenseNet and VGG, with other widths and other stems.

A golden file is only worth something if PyTorch and torchvision computed it, so the classes below replace layers of
torchvision's networks and keep their `forward`. The one exception is the ResNet with shortcuts of option A, which
torchvision does not have: its blocks are torchvision's, its shortcut and what is around the blocks are written here.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

TORCHVISION_WIDTHS = [64, 128, 256, 512]


class ResizedResNet(ResNet):
    """A ResNet of any width, with three stages (the CIFAR layout) or four (the ImageNet layout).

    `stem` is the kernel size of the first convolution. 7 is torchvision's stem: stride 2, then max pooling.
    3 is the stem for small images: stride 1, no pooling. `groups` and `group_width` are torchvision's for ResNeXt.
    """

    def __init__(self, block, blocks, widths, stem, channels, classes, groups=1, group_width=64):
        # The parent builds full-width stages, all of which are replaced below. That costs a moment, and saves
        # a second copy of the parent's constructor and forward.
        super().__init__(block, [1, 1, 1, 1], num_classes=classes, groups=groups, width_per_group=group_width)
        self.replace_stem(stem, channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.inplanes = widths[0]
        for index in range(4):
            setattr(self, f"layer{index + 1}", self.stage(index, block, blocks, widths))
        self.fc = nn.Linear(widths[-1] * block.expansion, classes)

    def replace_stem(self, stem, channels, width):
        if stem == 3:
            self.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)

    def stage(self, index, block, blocks, widths):
        if index >= len(widths):
            return nn.Identity()  # has no entries in the state dict: a CIFAR ResNet has no `layer4`
        stride = 1 if index == 0 else 2
        return self._make_layer(block, widths[index], blocks[index], stride=stride)


class OptionA(nn.Module):
    """The shortcut without parameters of He et al. (2015): every second pixel, and the new channels zero.

    Half of the new channels lie before the old ones and half behind them, as reimplementations for CIFAR have it.
    """

    def __init__(self, new_channels):
        super().__init__()
        self.on_either_side = new_channels // 2

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.on_either_side, self.on_either_side))


class OptionAResNet(nn.Module):
    """The ResNet for CIFAR: three stages of torchvision's basic blocks, with a head that is called `linear`."""

    def __init__(self, blocks, widths, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self.stage(widths[0], widths[0], blocks[0])
        self.layer2 = self.stage(widths[0], widths[1], blocks[1])
        self.layer3 = self.stage(widths[1], widths[2], blocks[2])
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def stage(self, inputs, width, blocks):
        first = BasicBlock(width, width)
        if inputs != width:
            first = BasicBlock(inputs, width, stride=2, downsample=OptionA(width - inputs))
        return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class ResizedVGG(VGG):
    """A VGG of any width, without dropout, which this program does not have.

    Weights and biases are drawn here: torchvision's initial ones make outputs so small that rounding shows in them, and
    larger ones in the head would end training at the first step.
    """

    def __init__(self, layers, hidden, classes, batch_norm):
        features = make_layers(layers, batch_norm)
        with torch.device("meta"):  # the parent's classifier has 120 million weights, and is replaced
            super().__init__(features, init_weights=False, dropout=0.0)
        width = [layer for layer in layers if layer != "M"][-1]
        self.classifier[0] = nn.Linear(width * 7 * 7, hidden[0])
        self.classifier[3] = nn.Linear(hidden[0], hidden[1])
        self.classifier[6] = nn.Linear(hidden[1], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
                nn.init.normal_(module.bias, std=0.1)
        nn.init.normal_(self.classifier[6].weight, std=0.1)


def resnet20():
    return ResizedResNet(BasicBlock, [3, 3, 3], [4, 8, 16], stem=3, channels=3, classes=5)


def resnet18_stem3():
    return ResizedResNet(BasicBlock, [2, 2, 2, 2], [4, 8, 16, 32], stem=3, channels=1, classes=5)


def resnet18_stem7():
    return ResizedResNet(BasicBlock, [2, 2, 2, 2], [4, 8, 16, 32], stem=7, channels=3, classes=5)


def resnet20_option_a():
    return OptionAResNet([3, 3, 3], [4, 8, 16], classes=5)


def resnext():
    blocks, widths = [2, 1, 2], [4, 8, 16]
    return ResizedResNet(Bottleneck, blocks, widths, stem=3, channels=3, classes=5, groups=4, group_width=32)


def densenet():
    return DenseNet(growth_rate=4, block_config=(2, 2, 2), num_init_features=8, bn_size=4, num_classes=5)


def vgg():
    return ResizedVGG([4, "M", 8, "M", 8, 8, "M"], [12, 10], classes=5, batch_norm=False)


def vgg_bn():
    return ResizedVGG([4, "M", 8, 8, "M"], [12, 10], classes=5, batch_norm=True)


def vgg_equal_hidden():
    """Without its classifier, a VGG whose hidden layers differ looks like one that has a hidden layer less."""
    return ResizedVGG([4, "M", 8, "M"], [12, 12], classes=5, batch_norm=False)


def from_state(state):
    """The network that a state dict with torchvision's names belongs to, its weights not yet loaded.

    At torchvision's widths this is torchvision's plain ResNet, with at most its stem exchanged.
    """
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    stages = [stage for stage in range(1, 5) if f"layer{stage}.0.conv1.weight" in state]
    blocks = [count_blocks(state, stage) for stage in stages]
    widths = [state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in stages]
    width, channels, stem, _ = state["conv1.weight"].shape
    classes = state["fc.weight"].shape[0]
    if widths != TORCHVISION_WIDTHS:
        return ResizedResNet(block, blocks, widths, stem, channels, classes)
    model = ResNet(block, blocks, num_classes=classes)
    if stem == 3:
        ResizedResNet.replace_stem(model, stem, channels, width)
    return model


def count_blocks(state, stage):
    count = 0
    while f"layer{stage}.{count}.conv1.weight" in state:
        count += 1
    return count


def randomise_norms(model):
    """Move every batch norm away from its initial ones and zeros, which would hide a swapped or skipped term.

    The counter starts at 7, so that a reader can tell "incremented" from "set to one".
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.2)
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)


def copy_of(state):
    """A state dict that later training does not write through."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def is_running_statistic(name):
    return name.endswith((".running_mean", ".running_var"))
