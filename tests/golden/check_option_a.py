"""Logits of public CIFAR ResNets with option-A shortcuts: PyTorch beside this program.

    python tests/golden/check_option_a.py PROGRAM DATA.npz WEIGHTS.th …

Needs torch and numpy. Each file holds a state dict, perhaps within {"state_dict": …} and under "module.", of the networks for
CIFAR that He et al. describe: their shortcuts take every second pixel and fill new channels with zeros. The images are the
test split of a data set in MedMNIST's format.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def normalised(x, weights, name):
    return F.batch_norm(x, *(weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def logits(weights, x):
    x = F.relu(normalised(F.conv2d(x, weights["conv1.weight"], padding=1), weights, "bn1"))
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in weights:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(normalised(y, weights, f"{name}.bn1"))
            y = normalised(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), weights, f"{name}.bn2")
            if stride == 2:
                zeros = (y.shape[1] - x.shape[1]) // 2
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros, zeros))
            x = F.relu(x + y)
            block += 1
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def ours(program, data, file):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.csv"
        command = [program, "predict", "--model", file, "--data", data, "--logits", "--format", "medmnist", "--out", out]
        without_labels = Path(folder) / "images.npz"
        np.savez(without_labels, test_images=np.load(data)["test_images"])
        command[command.index(data)] = without_labels
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return np.loadtxt(out, delimiter=",")[:, 1:]


def main(program, data, *files):
    images = torch.from_numpy(np.load(data)["test_images"]).double()
    x = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    worst = 0
    for file in files:
        content = torch.load(file, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        weights = {name.removeprefix("module."): tensor.double() for name, tensor in state.items()}
        expected = logits(weights, x).numpy()
        error = np.linalg.norm(ours(program, data, file) - expected) / np.linalg.norm(expected)
        print(f"{Path(file).name}: {len(expected)} images, normalised error {error:.1e}")
        worst = max(worst, error)
    # A NaN is not below anything.
    sys.exit(0 if worst < 1e-5 else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
