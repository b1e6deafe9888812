//! The stored samples of one frame (PS3.5, chapter 8 and annexes A and G).

use std::borrow::Cow;

use super::elements::{CUT_OFF, DataSet, Element, PIXEL_DATA, Tag, Value};
use super::syntax::{Codec, Syntax};
use super::{jpeg, jpeg_2000, jpeg_ls, lossless_jpeg};
use crate::data::collection::decode::MOST_PIXELS;

const SAMPLES: Tag = 0x0028_0002;
const PHOTOMETRIC: Tag = 0x0028_0004;
const PLANAR: Tag = 0x0028_0006;
const FRAMES: Tag = 0x0028_0008;
const ROWS: Tag = 0x0028_0010;
const COLUMNS: Tag = 0x0028_0011;
const ALLOCATED: Tag = 0x0028_0100;
const STORED: Tag = 0x0028_0101;
const HIGH_BIT: Tag = 0x0028_0102;
const REPRESENTATION: Tag = 0x0028_0103;
const OFFSETS: Tag = 0x7fe0_0001;

/// What samples mean (PS3.3, section C.7.6.3.1.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Photometric {
    /// Least is white.
    Monochrome1,
    /// Least is black.
    Monochrome2,
    Palette,
    Rgb,
    /// Luminance and two differences of colour, of the whole range; with `is_halved`, of each two pixels of a row one pair of differences.
    Ybr {
        is_halved: bool,
    },
}

/// How the pixels of a file are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    pub rows: usize,
    pub columns: usize,
    /// 1 or 3 for each pixel.
    pub samples: usize,
    pub photometric: Photometric,
    pub frames: usize,
    /// Bits that a sample takes, those of them that count, and the place of the highest of these.
    pub allocated: u32,
    pub stored: u32,
    pub high: u32,
    pub is_signed: bool,
    pub is_planar: bool,
}

impl Layout {
    /// # Errors
    /// If what is there is no image, an image that nobody can show, or too large.
    pub fn of(data: &DataSet) -> Result<Layout, String> {
        let short = |tag| data.short(tag).map(usize::from);
        let (Some(rows), Some(columns)) = (short(ROWS), short(COLUMNS)) else {
            return Err("a DICOM file without an image".into());
        };
        let (samples, name) = (short(SAMPLES).unwrap_or(1), data.text(PHOTOMETRIC));
        let photometric = match (name.as_deref(), samples) {
            (Some("MONOCHROME1"), 1) => Photometric::Monochrome1,
            (Some("MONOCHROME2") | None, 1) => Photometric::Monochrome2,
            (Some("PALETTE COLOR"), 1) => Photometric::Palette,
            (Some("RGB" | "YBR_RCT" | "YBR_ICT"), 3) => Photometric::Rgb,
            (Some("YBR_FULL"), 3) => Photometric::Ybr { is_halved: false },
            (Some("YBR_FULL_422"), 3) => Photometric::Ybr { is_halved: true },
            (name, _) => {
                let name = name.unwrap_or("no photometric interpretation");
                return Err(format!("a DICOM image of {name} in {samples} samples, which is not read here"));
            }
        };
        let allocated = short(ALLOCATED).unwrap_or(0) as u32;
        let stored = short(STORED).map_or(allocated, |stored| stored as u32);
        let high = short(HIGH_BIT).map_or(stored.saturating_sub(1), |high| high as u32);
        if ![1, 8, 16, 32].contains(&allocated) || !(1..=allocated).contains(&stored) {
            return Err(format!("a DICOM image of {stored} bits in {allocated}, which is not read here"));
        }
        if high + 1 < stored || high >= allocated {
            return Err(format!("a damaged DICOM image: bit {high} is the highest of {stored} in {allocated}"));
        }
        if rows == 0 || columns == 0 {
            return Err("an image without pixels".into());
        }
        if (rows * columns) as u64 > MOST_PIXELS {
            return Err(format!("{columns}×{rows} pixels, more than {} million", MOST_PIXELS / 1_000_000));
        }
        let frames = data.decimal(FRAMES).map_or(1, |frames| (frames as usize).max(1));
        let is_signed = short(REPRESENTATION) == Some(1);
        let is_planar = short(PLANAR) == Some(1);
        Ok(Layout { rows, columns, samples, photometric, frames, allocated, stored, high, is_signed, is_planar })
    }

    /// That which stands for all: of an odd number the one in the middle.
    pub fn middle(&self) -> usize {
        self.frames / 2
    }

    fn count(&self) -> usize {
        self.rows * self.columns * self.samples
    }
}

/// One frame as it is stored: rows × columns × samples.
pub(super) struct Stored {
    /// The bits that count, at the lower end.
    pub samples: Vec<u32>,
    /// How many these are.
    pub bits: u32,
    /// What they mean, once decompressed.
    pub photometric: Photometric,
}

/// What came out of a codec: samples in the order of pixels.
pub(super) struct Decoded {
    pub width: usize,
    pub height: usize,
    pub components: usize,
    /// Bits of a sample.
    pub precision: u32,
    pub samples: Vec<u16>,
}

impl Decoded {
    /// # Errors
    /// If an image is larger than its file says, before it is decoded.
    pub fn check(layout: &Layout, [width, height, components]: [usize; 3]) -> Result<(), String> {
        let ours = [layout.columns, layout.rows, layout.samples];
        match [width, height, components] == ours {
            true => Ok(()),
            false => Err(format!(
                "a damaged DICOM image: {width}×{height}×{components} samples are compressed, {}×{}×{} announced",
                ours[0], ours[1], ours[2]
            )),
        }
    }
}

/// The samples of one of the frames.
pub(super) fn frame(data: &DataSet, syntax: Syntax, layout: &Layout, index: usize) -> Result<Stored, String> {
    let Some(pixels) = data.get(PIXEL_DATA) else {
        return Err(match data.get(0x7fe0_0008).or(data.get(0x7fe0_0009)) {
            Some(_) => "a DICOM image of floating-point numbers, which is not read here".into(),
            None => "a DICOM file without pixels".into(),
        });
    };
    let fragments = match &pixels.value {
        Value::Bytes(bytes) if syntax.codec == Codec::Native => return native(pixels, bytes, layout, index),
        Value::Fragments(fragments) if syntax.codec != Codec::Native => fragments,
        _ => return Err(syntax.cannot("does not fit how its pixels are written")),
    };
    let bytes = of_frame(fragments, data.get(OFFSETS), layout.frames, index)?;
    let codec = |decoded: Result<Decoded, String>| decoded.map_err(|reason| syntax.cannot(&format!("fails: {reason}")));
    let decoded = match syntax.codec {
        Codec::Fragments => return native(pixels, &bytes, layout, 0),
        Codec::Rle => return rle(&bytes, layout),
        Codec::Jpeg => codec(jpeg::decode(&bytes, layout))?,
        Codec::LosslessJpeg => codec(lossless_jpeg::decode(&bytes, layout))?,
        Codec::JpegLs => codec(jpeg_ls::decode(&bytes, layout))?,
        Codec::Jpeg2000 => codec(jpeg_2000::decode(&bytes, layout))?,
        Codec::Native | Codec::Other => unreachable!("handled"),
    };
    Decoded::check(layout, [decoded.width, decoded.height, decoded.components])?;
    let photometric = match syntax.codec {
        Codec::Jpeg | Codec::LosslessJpeg if layout.samples == 3 => jpeg::photometric(&bytes, layout.photometric),
        _ => match layout.photometric {
            // Both of its differences are there.
            Photometric::Ybr { .. } => Photometric::Ybr { is_halved: false },
            other => other,
        },
    };
    let bits = decoded.precision.min(layout.stored);
    let mask = mask(bits);
    let samples = decoded.samples.into_iter().map(|sample| u32::from(sample) & mask).collect();
    Ok(Stored { samples, bits, photometric })
}

/// The lower bits.
fn mask(bits: u32) -> u32 {
    u32::MAX >> (32 - bits)
}

/// The bytes of one frame. Fragments are one for each, or as many as offsets say, or begin where a codec's mark is.
fn of_frame<'a>(
    fragments: &[&'a [u8]],
    extended: Option<&Element>,
    frames: usize,
    index: usize,
) -> Result<Cow<'a, [u8]>, String> {
    let Some((&table, fragments)) = fragments.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err("a DICOM file without pixels".into());
    };
    let joined = |fragments: &[&'a [u8]]| match fragments {
        [one] => Cow::Borrowed(*one),
        several => Cow::Owned(several.concat()),
    };
    if frames == 1 {
        return Ok(joined(fragments));
    }
    if fragments.len() == frames {
        return Ok(Cow::Borrowed(fragments[index]));
    }
    // By where they begin, counted from the first one's mark.
    let basic: Vec<u64> = table.as_chunks().0.iter().map(|&bytes| u64::from(u32::from_le_bytes(bytes))).collect();
    let extended = extended.map(|element| element.bytes().as_chunks().0.iter().map(|&of| u64::from_le_bytes(of)));
    let offsets: Vec<u64> = extended.map_or(basic, Iterator::collect);
    let next = |at: &mut u64, of: &&[u8]| {
        let start = *at;
        *at += 8 + of.len() as u64;
        Some(start)
    };
    let starts: Vec<u64> = fragments.iter().scan(0, next).collect();
    let by_offset: Option<Vec<usize>> =
        offsets.iter().map(|offset| starts.iter().position(|start| start == offset)).collect();
    let is_start = |of: &[u8]| of.starts_with(&[0xff, 0xd8]) || of.starts_with(&[0xff, 0x4f]);
    let by_mark = || (0..fragments.len()).filter(|&at| is_start(fragments[at])).collect();
    let firsts: Vec<usize> = by_offset.filter(|firsts| firsts.len() == frames).unwrap_or_else(by_mark);
    if firsts.len() != frames || !firsts.is_sorted() {
        return Err(format!("a damaged DICOM image: {frames} frames in {} parts", fragments.len()));
    }
    let end = firsts.get(index + 1).copied().unwrap_or(fragments.len());
    Ok(joined(&fragments[firsts[index]..end]))
}

fn short_of(bytes: usize, needed: usize) -> String {
    format!("a DICOM file that is cut off: {bytes} of {needed} bytes of pixels")
}

/// Samples that nothing compresses.
fn native(pixels: &Element, bytes: &[u8], layout: &Layout, index: usize) -> Result<Stored, String> {
    let is_big = pixels.coding.is_big;
    let Layout { rows, columns, samples, allocated, .. } = *layout;
    let is_halved = layout.photometric == Photometric::Ybr { is_halved: true };
    // Two of brightness and two of colour for each two pixels.
    let stored = if is_halved { rows * columns.next_multiple_of(2) * 2 } else { layout.count() };
    let bits = stored * allocated as usize;
    let needed = (bits * (index + 1)).div_ceil(8);
    if bytes.len() < needed {
        return Err(short_of(bytes.len(), needed));
    }
    // Single bytes were written as the two of a word, the high one first.
    let is_swapped = is_big && &pixels.vr == b"OW" && allocated <= 8;
    let byte = |at: usize| if is_swapped { bytes.get(at ^ 1).copied().unwrap_or(0) } else { bytes[at] };
    let (first, mask) = (bits * index, mask(layout.stored));
    let shift = layout.high + 1 - layout.stored;
    let at = |place: usize| -> u32 {
        let bit = first + place * allocated as usize;
        let part = |count: usize| (0..count).map(move |k| bytes[bit / 8 + if is_big { k } else { count - 1 - k }]);
        let raw = match allocated {
            1 => u32::from(byte(bit / 8)) >> (bit % 8) & 1,
            8 => u32::from(byte(bit / 8)),
            allocated => part(allocated as usize / 8).fold(0, |sum, byte| sum << 8 | u32::from(byte)),
        };
        raw >> shift & mask
    };
    let plane = rows * columns;
    let samples = match (is_halved, samples == 3 && layout.is_planar) {
        (true, _) => {
            let pair = |pair: usize| {
                let [y0, y1, b, r] = [0, 1, 2, 3].map(|part| at(4 * pair + part));
                [[y0, b, r], [y1, b, r]]
            };
            let row = |row: usize| {
                let pairs = columns.div_ceil(2);
                (0..pairs).flat_map(move |column| pair(row * pairs + column)).take(columns).flatten()
            };
            (0..rows).flat_map(row).collect()
        }
        (_, true) => (0..plane).flat_map(|pixel| [0, 1, 2].map(|of| at(of * plane + pixel))).collect(),
        _ => (0..stored).map(at).collect(),
    };
    let photometric = match layout.photometric {
        Photometric::Ybr { .. } => Photometric::Ybr { is_halved: false },
        other => other,
    };
    Ok(Stored { samples, bits: layout.stored, photometric })
}

/// Runs of equal bytes (PS3.5, annex G): a part for each byte of each sample, the high one first.
fn rle(bytes: &[u8], layout: &Layout) -> Result<Stored, String> {
    let number = |at: usize| bytes.get(4 * at..).and_then(|rest| rest.first_chunk()).map(|&of| u32::from_le_bytes(of));
    let of_sample = layout.allocated as usize / 8;
    let parts = layout.samples * of_sample;
    if number(0) != Some(parts as u32) || parts > 15 {
        return Err(format!("a damaged DICOM image: not the {parts} parts of its RLE"));
    }
    let offsets: Vec<usize> = (1..=parts).filter_map(number).map(|offset| offset as usize).collect();
    let plane = layout.rows * layout.columns;
    let mut samples = vec![0u32; layout.count()];
    for (part, &start) in offsets.iter().enumerate() {
        let end = offsets.get(part + 1).copied().unwrap_or(bytes.len());
        let packed = bytes.get(start..end).ok_or(CUT_OFF)?;
        let unpacked = unpacked(packed, plane);
        if unpacked.len() < plane {
            return Err(short_of(unpacked.len(), plane));
        }
        let sample = part / of_sample;
        let of_pixels = samples.iter_mut().skip(sample).step_by(layout.samples);
        of_pixels.zip(unpacked).for_each(|(to, byte)| *to = *to << 8 | u32::from(byte));
    }
    let (shift, mask) = (layout.high + 1 - layout.stored, mask(layout.stored));
    samples.iter_mut().for_each(|sample| *sample = *sample >> shift & mask);
    let photometric = match layout.photometric {
        Photometric::Ybr { .. } => Photometric::Ybr { is_halved: false },
        other => other,
    };
    Ok(Stored { samples, bits: layout.stored, photometric })
}

/// So many bytes, or fewer if there are no more.
fn unpacked(mut packed: &[u8], count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count);
    while let ([length, rest @ ..], true) = (packed, out.len() < count) {
        packed = match *length as i8 {
            // Nothing.
            i8::MIN => rest,
            length @ 0.. => {
                let (literal, rest) = rest.split_at(rest.len().min(length as usize + 1));
                out.extend_from_slice(literal);
                rest
            }
            length => {
                let Some((&byte, rest)) = rest.split_first() else { break };
                out.extend(std::iter::repeat_n(byte, 1 + length.unsigned_abs() as usize));
                rest
            }
        };
    }
    out.truncate(count);
    out
}
