#!/usr/bin/env python3
"""Cuts HAM10000 into its three parts, which share no lesion: two sources and a target.

    docs/evidence/parts.py FOLDER OUT

Reads FOLDER/npz/ham10000_28.npz and, row by row of its splits, the column `part` of FOLDER/npz/ham10000_index.csv; writes OUT/ham_A.npz,
ham_B.npz and ham_T.npz with the same splits and classes. Takes numpy.
"""

import csv
import pathlib
import sys

import numpy

folder, out = map(pathlib.Path, sys.argv[1:3])
images = numpy.load(folder / "npz/ham10000_28.npz")
part_of = {}
with open(folder / "npz/ham10000_index.csv", newline="") as file:
    for row in csv.DictReader(file):
        part_of[row["split"], int(row["row"])] = row["part"]
for part in "ABT":
    arrays = {}
    for split in ["train", "val", "test"]:
        pixels, labels = images[f"{split}_images"], images[f"{split}_labels"]
        rows = [row for row in range(len(labels)) if part_of[split, row] == part]
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = pixels[rows], labels[rows]
    numpy.savez(out / f"ham_{part}.npz", **arrays)
    print(part, {name: len(array) for name, array in arrays.items() if name.endswith("labels")}, file=sys.stderr)
