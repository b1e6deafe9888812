//! Images in the formats that cameras, scanners and challenges write; those of DICOM by `dicom`.
//!
//! What comes out of the others is what Pillow makes of a file: upright by its EXIF orientation, colours of a palette looked up, transparency
//! dropped, sixteen bits kept where they are grey and made eight by their upper half where they are not; grey of a colour image is
//! ITU-R 601's, (299 R + 587 G + 114 B) / 1000.

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use super::dicom;
use super::files::Files;
use super::table::{base, extension};
use crate::data::{Depth, Image, Samples};

/// The most pixels of an image, before it is decoded: 30,000 a side would take gigabytes.
pub(super) const MOST_PIXELS: u64 = 128 << 20;

/// In lower case.
const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp"];

const DICOM_EXTENSIONS: [&str; 2] = ["dcm", "dicom"];

/// Whether a file is an image: by its name; where that has no extension, as DICOM files often are published, by DICOM's magic. What is
/// behind the last dot of a UID is none.
pub(super) fn is_image(files: &Files, index: usize) -> bool {
    let name = &files.names()[index];
    let extension = extension(name).to_ascii_lowercase();
    let is_of = |extensions: &[&str]| extensions.contains(&extension.as_str());
    let has_none = extension.bytes().all(|byte| byte.is_ascii_digit()) && base(name) != "DICOMDIR";
    let has_magic = || files.start(index, 132).is_ok_and(|start| start.get(128..) == Some(b"DICM"));
    is_of(&EXTENSIONS) || is_of(&DICOM_EXTENSIONS) || (has_none && has_magic())
}

/// Whether an image can be a DICOM file, by its name.
pub(super) fn may_be_dicom(name: &str) -> bool {
    !EXTENSIONS.contains(&extension(name).to_ascii_lowercase().as_str())
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    pub height: usize,
    pub width: usize,
    pub is_colour: bool,
    pub depth: Depth,
    /// How many there are, of which one is the image.
    pub frames: usize,
}

fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_, String> {
    if bytes.is_empty() {
        return Err("an empty file".into());
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none() {
        return Err("no JPEG, PNG, TIFF, BMP, WebP or DICOM image".into());
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(16 * MOST_PIXELS);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| reason(&error))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!("{width}×{height} pixels, more than {} million", MOST_PIXELS / 1_000_000));
    }
    if width == 0 || height == 0 {
        return Err("an image without pixels".into());
    }
    Ok(decoder)
}

fn reason(error: &image::ImageError) -> String {
    let text = error.to_string();
    format!("a damaged or unusual image ({})", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Reads the header alone.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    if dicom::is_dicom(bytes) {
        return dicom::header(bytes);
    }
    let decoder = decoder(bytes)?;
    let (width, height) = decoder.dimensions();
    let (is_colour, depth) = match decoder.color_type() {
        ColorType::L8 | ColorType::La8 => (false, Depth::Eight),
        ColorType::L16 | ColorType::La16 => (false, Depth::Sixteen),
        _ => (true, Depth::Eight),
    };
    Ok(Header { height: height as usize, width: width as usize, is_colour, depth, frames: 1 })
}

/// An image of so many channels, 1 or 3, and of that depth.
pub(super) fn decode(bytes: &[u8], channels: usize, depth: Depth) -> Result<Image<'static>, String> {
    let image = if dicom::is_dicom(bytes) { dicom::image(bytes, depth)? } else { upright(bytes)? };
    let [height, width] = [image.height(), image.width()].map(|side| side as usize);
    let samples = match (depth, channels) {
        (Depth::Eight, 1) => Samples::Eight(grey(image).into()),
        (Depth::Eight, _) => Samples::Eight(colour(image).into()),
        (_, 1) => Samples::Sixteen(deep_grey(image).into()),
        (_, _) => Samples::Sixteen(colour(image).into_iter().map(deep).collect::<Vec<u16>>().into()),
    };
    Ok(Image { shape: [height, width, channels], samples })
}

fn upright(bytes: &[u8]) -> Result<DynamicImage, String> {
    let mut decoder = decoder(bytes)?;
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| reason(&error))?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn is_grey(image: &DynamicImage) -> bool {
    !image.color().has_color()
}

/// Sixteen bits to their upper eight.
fn upper(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// The whole range to the whole range.
fn deep(sample: u8) -> u16 {
    257 * u16::from(sample)
}

fn grey(image: DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageLuma8(image) => image.into_raw(),
        DynamicImage::ImageLumaA8(image) => image.pixels().map(|pixel| pixel.0[0]).collect(),
        image if is_grey(&image) => deep_grey(image).into_iter().map(upper).collect(),
        image => colour(image).chunks_exact(3).map(|p| luma([p[0], p[1], p[2]])).collect(),
    }
}

/// ITU-R 601 in sixteen bits of a fraction, rounded, as Pillow has it.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

fn deep_grey(image: DynamicImage) -> Vec<u16> {
    match image {
        DynamicImage::ImageLuma16(image) => image.into_raw(),
        DynamicImage::ImageLumaA16(image) => image.pixels().map(|pixel| pixel.0[0]).collect(),
        image => grey(image).into_iter().map(deep).collect(),
    }
}

fn colour(image: DynamicImage) -> Vec<u8> {
    let repeated = |samples: Vec<u8>| samples.into_iter().flat_map(|sample| [sample; 3]).collect();
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => {
            image.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.into_raw().into_iter().map(upper).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper)).collect()
        }
        image if is_grey(&image) => repeated(grey(image)),
        image => image.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbaImage};

    use super::*;

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn eight(bytes: &[u8], channels: usize) -> Vec<u8> {
        match decode(bytes, channels, Depth::Eight).unwrap().samples {
            Samples::Eight(samples) => samples.into_owned(),
            Samples::Sixteen(_) => panic!("of eight bits"),
        }
    }

    #[test]
    fn sixteen_bits_are_kept_where_they_are_grey() {
        let deep = png(ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x1234, 0xffff]).unwrap());
        let header = header(&deep).unwrap();
        assert_eq!((header.depth, header.is_colour, header.height, header.width), (Depth::Sixteen, false, 1, 2));
        let image = decode(&deep, 1, Depth::Sixteen).unwrap();
        assert_eq!(image.samples, Samples::Sixteen(vec![0x1234, 0xffff].into()));
        assert_eq!(eight(&deep, 1), [0x12, 0xff]);
        assert_eq!(eight(&deep, 3), [0x12, 0x12, 0x12, 0xff, 0xff, 0xff]);
        let colour =
            png(DynamicImage::from(ImageBuffer::<Rgb<u16>, _>::from_raw(1, 1, vec![0x1234, 0x5678, 0x9abc]).unwrap()));
        assert_eq!(eight(&colour, 3), [0x12, 0x56, 0x9a]);
    }

    #[test]
    fn transparency_is_dropped_and_grey_is_weighed() {
        let rgba = png(RgbaImage::from_raw(2, 1, vec![255, 0, 0, 7, 10, 200, 30, 0]).unwrap());
        assert_eq!(eight(&rgba, 3), [255, 0, 0, 10, 200, 30]);
        // (299·255) / 1000 and (299·10 + 587·200 + 114·30) / 1000.
        assert_eq!(eight(&rgba, 1), [76, 124]);
        assert_eq!(eight(&png(GrayAlphaImage::from_raw(1, 1, vec![9, 1]).unwrap()), 1), [9]);
    }
}
