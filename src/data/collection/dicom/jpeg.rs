//! Lossy JPEG of eight bits, whose samples come out as they are stored: DICOM's own header says what they mean.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::pixels::{Decoded, Layout, Photometric};

/// Where segments begin in an image.
pub(super) const FIRST: usize = 2;
const SCAN: u8 = 0xda;

/// Segments from `at` to the header of a scan: a marker's second byte, what is behind its length, and where that ends.
pub(super) fn segments(bytes: &[u8], mut at: usize) -> impl Iterator<Item = (u8, &[u8], usize)> {
    let mut is_done = false;
    std::iter::from_fn(move || {
        while let [0xff, 0xff, ..] = bytes.get(at..)? {
            at += 1;
        }
        let [0xff, marker, high, low, ..] = *bytes.get(at..).filter(|_| !is_done)? else { return None };
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let segment = bytes.get(at + 4..end)?;
        (at, is_done) = (end, marker == SCAN);
        Some((marker, segment, end))
    })
}

/// The frame's header: precision, and height, width and components; the identifiers of these.
pub(super) fn frame_header(bytes: &[u8]) -> Option<(u32, [usize; 3], Vec<u8>)> {
    let is_frame = |marker: u8| matches!(marker, 0xc0..=0xcf | 0xf7) && ![0xc4, 0xc8, 0xcc].contains(&marker);
    let (_, header, _) = segments(bytes, FIRST).find(|(marker, ..)| is_frame(*marker))?;
    let [precision, h1, h0, w1, w0, components, rest @ ..] = header else { return None };
    let [height, width] = [[*h1, *h0], [*w1, *w0]].map(|side| usize::from(u16::from_be_bytes(side)));
    let identifiers = rest.chunks_exact(3).map(|component| component[0]).collect();
    Some((u32::from(*precision), [height, width, usize::from(*components)], identifiers))
}

/// What three samples mean: what the JPEG itself says, else what its file does.
pub(super) fn photometric(bytes: &[u8], otherwise: Photometric) -> Photometric {
    let ybr = Photometric::Ybr { is_halved: false };
    let application = |marker: u8, magic: &[u8]| {
        let mut of = segments(bytes, FIRST).filter(|(of, segment, _)| *of == marker && segment.starts_with(magic));
        of.next().map(|(_, segment, _)| segment)
    };
    let identifiers = frame_header(bytes).map(|(_, _, identifiers)| identifiers).unwrap_or_default();
    match application(0xee, b"Adobe").and_then(|segment| segment.get(11)) {
        Some(0) => Photometric::Rgb,
        Some(_) => ybr,
        None if [b"RGB", b"rgb"].contains(&identifiers.as_slice().try_into().unwrap_or(b"---")) => Photometric::Rgb,
        None if application(0xe0, b"JFIF").is_some() => ybr,
        None if otherwise == Photometric::Rgb => Photometric::Rgb,
        None => ybr,
    }
}

pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Result<Decoded, String> {
    let (precision, [height, width, components], _) = frame_header(bytes).ok_or("no JPEG image")?;
    if precision != 8 {
        return Err(format!("lossy JPEG of {precision} bits is not decoded here"));
    }
    Decoded::check(layout, [width, height, components])?;
    // Without what tells of colours, nothing is converted.
    let mut plain = vec![0xff, 0xd8];
    let mut end = FIRST;
    for (marker, segment, end_of_segment) in segments(bytes, FIRST) {
        end = end_of_segment;
        if !(0xe0..=0xef).contains(&marker) && marker != 0xfe {
            plain.extend([0xff, marker]);
            plain.extend((segment.len() as u16 + 2).to_be_bytes());
            plain.extend(segment);
        }
    }
    plain.extend(&bytes[end..]);
    let wrong = |error: DecodeErrors| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let mut decoder = JpegDecoder::new(ZCursor::new(&plain));
    decoder.decode_headers().map_err(wrong)?;
    let colours = decoder.input_colorspace().ok_or("no colours")?;
    decoder.set_options(DecoderOptions::default().jpeg_set_out_colorspace(colours));
    let samples = decoder.decode().map_err(wrong)?;
    let samples: Vec<u16> = samples.into_iter().map(u16::from).collect();
    match samples.len() == width * height * components {
        true => Ok(Decoded { width, height, components, precision, samples }),
        false => Err("it is cut off".into()),
    }
}
