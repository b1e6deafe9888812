#!/usr/bin/env python3
"""Images as medmerge reads them, beside Pillow: by hand, since it takes Pillow and numpy.

    cargo build --release --example to_npz
    tests/golden/check_images.py target/release/examples/to_npz

Writes images of every kind, has each read in its own size and in others, and compares. What is lossless, and every resizing of it, agrees
in every bit. A JPEG may differ by a few steps, since decoders may round as they like (ITU-T T.83).
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy
from PIL import Image, ImageOps

program = pathlib.Path(sys.argv[1]).resolve()
rng = numpy.random.default_rng(5)
HEIGHT, WIDTH = 45, 60
ramp = numpy.add.outer(numpy.linspace(0, 120, HEIGHT), numpy.linspace(0, 120, WIDTH))
smooth = numpy.stack([ramp, 240 - ramp, ramp[::-1]], axis=2)
colour = (smooth + rng.integers(0, 15, smooth.shape)).clip(0, 255).astype(numpy.uint8)
grey = colour[:, :, 0]
deep = (ramp * 256 + rng.integers(0, 4000, ramp.shape)).clip(0, 65535).astype(numpy.uint16)
rgb, luma = Image.fromarray(colour), Image.fromarray(grey)
alpha = Image.fromarray(rng.integers(0, 256, grey.shape).astype(numpy.uint8))


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


with_alpha, grey_alpha, palette = rgb.convert("RGBA"), luma.convert("LA"), rgb.quantize(64)
with_alpha.putalpha(alpha)
grey_alpha.putalpha(alpha)
# Name, image, how it is saved, how far it may differ.
images = [
    ("rgb.png", rgb, {}, 0),
    ("grey.png", luma, {}, 0),
    ("rgba.png", with_alpha, {}, 0),
    ("la.png", grey_alpha, {}, 0),
    ("palette.png", palette, {}, 0),
    ("palette-transparent.png", palette, {"transparency": 3}, 0),
    ("bilevel.png", luma.convert("1"), {}, 0),
    ("rgb.bmp", rgb, {}, 0),
    ("palette.bmp", palette, {}, 0),
    ("rgb.tif", rgb, {}, 0),
    ("lzw.tif", rgb, {"compression": "tiff_lzw"}, 0),
    ("deflate.tif", rgb, {"compression": "tiff_adobe_deflate"}, 0),
    ("grey.tif", luma, {}, 0),
    ("lossless.webp", rgb, {"lossless": True}, 0),
    ("lossy.webp", rgb, {"quality": 90}, 1),
    ("444.jpg", rgb, {"quality": 95, "subsampling": 0}, 3),
    ("420.jpg", rgb, {"quality": 90}, 5),
    ("progressive.jpg", rgb, {"quality": 95, "subsampling": 0, "progressive": True}, 3),
    ("grey.jpg", luma, {"quality": 95}, 2),
    ("cmyk.jpg", rgb.convert("CMYK"), {"quality": 95}, 2),
] + [(f"turned{way}.png", rgb, {"exif": exif(way)}, 0) for way in range(1, 9)]

failed = 0
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)

    def read(name, side, channels):
        data = folder / "data.npz"
        subprocess.run([program, folder / name, data, str(side)], check=True, stderr=subprocess.DEVNULL)
        return numpy.load(data)["test_images"][0].reshape(side, side, -1)[:, :, :channels].squeeze()

    for name, image, options, allowed in images:
        # Two classes, three splits, of which the test split has the one image.
        root = folder / name
        for split in ["train", "val", "test"]:
            for kind in "ab" if split == "train" else "a":
                (root / split / kind).mkdir(parents=True)
                image.save(root / split / kind / name, **options)
        opened = ImageOps.exif_transpose(Image.open(root / "test" / "a" / name))
        is_grey = opened.mode in ["L", "LA", "1"]
        opened = opened.convert("L" if is_grey else "RGB")
        for side in [17, 45, 130]:
            theirs = numpy.asarray(opened.resize((side, side), Image.BILINEAR)).astype(int)
            ours = read(name, side, 1 if is_grey else 3).astype(int)
            far = int(numpy.abs(ours - theirs).max()) if ours.shape == theirs.shape else f"{ours.shape}, {theirs.shape}"
            is_well = isinstance(far, int) and far <= allowed
            failed += not is_well
            print(f"{'ok' if is_well else 'FAILED':7} {name:26} {side:4}  {far}, at most {allowed}")
sys.exit(failed > 0)
