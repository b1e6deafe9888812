"""The networks of the golden files: torchvision's own ResNet, with other widths and other stems.

Nothing of a forward pass is written here. A golden file is only worth something if PyTorch and torchvision
computed it, so the class below replaces layers of torchvision's ResNet and keeps its `forward`.
"""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

TORCHVISION_WIDTHS = [64, 128, 256, 512]


class ResizedResNet(ResNet):
    """A ResNet of any width, with three stages (the CIFAR layout) or four (the ImageNet layout).

    `stem` is the kernel size of the first convolution. 7 is torchvision's stem: stride 2, then max pooling.
    3 is the stem for small images: stride 1, no pooling.
    """

    def __init__(self, block, blocks, widths, stem, channels, classes):
        # The parent builds full-width stages, all of which are replaced below. That costs a moment, and saves
        # a second copy of the parent's constructor and forward.
        super().__init__(block, [1, 1, 1, 1], num_classes=classes)
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


def resnet20():
    return ResizedResNet(BasicBlock, [3, 3, 3], [4, 8, 16], stem=3, channels=3, classes=5)


def resnet18_stem3():
    return ResizedResNet(BasicBlock, [2, 2, 2, 2], [4, 8, 16, 32], stem=3, channels=1, classes=5)


def resnet18_stem7():
    return ResizedResNet(BasicBlock, [2, 2, 2, 2], [4, 8, 16, 32], stem=7, channels=3, classes=5)


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
