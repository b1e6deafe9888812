"""Writes the files beside this script. Needs PyTorch, safetensors and numpy; the README tells the versions."""

import argparse

import numpy
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
shared = torch.randn(12)
tensors = {
    "conv1.weight": torch.nn.Parameter(torch.randn(2, 3, 1, 1)),
    "transposed": shared.view(3, 4).t(),
    "sliced": shared[2:8:2],
    "expanded": torch.randn(2, 1).expand(2, 3),
    "half": torch.randn(2, dtype=torch.float16),
    "bfloat": torch.randn(2, dtype=torch.bfloat16),
    "double": torch.randn(2, dtype=torch.float64),
    "bn1.num_batches_tracked": torch.tensor(1 << 40),
    "integers": torch.tensor([-1, 2], dtype=torch.int16),
    "mask": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
}
model = torch.nn.Module()
model.state = torch.nn.Identity()
state = model.state_dict()
state.update(tensors)
checkpoint = {
    "state_dict": state,
    "list": [torch.ones(1), (torch.zeros(1), 3)],
    "best_prec1": 91.78,
    "args": argparse.Namespace(lr=0.1, device=torch.device("cuda:0")),
    "loss": numpy.float64(0.5),
    "confusion": numpy.eye(2),
    "dtype": torch.float32,
    "size": torch.Size([1, 2]),
}


def flat(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name[1:]: value.detach().clone(memory_format=torch.contiguous_format)}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: tensor for at, inner in entries for key, tensor in flat(inner, f"{name}.{at}").items()}


save_file(flat(checkpoint), "expected.safetensors")
torch.save(checkpoint, "zip.pth")
torch.save(checkpoint, "zip_protocol5.pth", pickle_protocol=5)
torch.save(checkpoint, "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(checkpoint, "legacy_protocol4.pth", _use_new_zipfile_serialization=False, pickle_protocol=4)

untyped = {"w": torch.tensor([1, 65535], dtype=torch.uint16), "best_prec1": 91.78}
save_file(flat(untyped), "untyped.safetensors")
torch.save(untyped, "untyped.pth")
