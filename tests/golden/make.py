"""Writes the golden files: what PyTorch computes, for the crate's tests to compare with.

Usage: python tests/golden/make.py [--compare-float32] [NAME…]

Without names, all files are written.

Everything is computed in float64 from values that float32 holds exactly, and rounded to float32 once, on saving:
a golden is the correctly rounded truth, not one library's rounding of it. With `--compare-float32` nothing is
written; the same computations are repeated in float32, and the error of that is printed, for choosing tolerances.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

import full
import merge
import narrow

FOLDER = Path(__file__).parent

FILES = {
    "resnet20": narrow.resnet20,
    "resnet18_stem3": narrow.resnet18_stem3,
    "resnet18_stem7": narrow.resnet18_stem7,
    "resnet20_option_a": narrow.resnet20_option_a,
    "resnext": narrow.resnext,
    "densenet": narrow.densenet,
    "vgg": narrow.vgg,
    "vgg_bn": narrow.vgg_bn,
    "merge": merge.merge,
    "merge_densenet": merge.merge_densenet,
    "merge_vgg": merge.merge_vgg,
    "resnet18_full": full.resnet18_full,
    "resnet50_full": full.resnet50_full,
    "resnext50_32x4d_full": full.resnext50_32x4d_full,
    "densenet121_full": full.densenet121_full,
    "vgg16_full": full.vgg16_full,
    "vgg16_bn_full": full.vgg16_bn_full,
}


def main():
    # The order in which threads add numbers up is part of the result's last bits.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    arguments = sys.argv[1:]
    action = compare if "--compare-float32" in arguments else write
    names = [argument for argument in arguments if argument != "--compare-float32"] or FILES
    if unknown := [name for name in names if name not in FILES]:
        sys.exit(f"error: no golden is called {unknown[0]}; they are {', '.join(FILES)}")
    for name in names:
        action(name, FILES[name])


def write(name, make):
    path = FOLDER / f"{name}.safetensors"
    tensors = {key: storable(tensor) for key, tensor in make(torch.float64).items()}
    for key, tensor in tensors.items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{name}: {key} is not finite"
    # The version without its build tag: a CPU build and a CUDA build write the same file.
    version = torch.__version__.split("+")[0]
    path.write_bytes(with_sorted_header(save(tensors, metadata={"format": "pt", "torch": version})))
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size:,} bytes")


def storable(tensor):
    """Rounded to float32, and a scalar as the shape [1]. Integers stay what they are, counters as scalars."""
    if not tensor.is_floating_point():
        return tensor.contiguous()
    return tensor.to(torch.float32).reshape(tensor.shape or (1,)).contiguous()


def with_sorted_header(file):
    """The same file with its metadata in alphabetical order; safetensors writes a new order on every run."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def compare(name, make):
    """The worst normalised error of each kind of tensor, were it computed in float32."""
    truth, single = make(torch.float64), make(torch.float32)
    worst = {}
    for key, tensor in truth.items():
        if tensor.is_floating_point():
            error = normalised_error(single[key], tensor)
            kind = key.rpartition("/")[0] or key
            worst[kind] = max(worst.get(kind, (0.0, "")), (error, key))
    for kind, (error, key) in worst.items():
        if error > 0.0:
            print(f"{name:16} {kind:24} {error:.1e}  {key}")


def normalised_error(value, truth):
    """Σ (value − truth)² / Σ truth²."""
    value, truth = value.detach(), truth.detach().double()
    return float((value.double() - truth).square().sum() / truth.square().sum())


if __name__ == "__main__":
    main()
