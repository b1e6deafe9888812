"""Checks what `--names`, `--dtype` and `--card` write with the programs that shall read it.

Usage: python tests/golden/check_written.py PROGRAM [NETWORK …]

PROGRAM is `medmerge`, whose jobs are run in a temporary folder on generated images. Each file must load strictly into the
network of torchvision, timm or transformers, and score the test images as `medmerge predict --logits` does. Folders that
`--card` completes must load with timm's and transformers' own functions. It needs torch, torchvision, timm, transformers and
safetensors. The exit status is 1 if anything differs.
"""

import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from timm.models.vgg import VGG as TimmVgg
from torchvision.models.vgg import VGG, cfgs, make_layers

TOLERANCE = 1e-8  # of the normalised error, Σ (a − b)² / Σ b²
CLASSES = 16
WIDTH = 8  # of the VGGs, whose usual one takes gigabytes to train

NETWORKS = ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "vgg11", "vgg16_bn"]
VGGS = {"vgg11": "A", "vgg16_bn": "D"}  # by torchvision's letters


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = pathlib.Path(sys.argv[1]).resolve()
    torch.set_num_threads(2)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        check = Check(program, pathlib.Path(folder))
        for name in sys.argv[2:] or NETWORKS:
            failures += check.network(name)
    sys.exit(f"{failures} checks failed" if failures else 0)


class Check:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        counts = "--source-train 16 --target-train 16 --val 4 --test 12".split()
        self.run("synth", "--out", "data", "--image-size", "64", "--channels", "3", *counts)
        images = torch.from_numpy(numpy.load(folder / "data/target.npz")["test_images"])
        self.images = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

    def run(self, *arguments):
        subprocess.run([self.program, "--quiet", *arguments], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def network(self, name):
        """Writes a network in every form that it has; the number of those that do not load."""
        width = ["--width", str(WIDTH)] if name.startswith("vgg") else []
        epoch = "--data data/target.npz --epochs 1 --batch-size 8".split()
        self.run("train", *epoch, "--architecture", name, *width, "--out", f"{name}.safetensors")
        forms = ["torchvision", "timm"] + ["transformers"] * (name in ["resnet18", "resnet50"])
        failures = 0
        for names in forms:
            for dtype in ["f32", "bf16", "f16"]:
                failures += not self.form(name, names, dtype)
            if not width and names != "torchvision":
                failures += not self.card(name, names)
        (self.folder / f"{name}.safetensors").unlink()
        return failures

    def form(self, name, names, dtype):
        path = self.write(name, names, dtype, "form/model.safetensors")
        state = load_file(path)
        types = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        assert types == {{"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]}, types
        model = network(name, names)
        model.load_state_dict(state, strict=True)
        return self.compare(f"{name} {names} {dtype}", path, model)

    def card(self, name, names):
        """Loads the folder of a network as its exporter does."""
        path = self.write(name, names, "f32", "card/model.safetensors", "--card")
        config = json.loads((path.parent / "config.json").read_text())
        if names == "transformers":
            model, told = transformers.ResNetForImageClassification.from_pretrained(path.parent, output_loading_info=True)
            told = {key: told[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"]}
            assert not any(told.values()), told
            assert model.config.num_labels == CLASSES
        else:
            model = timm.create_model(f"local-dir:{path.parent}", pretrained=True)
            assert model.num_classes == CLASSES and config["architecture"] == name
            assert list(model.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5], model.pretrained_cfg
            other = timm.create_model(name, num_classes=CLASSES)
            timm.models.load_checkpoint(other, str(path), strict=True)
        readme = (path.parent / "README.md").read_text()
        assert readme.startswith("---\n") and "\n---\n" in readme, readme
        return self.compare(f"{name} {names} --card", path, model)

    def write(self, name, names, dtype, out, *more):
        (self.folder / out).parent.mkdir(exist_ok=True)
        models = ["--models", f"{name}.safetensors", f"{name}.safetensors", "--coefficients", "0.5,0.5"]
        self.run("merge", *models, "--names", names, "--dtype", dtype, "--out", out, "--force", *more)
        return self.folder / out

    def compare(self, what, path, model):
        """Whether PyTorch's logits are those of `medmerge predict`."""
        data = "--data data/target.npz --logits --out scores.csv --force".split()
        self.run("predict", "--model", str(path), *data)
        with open(self.folder / "scores.csv", newline="") as file:
            rows = list(csv.reader(file))
        first = rows[0].index("score0")
        scores = numpy.array([[float(score) for score in row[first:]] for row in rows[1:]])
        with torch.no_grad():
            output = model.float().eval()(self.images)
        expected = getattr(output, "logits", output).double().numpy()
        error = float(numpy.square(scores - expected).sum() / numpy.square(expected).sum())
        agrees = scores.shape == expected.shape and error <= TOLERANCE
        print(f"{what:40} normalised error {error:.1e}{'' if agrees else ', and they differ'}")
        return agrees


def network(name, names):
    if names == "transformers":
        sizes, layer = ([64, 128, 256, 512], "basic") if name == "resnet18" else ([256, 512, 1024, 2048], "bottleneck")
        depths = [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]
        config = transformers.ResNetConfig(hidden_sizes=sizes, depths=depths, layer_type=layer, num_labels=CLASSES)
        return transformers.ResNetForImageClassification(config)
    if name not in VGGS:
        make = torchvision.models.get_model if names == "torchvision" else timm.create_model
        return make(name, num_classes=CLASSES)
    layers = [size if size == "M" else size // 64 * WIDTH for size in cfgs[VGGS[name]]]
    hidden, has_norm = 64 * WIDTH, name.endswith("_bn")
    if names == "timm":
        norm = torch.nn.BatchNorm2d if has_norm else None
        model = TimmVgg(layers, num_classes=CLASSES, in_chans=3, norm_layer=norm)
        return narrowed(model, layers[-2], hidden)
    model = VGG(make_layers(layers, batch_norm=has_norm), num_classes=CLASSES, init_weights=False)
    model.classifier[0] = torch.nn.Linear(49 * layers[-2], hidden)
    model.classifier[3] = torch.nn.Linear(hidden, hidden)
    model.classifier[6] = torch.nn.Linear(hidden, CLASSES)
    return model


def narrowed(model, channels, hidden):
    """A VGG of timm's with fewer filters in its hidden layers, whose number is a constant there."""
    model.pre_logits.fc1 = torch.nn.Conv2d(channels, hidden, 7)
    model.pre_logits.fc2 = torch.nn.Conv2d(hidden, hidden, 1)
    model.head.fc = torch.nn.Linear(hidden, CLASSES)
    return model


if __name__ == "__main__":
    main()
