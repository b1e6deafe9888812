//! JPEG 2000. What comes out of it are red, green and blue where it had transformed them.

use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

use super::pixels::{Decoded, Layout};

pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Result<Decoded, String> {
    let settings = DecodeSettings { resolve_palette_indices: false, ..DecodeSettings::default() };
    let image = Image::new(bytes, &settings).map_err(|error| error.to_string())?;
    let [width, height] = [image.width(), image.height()].map(|side| side as usize);
    Decoded::check(layout, [width, height, layout.samples])?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(|error| error.to_string())?;
    let components = decoded.components();
    Decoded::check(layout, [width, height, components.len()])?;
    let precision = u32::from(components[0].bit_depth());
    if !(1..=16).contains(&precision) || components.iter().any(|of| of.samples().len() != width * height) {
        return Err(format!("{precision} bits, or components of several sizes"));
    }
    let top = f32::from(u16::MAX >> (16 - precision));
    // The decoder moves signed samples up by half of their range, as it does with unsigned ones, where it belongs.
    let sign = if is_signed(bytes) { 1 << (precision - 1) } else { 0 };
    let of_pixel = |pixel: usize| {
        components.iter().map(move |of| (of.samples()[pixel] + 0.5).floor().clamp(0.0, top) as u16 ^ sign)
    };
    let samples = (0..width * height).flat_map(of_pixel).collect();
    Ok(Decoded { width, height, components: components.len(), precision, samples })
}

/// Whether the first component's samples have a sign: behind the marks of the codestream's begin and of its sizes (ISO 15444-1, A.5.1).
fn is_signed(bytes: &[u8]) -> bool {
    let start = bytes.windows(4).position(|mark| mark == [0xff, 0x4f, 0xff, 0x51]);
    start.and_then(|start| bytes.get(start + 42)).is_some_and(|of| of & 0x80 != 0)
}
