#!/usr/bin/env python3
"""`medmerge bench data` beside PyTorch's DataLoader, on the same files, in turns.

    loading.py PROGRAM FOLDER [--image-size 224] [--batch-size 32] [--images 512] [--rounds 5] [--crop 0.08] [--flip]
               [--labels FILE.csv] [--workers 2]

The files are the first --images that medmerge takes for training (`inspect --write-splits`). PyTorch reads each by Pillow, brings it to the
size (RandomResizedCrop with --crop, else Resize), to a tensor and normalises it, by torchvision's transforms v2 on --workers processes;
without a crop both do the same work to the bit but for rounding. Workers are started before the clock, and stay.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import tempfile
import time

import figures
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2


class Files(torch.utils.data.Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def transforms(options):
    size = [options.image_size] * 2
    if options.crop:
        steps = [v2.RandomResizedCrop(size, scale=(options.crop, 1.0), antialias=True)]
    else:
        steps = [v2.Resize(size, antialias=True)]
    if options.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    return v2.Compose(steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--crop", type=float)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--labels")
    options = parser.parse_args()

    data = ["--image-size", str(options.image_size)] + (["--labels", options.labels] if options.labels else [])
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "splits.csv"
        command = [options.program, "inspect", str(options.folder), *data, "--write-splits", str(table)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with table.open() as rows:
            names = [row["image"] for row in csv.DictReader(rows) if row["split"] == "train"]
    paths = [options.folder / name for name in names[: options.images]]
    augment = (["--crop", str(options.crop)] if options.crop else []) + (["--flip"] if options.flip else [])
    bench = [options.program, "bench", "data", "--data", str(options.folder), *data, *augment, "--json", "--rounds", "1"]
    bench += ["--images", str(options.images), "--batch-size", str(options.batch_size), "--threads", str(options.workers)]

    loader = torch.utils.data.DataLoader(
        Files(paths, transforms(options)),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    theirs, ours = [], {}
    for turn in range(options.rounds + 1):
        start = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        seconds = time.perf_counter() - start
        assert seen == len(paths)
        found = json.loads(subprocess.run(bench, check=True, capture_output=True, text=True).stdout)["measured"]
        assert found["images"] == len(paths), "the same images"
        # The first starts workers and brings files into memory.
        if turn > 0:
            theirs.append(seconds)
            for stage in found["stages"]:
                ours.setdefault(stage["name"], []).append(stage["seconds"]["median"])
            ours.setdefault("step", []).append(len(paths) / found["step_images_per_second"])

    rate = lambda seconds: len(paths) / figures.quantile(sorted(seconds), 0.5)
    peer = rate(theirs)
    print(f"{len(paths)} images of {options.folder.name}, {options.image_size} px, {options.workers} threads or workers; "
          f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {Image.__version__}\n")
    rows = [["PyTorch's DataLoader", f"{peer:.0f}", "1.00", f"{peer / rate(ours['step']):.1f}"]]
    for name, seconds in ours.items():
        label = "a step of resnet18" if name == "step" else name
        rows.append([label, f"{rate(seconds):.0f}", f"{rate(seconds) / peer:.2f}", f"{rate(seconds) / rate(ours['step']):.1f}"])
    print(figures.table(["", "images/s", "× DataLoader", "× the step"], rows))


if __name__ == "__main__":
    main()
