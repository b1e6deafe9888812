//! DICOM files, each an image: of several frames the middle one.
//!
//! What comes out are values as a viewer shows them first: of the window that the file names, or of all that occur; colours as red, green
//! and blue of eight bits. Overlays and padding are not looked at.

mod elements;
mod jpeg;
mod jpeg_2000;
mod jpeg_ls;
mod lossless_jpeg;
mod pixels;
mod syntax;
mod values;

use std::borrow::Cow;
use std::io::Read;

use flate2::read::DeflateDecoder;
use image::{DynamicImage, ImageBuffer};

use super::decode::{Header, MOST_PIXELS};
use crate::data::Depth;
use elements::{DataSet, PIXEL_DATA, Tag};
use pixels::{Layout, Photometric};
use syntax::Syntax;

const PATIENT: Tag = 0x0010_0020;

/// Whether a file's content is DICOM's.
pub(super) fn is_dicom(bytes: &[u8]) -> bool {
    elements::is_dicom(bytes)
}

/// The UID of the transfer syntax, and the data set's bytes; where the whole was compressed, as it was before.
fn body(bytes: &[u8]) -> Result<(String, Cow<'_, [u8]>), String> {
    let (uid, start) = elements::open(bytes)?;
    let body = &bytes[start..];
    if uid != syntax::DEFLATED {
        return Ok((uid, body.into()));
    }
    let mut inflated = Vec::new();
    // More than the largest image takes nobody needs. A cut-off stream gives what there is.
    let most = 16 * MOST_PIXELS;
    match DeflateDecoder::new(body).take(most).read_to_end(&mut inflated) {
        Err(_) if inflated.is_empty() => Err(elements::CUT_OFF.into()),
        _ => Ok((uid, inflated.into())),
    }
}

/// What a file's header says, and how many frames it has.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let (uid, body) = body(bytes)?;
    Syntax::readable(&uid)?;
    let layout = Layout::of(&DataSet::read(&body, syntax::coding(&uid), PIXEL_DATA - 1)?)?;
    let is_colour = layout.samples == 3 || layout.photometric == Photometric::Palette;
    let depth = if layout.stored > 8 && !is_colour { Depth::Sixteen } else { Depth::Eight };
    Ok(Header { height: layout.rows, width: layout.columns, is_colour, depth, frames: layout.frames })
}

/// A grey image of so many bits, or a coloured one of eight.
pub(super) fn image(bytes: &[u8], depth: Depth) -> Result<DynamicImage, String> {
    let (uid, body) = body(bytes)?;
    let syntax = Syntax::readable(&uid)?;
    let data = DataSet::read(&body, syntax::coding(&uid), PIXEL_DATA)?;
    let layout = Layout::of(&data)?;
    let frame = layout.middle();
    let stored = pixels::frame(&data, syntax, &layout, frame)?;
    let [width, height] = [layout.columns as u32, layout.rows as u32];
    let whole = "as many samples as pixels";
    let is_grey = [Photometric::Monochrome1, Photometric::Monochrome2].contains(&stored.photometric);
    if !is_grey {
        let colours = values::colour(&data, &layout, &stored)?;
        return Ok(DynamicImage::ImageRgb8(ImageBuffer::from_raw(width, height, colours).expect(whole)));
    }
    let top = if depth == Depth::Sixteen { u16::MAX } else { 255 };
    let samples = values::grey(&data, &layout, frame, &stored, top)?;
    Ok(match depth {
        Depth::Sixteen => DynamicImage::ImageLuma16(ImageBuffer::from_raw(width, height, samples).expect(whole)),
        Depth::Eight => {
            let samples = samples.into_iter().map(|sample| sample as u8).collect();
            DynamicImage::ImageLuma8(ImageBuffer::from_raw(width, height, samples).expect(whole))
        }
    })
}

/// Whose image it is, if the file says so.
///
/// # Errors
/// If it takes more than the `bytes` of the file's beginning.
pub(super) fn patient(bytes: &[u8]) -> Result<Option<String>, String> {
    let (uid, body) = body(bytes)?;
    Ok(DataSet::read(&body, syntax::coding(&uid), PATIENT)?.text(PATIENT))
}

#[cfg(test)]
mod tests;
