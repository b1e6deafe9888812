"""Checks exported networks with ONNX Runtime: of every family, it must give the logits that `medmerge predict` gives.

Usage: python tests/onnx_check.py [PROGRAM] [NAME …]

PROGRAM is the medmerge to check, by default target/debug/medmerge; NAMEs choose among the networks below. Needs numpy, onnx
and onnxruntime. Each network is narrow, trained for an epoch on random images, and disturbed in every number, so that no bias
is 0 and no scale 1. It is exported for images of their size and, where that is possible, of any; with the normalisation in the
graph and without. The exit status is 1 if a model is not valid ONNX or a logit differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime

# Of the largest logit. Both compute in float32, in another order; a wrong stride, sign or order gives errors near 1.
TOLERANCE = 1e-4
# Of the largest logit: how much the logits of different images must differ, so that a mistake before the last bias shows.
SPREAD = 1e-2
IMAGES = 6
CLASSES = 5
MEAN, STD = [0.1, 0.4, 0.6], [0.2, 0.3, 0.45]
OPSETS = range(17, 24)

# Architecture and options, height and width, channels of the images.
NETWORKS = [
    ("resnet8 --width 4", (20, 17), 1),
    ("resnet18 --width 4 --stem 3x3", (24, 20), 3),
    ("resnet18 --width 4", (45, 33), 3),
    ("resnet18 --width 4 --stem 3x3-stride2-pool", (41, 50), 3),
    ("resnet50 --width 4", (40, 36), 3),
    ("resnext50_32x4d --width 16", (40, 36), 3),
    ("wide_resnet50_2 --width 8", (40, 36), 3),
    ("resnet20-option-a --width 4", (19, 22), 3),
    ("densenet121 --width 8", (64, 72), 3),
    # The first hidden layer sees 7 × 7 pixels, of: one that is repeated, 7 × 7, 14 × 7, windows that overlap, 4 × 10.
    ("vgg11 --width 4", (33, 40), 3),
    ("vgg16_bn --width 4", (224, 230), 3),
    ("vgg11 --width 4", (448, 224), 3),
    ("vgg11_bn --width 4", (300, 260), 3),
    ("vgg16 --width 4", (130, 330), 3),
]


def main():
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        sys.exit(__doc__)
    program = Path(arguments[0] if arguments else "target/debug/medmerge").absolute()
    chosen = [row for row in NETWORKS if not arguments[1:] or row[0].split()[0] in arguments[1:]]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for network, size, channels in chosen:
            check = Check(program, Path(folder), network, size, channels)
            failed += [f"{network}: {problem}" for problem in check.problems()]
    print(f"{len(chosen)} networks, {len(failed)} problems", *failed, sep="\n")
    sys.exit(1 if failed or not chosen else 0)


class Check:
    """One network: its images, its file, and what the program says of them."""

    def __init__(self, program, folder, network, size, channels):
        self.program, self.folder, self.network = program, folder, network
        self.mean, self.std = MEAN[:channels], STD[:channels]
        random = numpy.random.default_rng(0)
        shape = (IMAGES, *size) + ((channels,) if channels > 1 else ())
        self.images = random.integers(0, 256, shape, dtype=numpy.uint8)
        labels = numpy.arange(IMAGES)[:, None] % CLASSES
        splits = {f"{split}_{what}": array for split in ("train", "val", "test")
                  for what, array in (("images", self.images), ("labels", labels))}
        names = [f"class {number}" for number in range(CLASSES)]
        numpy.savez(folder / "data.npz", class_names=numpy.array(names), **splits)
        self.run(f"train --data data.npz --architecture {network} --epochs 1 --batch-size 3 {self.normalisation()} "
                 "--out trained.safetensors --force")
        disturb(folder / "trained.safetensors", folder / "network.safetensors", random)
        csv = self.run("predict --model network.safetensors --data data.npz --logits --format medmnist --out -")
        self.expected = numpy.array([[float(score) for score in line.split(",")[1:]] for line in csv.splitlines()])

    def normalisation(self):
        mean, std = [",".join(map(str, values)) for values in (self.mean, self.std)]
        return f"--mean {mean} --std {std}"

    def run(self, arguments):
        command = [self.program, "--quiet", *arguments.split()]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"medmerge {arguments}\n{done.stderr}")
        return done.stdout

    def problems(self):
        """What is wrong; prints a line for each form of the graph."""
        spread = self.expected.std(axis=0).max() / numpy.abs(self.expected).max()
        if not spread >= SPREAD:
            yield f"the images differ by {spread:.1e} of the largest logit: too little to see a mistake by"
        forms = ["", "--normalise"] if self.network.startswith("vgg") else ["", "--normalise", "--image-size any"]
        if self.network.startswith("resnet8"):
            forms += [f"--normalise --opset {opset}" for opset in OPSETS]
        for form in forms:
            self.run(f"export network.safetensors --onnx network.onnx --force {form}")
            yield from self.compare(form)

    def compare(self, form):
        path = self.folder / "network.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        if json.loads(metadata["medmerge.class_names"])[1] != "class 1" or "medmerge.architecture" not in metadata:
            yield f"metadata {metadata}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        images = self.numbers("--normalise" in form)
        whole = session.run(["logits"], {"images": images})[0]
        single = session.run(["logits"], {"images": images[:1]})[0]
        for what, logits, expected in (("all", whole, self.expected), ("one", single, self.expected[:1])):
            difference = numpy.abs(logits - expected).max() / numpy.abs(expected).max()
            if what == "all":
                print(f"{self.network:45} {'×'.join(map(str, images.shape[1:])):>10} {form:26} {difference:.1e}")
            # A NaN is a difference too.
            if logits.shape != expected.shape or not difference <= TOLERANCE:
                yield f"{form}: {what} of the images: {difference:.1e} of the largest logit"

    def numbers(self, is_normalised_later):
        """The images as the graph takes them: N×C×H×W in float32."""
        images = self.images if self.images.ndim == 4 else self.images[..., None]
        images = images.transpose(0, 3, 1, 2).astype(numpy.float32)
        if is_normalised_later:
            return images
        mean, std = [numpy.array(values, numpy.float32)[:, None, None] for values in (self.mean, self.std)]
        return (images / 255 - mean) / std


def disturb(path, to, random):
    """Copies a safetensors file with every float changed by something of its tensor's size; variances stay above 0."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), bytearray(content[start:])
    for name, entry in header.items():
        if entry.get("dtype") != "F32":
            continue
        begin, end = entry["data_offsets"]
        values = numpy.frombuffer(data[begin:end], numpy.float32)
        if name.endswith("running_var"):
            values = values * random.uniform(0.5, 2, values.shape)
        else:
            values = values + random.normal(0, 0.1 * (values.std() + 0.1 * (values.ndim == 1)), values.shape)
        data[begin:end] = values.astype(numpy.float32).tobytes()
    to.write_bytes(content[:start] + data)


if __name__ == "__main__":
    main()
