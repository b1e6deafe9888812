#!/usr/bin/env python3
"""DICOM files as medmerge reads them, beside pydicom: by hand, since it takes numpy, pydicom 3, pylibjpeg and its plugins.

    pip install numpy pydicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pylibjpeg-rle
    cargo build --release --example to_npz
    tests/golden/check_dicom.py target/release/examples/to_npz [FILE...]

Without files, those that pydicom comes with. Each is read in its own size, or, where that is no square or too large, resized by the
same whole numbers here. What is lossless agrees in every bit; a value that lies between two steps to within 1e-9 may take either.
Lossy codecs may round as they like: what they may differ by stands below, in steps of 255.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy
import pydicom
import pydicom.data
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, pixel_array

warnings.simplefilter("ignore")
program = pathlib.Path(sys.argv[1]).resolve()
LARGEST = 1024
# Of decoders that round as they like: JPEG, JPEG 2000. Where files are to be compared at all.
LOSSY = {"1.2.840.10008.1.2.4.50": 4, "1.2.840.10008.1.2.4.51": 4, "1.2.840.10008.1.2.4.91": 1}


def with_groups(ds, frame):
    """What files of many frames say of one of them, or of all, as if it stood in the data set itself."""
    groups = []
    if "PerFrameFunctionalGroupsSequence" in ds and frame < len(ds.PerFrameFunctionalGroupsSequence):
        groups.append(ds.PerFrameFunctionalGroupsSequence[frame])
    groups += list(ds.get("SharedFunctionalGroupsSequence", []))[:1]
    for group in reversed(groups):
        for sequence in ["PixelValueTransformationSequence", "FrameVOILUTSequence"]:
            for element in (group[sequence].value[0] if sequence in group else []):
                ds[element.tag] = element
    return ds


def shown(path):
    """Samples of 0 to 1, or colours of eight bits; and whether the file is one of sixteen bits."""
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1" if not ds.original_encoding[0] else "1.2.840.10008.1.2"
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    array = pixel_array(ds, index=frames // 2)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        # pydicom takes the words of a palette as if the low byte came first, wherever they are.
        for tag in [0x00281201, 0x00281202, 0x00281203]:
            if tag in ds and not ds.original_encoding[1] and len(ds[tag].value) % 2 == 0:
                ds[tag].value = numpy.frombuffer(ds[tag].value, ">u2").astype("<u2").tobytes()
        array = apply_color_lut(array, ds)
    if ds.SamplesPerPixel == 3 or ds.PhotometricInterpretation == "PALETTE COLOR":
        bits = array.dtype.itemsize * 8
        return (array >> (bits - 8)).astype(int), False
    with_groups(ds, frames // 2)
    values = apply_modality_lut(array, ds)
    if "VOILUTSequence" in ds:
        item = ds.VOILUTSequence[0]
        count, first, bits = item.LUTDescriptor
        table = numpy.asarray(item.LUTData)
        y = table[(values - first).clip(0, (count or 65536) - 1)] / (2**bits - 1)
    elif "WindowWidth" in ds and "WindowCenter" in ds:
        # From the range that pydicom gives a window to 0 to 1.
        least, most = -1e9, 1e9
        ends = apply_windowing(numpy.array([least, most]), ds)
        y = (apply_windowing(values, ds) - ends[0]) / (ends[1] - ends[0])
    else:
        values = values.astype(float)
        y = (values - values.min()) / max(values.max() - values.min(), 1e-300)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        y = 1 - y
    return y, ds.BitsStored > 8


def resized(samples, side):
    """By triangles in multiples of 2^-22, rows before columns, each rounded: Pillow's way."""
    top = 255 if samples.max() <= 255 else 65535
    for axis in [1, 0]:
        size = samples.shape[axis]
        if size == side:
            continue
        scale = size / side
        reach = max(scale, 1.0)
        out = []
        for place in range(side):
            center = (place + 0.5) * scale
            first, end = int(max(center - reach + 0.5, 0)), min(int(center + reach + 0.5), size)
            weights = numpy.maximum(1 - numpy.abs((numpy.arange(first, end) + 0.5 - center) / reach), 0)
            weights = (weights / weights.sum() * 2**22 + 0.5).astype(numpy.int64)
            part = numpy.moveaxis(samples, axis, -1)[..., first:end]
            out.append(((part * weights).sum(-1) + 2**21 >> 22).clip(0, top))
        samples = numpy.moveaxis(numpy.stack(out, -1), -1, axis)
    return samples


def ours(path, side, folder):
    """As the program reads it, or why it does not."""
    for place in ["train/a", "train/b", "val/a", "test/a"]:
        (folder / place).mkdir(parents=True)
        os.symlink(path, folder / place / "x.dcm")
    run = subprocess.run([program, folder, folder / "data.npz", str(side)], capture_output=True, text=True)
    if run.returncode:
        return None, run.stderr.strip().splitlines()[-1].split("x.dcm: ")[-1]
    return numpy.load(folder / "data.npz")["test_images"][0].astype(numpy.int64), None


counts = {}
files = sys.argv[2:] or [path for path in pydicom.data.get_testdata_files() if os.path.isfile(path)]
for path in sorted(files, key=os.path.basename):
    try:
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        syntax = str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID", ""))
        theirs, is_deep = shown(path)
        reason = None
    except Exception as error:
        if "Rows" not in ds:
            continue
        theirs, reason = None, " ".join(str(error).split())[:90]
    with tempfile.TemporaryDirectory() as folder:
        height, width = ds.Rows, ds.Columns
        side = height if height == width and height <= LARGEST else min(LARGEST, max(height, width))
        read, refused = ours(os.path.abspath(path), side, pathlib.Path(folder))
    verdict, detail = "equal", ""
    if theirs is None or read is None:
        verdict = {(True, True): "refused by both", (True, False): "refused by pydicom"}.get(
            (theirs is None, read is None), "refused by us")
        detail = f"{refused or ''}{' | pydicom: ' + reason if reason else ''}"
    else:
        top = 65535 if is_deep else 255
        whole = theirs if theirs.ndim == 3 else numpy.floor(theirs * top + 0.5)
        whole = whole.astype(numpy.int64)
        expected = whole if whole.shape[:2] == (side, side) else resized(whole, side)
        far = numpy.abs(read - expected) if read.shape == expected.shape else None
        if far is None:
            verdict, detail = "DIFFERENT", f"{read.shape}, not {expected.shape}"
        elif far.max() > 0:
            # Where a value lies between two steps, either will do.
            is_tie = theirs.ndim == 2 and whole.shape == read.shape and (
                numpy.abs(theirs * top % 1 - 0.5)[far > 0] < 1e-9).all() and far.max() == 1
            allowed = LOSSY.get(syntax, 0) * (257 if is_deep else 1)
            verdict = "equal but for ties" if is_tie else "near" if far.max() <= allowed else "DIFFERENT"
            detail = f"by up to {far.max()} of {top}, {far.mean():.3g} in the mean, {(far > 0).mean():.1%} of samples"
    counts[verdict] = counts.get(verdict, 0) + 1
    print(f"{verdict:20} {os.path.basename(path):44} {detail}")
print(counts)
sys.exit(counts.get("DIFFERENT", 0) > 0)
