//! From stored samples to what is seen (PS3.3, sections C.11.1, C.11.2 and C.7.6.3).
//!
//! ```text
//! stored ─▶ modality: a table, or slope · x + intercept ─▶ VOI: a table, or a window ─▶ 0 … 1 ─▶ 0 … 255 or 0 … 65,535
//! ```
//! A window of center c and width w, the first of several, is one of
//! ```text
//! LINEAR        y = (x − (c − ½)) / (w − 1) + ½, from 0 to 1
//! LINEAR_EXACT  y = (x − c) / w + ½, from 0 to 1
//! SIGMOID       y = 1 / (1 + exp(−4 (x − c) / w))
//! ```
//! Without any, the image's least value is 0 and its greatest 1.

use super::elements::{
    DataSet, Element, FRAME_GROUPS, FRAME_VOI, MODALITY_TABLES, SHARED_GROUPS, Tag, VALUE_TRANSFORMATION, VOI_TABLES,
};
use super::pixels::{Layout, Photometric, Stored};

const CENTER: Tag = 0x0028_1050;
const WIDTH: Tag = 0x0028_1051;
const INTERCEPT: Tag = 0x0028_1052;
const SLOPE: Tag = 0x0028_1053;
const FUNCTION: Tag = 0x0028_1056;
const DESCRIPTOR: Tag = 0x0028_3002;
const ENTRIES: Tag = 0x0028_3006;
/// Descriptors and entries of red; of green and blue they are the next.
const PALETTE_DESCRIPTOR: Tag = 0x0028_1101;
const PALETTE: Tag = 0x0028_1201;
const SEGMENTED_PALETTE: Tag = 0x0028_1221;

const NO_ENTRIES: &str = "a damaged DICOM image: a table of values without its entries";
const NO_PALETTE: &str = "a damaged DICOM image: no palette";

/// A table that is looked up (PS3.3, section C.11.1.1.1).
struct Table {
    /// The value of the first entry.
    first: i32,
    entries: Vec<u16>,
    /// Of an entry.
    bits: u32,
}

impl Table {
    fn of(descriptor: &Element, entries: &Element, is_signed: bool) -> Result<Table, String> {
        let [count, first, bits] = Table::described(descriptor, is_signed)?;
        let bytes = entries.bytes();
        // One byte each, and perhaps one to fill up.
        let are_bytes = bytes.len() as i32 == count || (bytes.len() as i32 == count + 1 && count > 1);
        let (entries, most) = match are_bytes {
            true => (bytes.iter().map(|&byte| byte.into()).collect(), 8),
            false => (entries.shorts().collect(), 16),
        };
        Table::whole(entries, [count, first, bits.min(most)])
    }

    /// Number of entries, the value of the first, and bits of each.
    fn described(descriptor: &Element, is_signed: bool) -> Result<[i32; 3], String> {
        let numbers: Vec<u16> = descriptor.shorts().collect();
        let &[count, first, bits @ 1..=16, ..] = numbers.as_slice() else { return Err(NO_ENTRIES.into()) };
        let count = if count == 0 { 1 << 16 } else { i32::from(count) };
        // Where types are not written, it has that of the samples.
        let has_sign = &descriptor.vr == b"SS" || (is_signed && &descriptor.vr != b"US");
        let first = if has_sign { i32::from(first as i16) } else { i32::from(first) };
        Ok([count, first, i32::from(bits)])
    }

    fn whole(mut entries: Vec<u16>, [count, first, bits]: [i32; 3]) -> Result<Table, String> {
        entries.truncate(count as usize);
        match entries.len() == count as usize {
            true => Ok(Table { first, entries, bits: bits as u32 }),
            false => Err(NO_ENTRIES.into()),
        }
    }

    /// Entries as they are, on a straight line from the last one, or as before (PS3.3, section C.7.9.2).
    fn of_segments(descriptor: &Element, segments: &Element, is_signed: bool) -> Result<Table, String> {
        let [count, first, bits] = Table::described(descriptor, is_signed)?;
        let numbers: Vec<u16> = match bits {
            8 => segments.bytes().iter().map(|&byte| byte.into()).collect(),
            _ => segments.shorts().collect(),
        };
        let mut entries = Vec::new();
        expand(&numbers, 0, usize::MAX, bits > 8, &mut entries, count as usize).ok_or(NO_ENTRIES)?;
        Table::whole(entries, [count, first, bits])
    }

    /// What lies before the first or behind the last is as these.
    fn get(&self, value: i64) -> u16 {
        let last = self.entries.len() as i64 - 1;
        self.entries[(value - i64::from(self.first)).clamp(0, last) as usize]
    }

    fn top(&self) -> f64 {
        f64::from((1u32 << self.bits) - 1)
    }
}

/// So many of the segments from `at`, or all, until there are `count` entries or more. Those that are repeated repeat none; of eight
/// bits none are.
fn expand(
    numbers: &[u16],
    mut at: usize,
    segments: usize,
    may_repeat: bool,
    to: &mut Vec<u16>,
    count: usize,
) -> Option<()> {
    for _ in 0..segments {
        let &[kind, length, ref rest @ ..] = numbers.get(at..).filter(|_| to.len() < count)? else { break };
        let length = usize::from(length);
        at += 2;
        match kind {
            0 => {
                to.extend(rest.get(..length)?);
                at += length;
            }
            1 => {
                let (from, end) = (i32::from(*to.last()?), i32::from(*rest.first()?));
                let on_line = |step: usize| f64::from(from) + f64::from(end - from) * step as f64 / length as f64;
                to.extend((1..=length).map(|step| (on_line(step) + 0.5) as u16));
                at += 1;
            }
            2 if may_repeat => {
                let &[low, high, ..] = rest else { return None };
                // In bytes.
                expand(numbers, (usize::from(high) << 16 | usize::from(low)) / 2, length, false, to, count)?;
                at += 2;
            }
            _ => return None,
        }
        if to.len() >= count {
            break;
        }
    }
    Some(())
}

/// A function of values to 0 … 1.
enum Voi {
    Table(Table),
    Linear {
        center: f64,
        width: f64,
    },
    LinearExact {
        center: f64,
        width: f64,
    },
    Sigmoid {
        center: f64,
        width: f64,
    },
    /// From the least to the greatest value.
    Range {
        least: f64,
        greatest: f64,
    },
}

impl Voi {
    fn of(&self, x: f64) -> f64 {
        match *self {
            Voi::Table(ref table) => (f64::from(table.get(x.floor() as i64)) / table.top()).min(1.0),
            Voi::Linear { center, width: 1.0 } => f64::from(u8::from(x > center - 0.5)),
            Voi::Linear { center, width } => ((x - (center - 0.5)) / (width - 1.0) + 0.5).clamp(0.0, 1.0),
            Voi::LinearExact { center, width } => ((x - center) / width + 0.5).clamp(0.0, 1.0),
            Voi::Sigmoid { center, width } => 1.0 / (1.0 + (-4.0 * (x - center) / width).exp()),
            Voi::Range { least, greatest } if greatest > least => (x - least) / (greatest - least),
            Voi::Range { .. } => 0.0,
        }
    }
}

/// The data set itself, or the part of it that is of one frame, or of all, in files of many frames (PS3.3, section C.7.6.16).
fn holder<'a, 'b>(data: &'a DataSet<'b>, sequence: Tag, frame: usize, tag: Tag) -> &'a DataSet<'b> {
    let of_frame = data.items(FRAME_GROUPS).get(frame);
    let groups = [of_frame, data.items(SHARED_GROUPS).first()].into_iter().flatten();
    let mut within = groups.filter_map(|group| group.items(sequence).first());
    within.find(|item| item.get(tag).is_some()).unwrap_or(data)
}

/// Grey samples of 0 to `top`.
pub(super) fn grey(
    data: &DataSet,
    layout: &Layout,
    frame: usize,
    stored: &Stored,
    top: u16,
) -> Result<Vec<u16>, String> {
    let values = modality(data, layout, frame, stored)?;
    let voi = voi(data, layout, frame, &values)?;
    let is_inverted = stored.photometric == Photometric::Monochrome1;
    let top = f64::from(top);
    let shown = |value: f64| {
        let y = voi.of(value);
        let y = if is_inverted { 1.0 - y } else { y };
        (y * top + 0.5) as u16
    };
    Ok(values.into_iter().map(shown).collect())
}

/// A sample with its sign.
fn signed(sample: u32, layout: &Layout, bits: u32) -> i64 {
    match layout.is_signed {
        true => i64::from((sample << (32 - bits)) as i32 >> (32 - bits)),
        false => i64::from(sample),
    }
}

/// In the modality's units, Hounsfield's for instance.
fn modality(data: &DataSet, layout: &Layout, frame: usize, stored: &Stored) -> Result<Vec<f64>, String> {
    let samples = stored.samples.iter().map(|&sample| signed(sample, layout, stored.bits));
    if let Some(item) = data.items(MODALITY_TABLES).first()
        && let (Some(descriptor), Some(entries)) = (item.get(DESCRIPTOR), item.get(ENTRIES))
    {
        let table = Table::of(descriptor, entries, layout.is_signed)?;
        return Ok(samples.map(|sample| f64::from(table.get(sample))).collect());
    }
    let of = holder(data, VALUE_TRANSFORMATION, frame, SLOPE);
    let slope = of.decimal(SLOPE).filter(|&slope| slope != 0.0).unwrap_or(1.0);
    let intercept = of.decimal(INTERCEPT).unwrap_or(0.0);
    Ok(samples.map(|sample| sample as f64 * slope + intercept).collect())
}

/// The file's table, else its window, else the range of the values. A window that has no width is none.
fn voi(data: &DataSet, layout: &Layout, frame: usize, values: &[f64]) -> Result<Voi, String> {
    if let Some(item) = data.items(VOI_TABLES).first()
        && let (Some(descriptor), Some(entries)) = (item.get(DESCRIPTOR), item.get(ENTRIES))
    {
        return Table::of(descriptor, entries, layout.is_signed).map(Voi::Table);
    }
    let of = holder(data, FRAME_VOI, frame, WIDTH);
    if let (Some(center), Some(width)) = (of.decimal(CENTER), of.decimal(WIDTH)) {
        match of.text(FUNCTION).as_deref() {
            Some("SIGMOID") if width > 0.0 => return Ok(Voi::Sigmoid { center, width }),
            Some("LINEAR_EXACT") if width > 0.0 => return Ok(Voi::LinearExact { center, width }),
            None | Some("LINEAR") if width >= 1.0 => return Ok(Voi::Linear { center, width }),
            None | Some("LINEAR" | "SIGMOID" | "LINEAR_EXACT") => {}
            Some(other) => return Err(format!("a DICOM image whose window is '{other}', which is not known")),
        }
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Ok(Voi::Range { least, greatest })
}

/// Red, green and blue of eight bits.
pub(super) fn colour(data: &DataSet, layout: &Layout, stored: &Stored) -> Result<Vec<u8>, String> {
    // The upper eight bits of more.
    let shift = stored.bits.saturating_sub(8);
    let eight = |&sample: &u32| (sample >> shift) as u8;
    match stored.photometric {
        Photometric::Palette => palette(data, layout, stored),
        Photometric::Ybr { .. } => {
            let samples: Vec<u8> = stored.samples.iter().map(eight).collect();
            Ok(samples.as_chunks().0.iter().flat_map(|&pixel| rgb(pixel)).collect())
        }
        _ => Ok(stored.samples.iter().map(eight).collect()),
    }
}

/// ITU-R 601 over the whole range (PS3.3, section C.7.6.3.1.2).
fn rgb([y, b, r]: [u8; 3]) -> [u8; 3] {
    let [y, b, r] = [f64::from(y), f64::from(b) - 128.0, f64::from(r) - 128.0];
    let red = y + 1.402 * r;
    let green = y - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r;
    let blue = y + 1.772 * b;
    [red, green, blue].map(|sample| (sample + 0.5).floor().clamp(0.0, 255.0) as u8)
}

fn palette(data: &DataSet, layout: &Layout, stored: &Stored) -> Result<Vec<u8>, String> {
    let table = |of: Tag| {
        let descriptor = data.get(PALETTE_DESCRIPTOR + of).ok_or(NO_PALETTE)?;
        match (data.get(PALETTE + of), data.get(SEGMENTED_PALETTE + of)) {
            (Some(entries), _) => Table::of(descriptor, entries, layout.is_signed),
            (None, Some(segments)) => Table::of_segments(descriptor, segments, layout.is_signed),
            (None, None) => Err(NO_PALETTE.into()),
        }
    };
    let tables = [table(0)?, table(1)?, table(2)?];
    let pixel = |&sample: &u32| {
        let value = signed(sample, layout, stored.bits);
        tables.each_ref().map(|table| (table.get(value) >> table.bits.saturating_sub(8)) as u8)
    };
    Ok(stored.samples.iter().flat_map(pixel).collect())
}
