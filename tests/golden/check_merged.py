"""Checks a merged model with PyTorch: it must load strictly into torchvision's ResNet and score the same.

Usage: python tests/golden/check_merged.py MODEL.safetensors DATA.npz SCORES.csv

MODEL has torchvision's names; depth, widths, stem and classes are read off its tensors. DATA is an archive in the
manner of MedMNIST, of which the test split is scored. SCORES holds the logits to compare as `medmerge predict --logits` writes
them, or rows `index,score0,score1,…` without a header. The exit status is 1 if they differ.
"""

import csv
import sys

import numpy
import torch
from safetensors.torch import load_file

import networks

TOLERANCE = 1e-8  # of the normalised error, Σ (a − b)² / Σ b²: about 1e-4 of a logit, far above float32's rounding
BATCH = 256


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model_path, data_path, scores_path = sys.argv[1:]
    torch.set_num_threads(2)
    model = load_model(model_path)
    expected = logits_of(model, read_test_images(data_path, model.conv1.in_channels))
    scores = read_scores(scores_path, expected.shape)
    sys.exit(report(scores, expected))


def load_model(path):
    state = load_file(path)
    model = networks.from_state(state)
    model.load_state_dict(state, strict=True)
    return model.eval()


def read_test_images(path, channels):
    """The test split as [N, C, S, S] in [-1, 1]; grey images are repeated to the channels of the network."""
    images = torch.from_numpy(numpy.load(path)["test_images"])
    if images.dim() == 3:
        images = images[:, None].expand(-1, channels, -1, -1)
    else:
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] != channels:
        sys.exit(f"error: the images have {images.shape[1]} channels, the model takes {channels}")
    return (images.float() / 255 - 0.5) / 0.5


def logits_of(model, images):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(BATCH)]).double().numpy()


def read_scores(path, shape):
    """The rows by their index, which must name every image once, in whatever order."""
    scores, first = {}, 1
    with open(path, newline="") as file:
        for row in csv.reader(file):
            if row and row[0] == "index":
                # Labels and names may stand before them.
                first = row.index("score0")
            if not row or row[0] == "index":
                continue
            index = int(row[0])
            if index in scores:
                sys.exit(f"error: {path} has two rows for image {index}")
            scores[index] = [float(score) for score in row[first:]]
    if sorted(scores) != list(range(shape[0])):
        sys.exit(f"error: {path} has {len(scores)} rows, which are not the {shape[0]} images of the test split")
    if any(len(row) != shape[1] for row in scores.values()):
        sys.exit(f"error: {path} has a row that does not hold {shape[1]} scores")
    return numpy.array([scores[index] for index in range(shape[0])])


def report(scores, expected):
    """Prints the two errors. A NaN on either side is a failure, which no comparison with `>` would notice."""
    error = float(numpy.square(scores - expected).sum() / numpy.square(expected).sum())
    print(f"images {expected.shape[0]}, classes {expected.shape[1]}")
    print(f"largest absolute difference {numpy.abs(scores - expected).max():.3e}")
    print(f"normalised error {error:.3e} (at most {TOLERANCE:.0e})")
    if numpy.isfinite(scores).all() and numpy.isfinite(expected).all() and error <= TOLERANCE:
        print("the scores agree")
        return 0
    print("the scores differ")
    return 1


if __name__ == "__main__":
    main()
