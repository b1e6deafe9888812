//! JPEG-LS, lossless and nearly so (ITU-T T.87): each sample is predicted from its neighbours, and the error coded by a Golomb code whose
//! parameter goes by a context of gradients; where there are none, runs of equal samples are counted. Names are the recommendation's.

use super::jpeg::{FIRST, frame_header, segments};
use super::pixels::{Decoded, Layout};

const CUT_OFF: &str = "it is cut off or damaged";
const FRAME: u8 = 0xf7;
const PARAMETERS: u8 = 0xf8;
const SCAN: u8 = 0xda;
const INTERVAL: u8 = 0xdd;

/// Bits of the length of a run, by how many runs there were (T.87, A.2.1).
const J: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Result<Decoded, String> {
    let (precision, [height, width, components], identifiers) = frame_header(bytes).ok_or("no JPEG-LS image")?;
    if !(2..=16).contains(&precision) {
        return Err(CUT_OFF.into());
    }
    Decoded::check(layout, [width, height, components])?;
    let mut samples = vec![0u16; width * height * components];
    let mut presets = [0; 5];
    let (mut at, mut scans, mut is_ls) = (FIRST, 0, false);
    while scans < components {
        let mut of_scan = None;
        for (marker, segment, end) in segments(bytes, at) {
            let of_segment =
                |at: usize| segment.get(at..at + 2).map(|of| i32::from(u16::from_be_bytes([of[0], of[1]])));
            match (marker, segment.first()) {
                (FRAME, _) => is_ls = segment[6..].chunks(3).all(|of| of.get(1) == Some(&0x11)),
                (PARAMETERS, Some(1)) => presets = [1, 3, 5, 7, 9].map(|at| of_segment(at).unwrap_or(0)),
                (PARAMETERS, _) => return Err("its samples are numbers of a table".into()),
                (INTERVAL, _) if segment.iter().any(|&of| of != 0) => return Err("it has restart intervals".into()),
                (SCAN, _) => of_scan = Some((segment, end)),
                _ => {}
            }
        }
        let (header, start) = of_scan.ok_or(CUT_OFF)?;
        let (&count, rest) = header.split_first().ok_or(CUT_OFF)?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or(CUT_OFF)?;
        let [near, interleaving @ 0..=2, _] = *rest else { return Err(CUT_OFF.into()) };
        let place = |part: &[u8]| identifiers.iter().position(|&identifier| identifier == part[0]);
        let chosen = parts.chunks(2).map(place).collect::<Option<Vec<usize>>>().ok_or(CUT_OFF)?;
        if !is_ls || chosen.is_empty() || chosen.len() > 3 || (interleaving == 0 && chosen.len() > 1) {
            return Err(CUT_OFF.into());
        }
        let coding = Coding::new(precision, i32::from(near), presets).ok_or(CUT_OFF)?;
        let bits = Bits { bytes, at: start, held: 0, count: 0, beyond: 0, is_stuffed: false };
        let mut scan = Scan::new(coding, bits);
        scan.read(&mut samples, &chosen, [width, height, components], interleaving == 2)?;
        let end = scan.bits.at.min(bytes.len());
        at = end + bytes[end..].windows(2).position(|of| of[0] == 0xff && of[1] >= 0x80).unwrap_or(0);
        scans += chosen.len();
    }
    Ok(Decoded { width, height, components, precision, samples })
}

/// What stays the same in a scan.
struct Coding {
    maxval: i32,
    near: i32,
    thresholds: [i32; 3],
    reset: i32,
    range: i32,
    qbpp: u32,
    limit: u32,
}

impl Coding {
    /// `presets` are MAXVAL, T1, T2, T3 and RESET, 0 where they are the usual ones (T.87, C.2.4.1.1).
    fn new(precision: u32, near: i32, [maxval, t1, t2, t3, reset]: [i32; 5]) -> Option<Coding> {
        let or = |given: i32, usual: i32| if given > 0 { given } else { usual };
        let maxval = or(maxval, (1 << precision) - 1);
        let within = |value: i32, least: i32| if value > maxval || value < least { least } else { value };
        let usual = if maxval >= 128 {
            let factor = (maxval.min(4095) + 128) / 256;
            [factor + 2, factor * 4 + 3, factor * 17 + 4]
        } else {
            let factor = 256 / (maxval + 1);
            [2.max(3 / factor), 3.max(7 / factor), 4.max(21 / factor)]
        };
        let t1 = or(t1, within(usual[0] + 3 * near, near + 1));
        let t2 = or(t2, within(usual[1] + 5 * near, t1));
        let t3 = or(t3, within(usual[2] + 7 * near, t2));
        let range = (maxval + 2 * near) / (2 * near + 1) + 1;
        let bits_of = |count: i32| (count - 1).max(1).ilog2() + 1;
        let bpp = bits_of(maxval + 1).max(2);
        let (limit, qbpp) = (2 * (bpp + bpp.max(8)), bits_of(range));
        let is_whole = maxval < 1 << precision && near <= 255.min(maxval / 2) && limit > 2 * qbpp;
        is_whole.then_some(Coding { maxval, near, thresholds: [t1, t2, t3], reset: or(reset, 64), range, qbpp, limit })
    }

    fn quantised(&self, difference: i32) -> i32 {
        let [t1, t2, t3] = self.thresholds;
        let size = difference.abs();
        let region = match size {
            _ if size <= self.near => 0,
            _ if size < t1 => 1,
            _ if size < t2 => 2,
            _ if size < t3 => 3,
            _ => 4,
        };
        region * difference.signum()
    }

    fn is_near(&self, difference: i32) -> bool {
        difference.abs() <= self.near
    }

    /// A prediction and its error, modulo the range (T.87, A.4.5 and A.8).
    fn sample(&self, prediction: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let value = prediction + error * step;
        let value = match value {
            _ if value < -self.near => value + self.range * step,
            _ if value > self.maxval + self.near => value - self.range * step,
            _ => value,
        };
        value.clamp(0, self.maxval)
    }
}

/// What was seen in a context: sums of errors' sizes and of errors, how many, and the prediction's correction; of runs that ended, `b` is
/// how many errors were negative.
#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

impl Context {
    /// The least k with n·2ᵏ ≥ a.
    fn k(&self, a: i32) -> u32 {
        (0..24).find(|&k| self.n << k >= a).unwrap_or(24)
    }
}

/// The bits of a scan: behind a byte of ones, one bit is left out.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    /// Bits that are held and that nobody wrote.
    beyond: u32,
    is_stuffed: bool,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32, String> {
        while self.count < count {
            let next = self.bytes.get(self.at).copied();
            // A marker ends them.
            let is_end = next.is_none() || (self.is_stuffed && next >= Some(0x80));
            let byte = if is_end { 0 } else { next.unwrap_or(0) };
            let bits = if self.is_stuffed && !is_end { 7 } else { 8 };
            self.held = self.held << bits | u64::from(byte);
            self.count += bits;
            self.beyond += if is_end { 8 } else { 0 };
            if !is_end {
                (self.at, self.is_stuffed) = (self.at + 1, byte == 0xff);
            }
        }
        self.count -= count;
        match self.count < self.beyond {
            true => Err(CUT_OFF.into()),
            false => Ok((self.held >> self.count) as u32 & ((1 << count) - 1)),
        }
    }

    /// A Golomb code of parameter k, at most `limit` bits long (T.87, A.5.3).
    fn golomb(&mut self, k: u32, limit: u32, qbpp: u32) -> Result<i32, String> {
        let longest = limit - qbpp - 1;
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > longest {
                return Err(CUT_OFF.into());
            }
        }
        Ok(match zeros < longest {
            true => (zeros << k | self.take(k)?) as i32,
            false => self.take(qbpp)? as i32 + 1,
        })
    }
}

/// Two rows of a component, each with a sample more at either end.
struct Rows {
    above: Vec<i32>,
    here: Vec<i32>,
}

struct Scan<'a> {
    coding: Coding,
    bits: Bits<'a>,
    contexts: Vec<Context>,
    /// By whether the sample that ended a run had one like it above.
    of_runs: [Context; 2],
}

impl<'a> Scan<'a> {
    fn new(coding: Coding, bits: Bits<'a>) -> Scan<'a> {
        let context = Context { a: 2.max((coding.range + 32) / 64), b: 0, c: 0, n: 1 };
        Scan { coding, bits, contexts: vec![context; 365], of_runs: [context; 2] }
    }

    fn read(
        &mut self,
        samples: &mut [u16],
        chosen: &[usize],
        [width, height, stride]: [usize; 3],
        is_by_pixel: bool,
    ) -> Result<(), String> {
        let mut rows: Vec<Rows> =
            chosen.iter().map(|_| Rows { above: vec![0; width + 2], here: vec![0; width + 2] }).collect();
        let mut runs = vec![0; chosen.len()];
        for row in 0..height {
            for rows in &mut rows {
                rows.above[width + 1] = rows.above[width];
                rows.here[0] = rows.above[1];
            }
            match is_by_pixel {
                true => self.row(&mut rows, &mut runs[0])?,
                false => rows.chunks_mut(1).zip(&mut runs).try_for_each(|(rows, run)| self.row(rows, run))?,
            }
            for (rows, &component) in rows.iter_mut().zip(chosen) {
                let to = samples[row * width * stride + component..].iter_mut().step_by(stride);
                to.zip(&rows.here[1..=width]).for_each(|(to, &sample)| *to = sample as u16);
                std::mem::swap(&mut rows.above, &mut rows.here);
            }
        }
        Ok(())
    }

    /// A row of each component.
    fn row(&mut self, rows: &mut [Rows], run: &mut usize) -> Result<(), String> {
        let width = rows[0].here.len() - 2;
        let mut x = 1;
        while x <= width {
            let gradients = |rows: &Rows| {
                let [a, b, c, d] = [rows.here[x - 1], rows.above[x], rows.above[x - 1], rows.above[x + 1]];
                [d - b, b - c, c - a]
            };
            let is_flat = rows.iter().flat_map(gradients).all(|gradient| self.coding.is_near(gradient));
            if is_flat {
                x = self.run(rows, x, run)?;
                continue;
            }
            for rows in rows.iter_mut() {
                let gradients = gradients(rows);
                let [a, b, c] = [rows.here[x - 1], rows.above[x], rows.above[x - 1]];
                rows.here[x] = self.regular(gradients, [a, b, c])?;
            }
            x += 1;
        }
        Ok(())
    }

    /// T.87, A.4 to A.6.
    fn regular(&mut self, gradients: [i32; 3], [a, b, c]: [i32; 3]) -> Result<i32, String> {
        let Coding { near, maxval, limit, qbpp, reset, .. } = self.coding;
        let number = gradients.into_iter().fold(0, |sum, gradient| 9 * sum + self.coding.quantised(gradient));
        let sign = if number < 0 { -1 } else { 1 };
        let context = &mut self.contexts[number.unsigned_abs() as usize];
        let median = match c {
            _ if c >= a.max(b) => a.min(b),
            _ if c <= a.min(b) => a.max(b),
            _ => a + b - c,
        };
        let prediction = (median + sign * context.c).clamp(0, maxval);
        let k = context.k(context.a);
        let mapped = self.bits.golomb(k, limit, qbpp)?;
        let is_turned = near == 0 && k == 0 && 2 * context.b <= -context.n;
        let error = match (mapped & 1 == 1, is_turned) {
            (false, false) => mapped >> 1,
            (true, false) => -(mapped >> 1) - 1,
            (true, true) => mapped >> 1,
            (false, true) => -(mapped >> 1) - 1,
        };
        context.b += error * (2 * near + 1);
        context.a += error.abs();
        if context.n == reset {
            (context.a, context.b, context.n) = (context.a >> 1, context.b >> 1, context.n >> 1);
        }
        context.n += 1;
        if context.b <= -context.n {
            context.b = (context.b + context.n).max(1 - context.n);
            context.c = (context.c - 1).max(-128);
        } else if context.b > 0 {
            context.b = (context.b - context.n).min(0);
            context.c = (context.c + 1).min(127);
        }
        Ok(self.coding.sample(prediction, sign * error))
    }

    /// Samples like those to the left, and the one that ends them; where the next begins (T.87, A.7).
    fn run(&mut self, rows: &mut [Rows], start: usize, run: &mut usize) -> Result<usize, String> {
        let width = rows[0].here.len() - 2;
        let mut x = start;
        let is_ended = loop {
            if self.bits.take(1)? == 0 {
                x += self.bits.take(J[*run])? as usize;
                break true;
            }
            let whole = 1 << J[*run];
            if whole <= width + 1 - x {
                *run = (*run + 1).min(31);
            }
            x = (x + whole).min(width + 1);
            if x > width {
                break false;
            }
        };
        if is_ended && x > width {
            return Err(CUT_OFF.into());
        }
        for rows in rows.iter_mut() {
            let value = rows.here[start - 1];
            rows.here[start..x].fill(value);
        }
        if !is_ended {
            return Ok(x);
        }
        let is_single = rows.len() == 1;
        for rows in rows.iter_mut() {
            let (a, b) = (rows.here[x - 1], rows.above[x]);
            let is_like_above = is_single && self.coding.is_near(a - b);
            let error = self.ending(is_like_above, J[*run])?;
            rows.here[x] = match is_like_above {
                true => self.coding.sample(a, error),
                false => self.coding.sample(b, if b < a { -error } else { error }),
            };
        }
        *run = run.saturating_sub(1);
        Ok(x + 1)
    }

    /// The error of a sample that ends a run (T.87, A.7.2).
    fn ending(&mut self, is_like_above: bool, j: u32) -> Result<i32, String> {
        let Coding { limit, qbpp, reset, .. } = self.coding;
        let kind = i32::from(is_like_above);
        let context = &mut self.of_runs[kind as usize];
        let k = context.k(context.a + kind * (context.n >> 1));
        let coded = self.bits.golomb(k, limit - j - 1, qbpp)?;
        let mapped = coded + kind;
        let is_odd = mapped & 1 == 1;
        let size = (mapped + i32::from(is_odd)) / 2;
        let error = if (k != 0 || 2 * context.b >= context.n) == is_odd { -size } else { size };
        context.b += i32::from(error < 0);
        context.a += (coded + 1 - kind) >> 1;
        if context.n == reset {
            (context.a, context.b, context.n) = (context.a >> 1, context.b >> 1, context.n >> 1);
        }
        context.n += 1;
        Ok(error)
    }
}
