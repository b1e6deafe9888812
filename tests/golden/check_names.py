"""Checks that the program reads what other libraries write: their names, shapes and orders of a network's tensors.

Usage: python tests/golden/check_names.py MEDMERGE [NAME…]

MEDMERGE is the program; without names, all networks are checked. timm, transformers and torchvision build them with
random weights, nothing is downloaded. MONAI's names, and those of RadImageNet and of torchvision before 0.3, are given
to torchvision's networks here. Each file has to be a network to `inspect`, and `predict` has to find the logits that
the library finds. The exit status is 1 if any does not.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file

import check_merged
import networks

CLASSES = 4
IMAGES = 4  # one of each class
SIZE = 64


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program, names = sys.argv[1], sys.argv[2:] or NETWORKS
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        write_images(data)
        failed = [name for name in names if not check(program, name, data, Path(folder))]
    print(f"{len(names)} networks; " + (f"these failed: {', '.join(failed)}" if failed else "all are read as they are"))
    sys.exit(1 if failed else 0)


# Each gives a model, and its state dict under the names that are to be checked.


def own_names(model):
    networks.randomise_norms(model)
    return model, model.state_dict()


def timm_model(name):
    return lambda: own_names(timm.create_model(name, num_classes=CLASSES))


def torchvision_model(name, rename):
    """torchvision's network under names that `rename` makes of its own."""

    def build():
        model, state = own_names(getattr(torchvision.models, name)(num_classes=CLASSES))
        return model, {rename(key): tensor for key, tensor in state.items()}

    return build


def transformers_resnet(**widths):
    def build():
        config = transformers.ResNetConfig(num_labels=CLASSES, **widths)
        return own_names(transformers.ResNetForImageClassification(config))

    return build


def monai(name):
    """`DenseNet` of MONAI keeps the parts of a layer in a module of their own, and its classifier beside others."""
    name = re.sub(r"(denselayer\d+)\.", r"\1.layers.", name)
    return re.sub(r"^classifier\.", "class_layers.out.", name)


def before_03(name):
    return re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", name)


def radimagenet(name):
    """A `Sequential` of the children of torchvision's ResNet, in their order; its head stands beside it."""
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    first, _, rest = name.partition(".")
    return f"backbone.{children[first]}.{rest}" if first in children else name


def in_wrappers(name):
    return f"state_dict.module.{name}"


NETWORKS = {
    "timm resnet18": timm_model("resnet18"),
    "timm resnet50": timm_model("resnet50"),
    "timm resnext50_32x4d": timm_model("resnext50_32x4d"),
    "timm wide_resnet50_2": timm_model("wide_resnet50_2"),
    "timm densenet121": timm_model("densenet121"),
    "timm vgg16": timm_model("vgg16"),
    "timm vgg11_bn": timm_model("vgg11_bn"),
    "transformers basic": transformers_resnet(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 1, 2]
    ),
    "transformers bottleneck": transformers_resnet(
        layer_type="bottleneck", embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 1, 1]
    ),
    "MONAI densenet121": torchvision_model("densenet121", monai),
    "torchvision before 0.3 densenet121": torchvision_model("densenet121", before_03),
    "RadImageNet resnet50": torchvision_model("resnet50", radimagenet),
    "wrapped resnet18": torchvision_model("resnet18", in_wrappers),
}


def write_images(path):
    generator = numpy.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=numpy.uint8)
        arrays[f"{split}_labels"] = numpy.arange(IMAGES, dtype=numpy.uint8)[:, None]
    numpy.savez(path, **arrays)


def check(program, name, data, folder):
    torch.manual_seed(0)
    model, state = NETWORKS[name]()
    file, scores = folder / "model.safetensors", folder / "scores.csv"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    print(f"-- {name}")
    if not runs([program, "inspect", file]):
        return False
    predict = [program, "--quiet", "predict", "--model", file, "--data", data, "--logits"]
    if not runs([*predict, "--out", scores, "--force"]):
        return False
    expected = expected_logits(model.eval(), data)
    return check_merged.report(check_merged.read_scores(scores, expected.shape), expected) == 0


def runs(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stderr.strip() or result.stdout.strip())
    return result.returncode == 0


def expected_logits(model, data):
    images = check_merged.read_test_images(data, 3)
    with torch.no_grad():
        scores = model(images)
    # transformers returns an object.
    return getattr(scores, "logits", scores).double().numpy()


if __name__ == "__main__":
    main()
