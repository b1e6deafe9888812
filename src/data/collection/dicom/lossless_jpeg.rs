//! Lossless JPEG by prediction and Huffman codes (ITU-T T.81, annex H), 2 to 16 bits.

use super::jpeg::{FIRST, frame_header, segments};
use super::pixels::{Decoded, Layout};

const CUT_OFF: &str = "it is cut off or damaged";
const TABLE: u8 = 0xc4;
const FRAME: u8 = 0xc3;
const SCAN: u8 = 0xda;
const INTERVAL: u8 = 0xdd;

/// For each next sixteen bits the length of the code that they begin with, 0 where there is none, and what it says.
type Codes = Vec<(u8, u8)>;

/// The codes of a table whose segment begins here, its number, and what follows it (T.81, annex C).
fn codes(segment: &[u8]) -> Option<(usize, Codes, &[u8])> {
    let (number, rest) = segment.split_first()?;
    let (counts, rest) = rest.split_at_checked(16)?;
    let (values, rest) = rest.split_at_checked(counts.iter().map(|&count| usize::from(count)).sum())?;
    let mut values = values.iter();
    let mut codes = Codes::with_capacity(1 << 16);
    for (length, &count) in (1..=16).zip(counts) {
        for &value in values.by_ref().take(usize::from(count)) {
            codes.extend(std::iter::repeat_n((length, value), 1 << (16 - length)));
        }
    }
    if codes.len() > 1 << 16 {
        return None;
    }
    codes.resize(1 << 16, (0, 0));
    Some((usize::from(number & 0xf), codes, rest))
}

/// The bits of a scan, up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    /// How many of the bits that are held nobody wrote: past the end there are zeros, of which none may be used.
    beyond: u32,
}

impl Bits<'_> {
    fn next_byte(&mut self) -> u8 {
        match self.bytes[self.at..] {
            [0xff, 0, ..] => {
                self.at += 2;
                0xff
            }
            [0xff, ..] | [] => {
                self.beyond += 8;
                0
            }
            [byte, ..] => {
                self.at += 1;
                byte
            }
        }
    }

    /// The next sixteen, which stay.
    fn peek(&mut self) -> u32 {
        while self.count < 16 {
            self.held = self.held << 8 | u64::from(self.next_byte());
            self.count += 8;
        }
        (self.held >> (self.count - 16)) as u32 & 0xffff
    }

    /// So many, up to sixteen.
    fn take(&mut self, count: u32) -> Result<u32, String> {
        let taken = self.peek() >> (16 - count);
        self.count -= count;
        match self.count < self.beyond {
            true => Err(CUT_OFF.into()),
            false => Ok(taken),
        }
    }

    /// A difference of two samples: how many bits it has, and these.
    fn difference(&mut self, codes: &Codes) -> Result<i32, String> {
        let (length, size) = codes[self.peek() as usize];
        if length == 0 || size > 16 {
            return Err(CUT_OFF.into());
        }
        self.take(u32::from(length))?;
        Ok(match size {
            0 => 0,
            16 => 1 << 15,
            size => {
                let bits = self.take(u32::from(size))? as i32;
                if bits < 1 << (size - 1) { bits - (1 << size) + 1 } else { bits }
            }
        })
    }

    /// To behind the marker that begins the next interval.
    fn restart(&mut self) -> Result<(), String> {
        (self.held, self.count, self.beyond) = (0, 0, 0);
        let marker = self.bytes[self.at..].windows(2).position(|of| of[0] == 0xff && (0xd0..=0xd7).contains(&of[1]));
        self.at += marker.ok_or(CUT_OFF)? + 2;
        Ok(())
    }
}

pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Result<Decoded, String> {
    let (precision, [height, width, components], identifiers) = frame_header(bytes).ok_or("no JPEG image")?;
    if !(2..=16).contains(&precision) {
        return Err(CUT_OFF.into());
    }
    Decoded::check(layout, [width, height, components])?;
    let mut tables: [Codes; 4] = Default::default();
    let mut samples = vec![0u16; width * height * components];
    let (mut interval, mut is_lossless) = (0, false);
    let (mut at, mut scans) = (FIRST, 0);
    // Each scan is followed by segments as the image begins with.
    while scans < components {
        let mut of_scan = None;
        for (marker, segment, end) in segments(bytes, at) {
            match marker {
                TABLE => {
                    let mut rest = segment;
                    while !rest.is_empty() {
                        let (number, codes, after) = codes(rest).ok_or(CUT_OFF)?;
                        *tables.get_mut(number).ok_or(CUT_OFF)? = codes;
                        rest = after;
                    }
                }
                FRAME => is_lossless = segment.len() >= 6 && segment[6..].chunks(3).all(|of| of.get(1) == Some(&0x11)),
                INTERVAL => interval = segment.first_chunk().map_or(0, |&of| usize::from(u16::from_be_bytes(of))),
                SCAN => of_scan = Some((segment, end)),
                _ => {}
            }
        }
        let (header, start) = of_scan.ok_or(CUT_OFF)?;
        if !is_lossless {
            return Err("it is no lossless JPEG of whole components".into());
        }
        let scan = Scan::of(header, &identifiers).ok_or(CUT_OFF)?;
        if u32::from(scan.transform) >= precision || scan.tables.iter().any(|&of| tables[of].is_empty()) {
            return Err(CUT_OFF.into());
        }
        let mut bits = Bits { bytes, at: start, held: 0, count: 0, beyond: 0 };
        scan.read(&mut bits, &tables, &mut samples, [width, components, precision as usize, interval])?;
        scans += scan.components.len();
        // Behind what was read ahead, the next marker.
        at = bits.at + bytes[bits.at..].windows(2).position(|of| of[0] == 0xff && of[1] != 0).unwrap_or(0);
    }
    Ok(Decoded { width, height, components, precision, samples })
}

struct Scan {
    /// Which, and the table of each.
    components: Vec<usize>,
    tables: Vec<usize>,
    predictor: u8,
    /// By how many bits samples were shifted.
    transform: u8,
}

impl Scan {
    fn of(header: &[u8], identifiers: &[u8]) -> Option<Scan> {
        let (&count, rest) = header.split_first()?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(count))?;
        let [predictor, _, transform] = *rest else { return None };
        let parts = parts.as_chunks::<2>().0;
        let place = |[identifier, _]: &[u8; 2]| identifiers.iter().position(|of| of == identifier);
        let components = parts.iter().map(place).collect::<Option<Vec<usize>>>().filter(|of| !of.is_empty())?;
        let tables = parts.iter().map(|[_, tables]| usize::from(tables >> 4)).collect::<Vec<_>>();
        let is_known = (1..=7).contains(&predictor) && tables.iter().all(|&table| table < 4);
        is_known.then_some(Scan { components, tables, predictor, transform: transform & 0xf })
    }

    /// Rows of samples, each predicted from those to the left (a), above (b) and between (c).
    fn read(
        &self,
        bits: &mut Bits,
        tables: &[Codes; 4],
        samples: &mut [u16],
        [width, stride, precision, interval]: [usize; 4],
    ) -> Result<(), String> {
        let first = 1i32 << (precision - usize::from(self.transform) - 1);
        let height = samples.len() / (width * stride);
        // The first row, and the first of each interval, have nothing above.
        let (mut left, mut top) = (interval, 0);
        for row in 0..height {
            for column in 0..width {
                if interval > 0 && left == 0 {
                    bits.restart()?;
                    (left, top) = (interval, row);
                }
                left = left.wrapping_sub(1);
                for (&component, &table) in self.components.iter().zip(&self.tables) {
                    let at = (row * width + column) * stride + component;
                    let before = |back: usize| i32::from(samples[at - back] >> self.transform);
                    let above = width * stride;
                    let prediction = match (column, row - top) {
                        (0, 0) => first,
                        (_, 0) => before(stride),
                        (0, _) => before(above),
                        _ => {
                            let [a, b, c] = [stride, above, above + stride].map(before);
                            match self.predictor {
                                1 => a,
                                2 => b,
                                3 => c,
                                4 => a + b - c,
                                5 => a + ((b - c) >> 1),
                                6 => b + ((a - c) >> 1),
                                _ => (a + b) >> 1,
                            }
                        }
                    };
                    let difference = bits.difference(&tables[table])?;
                    samples[at] = ((prediction + difference) as u16) << self.transform;
                }
            }
        }
        Ok(())
    }
}
