//! In the place of DICOM's decoder, in a build without it.

use image::DynamicImage;

use super::decode::Header;
use crate::data::Depth;

const LEFT_OUT: &str = "a DICOM image, which this build does not read: build it with --features dicom";

pub(super) fn is_dicom(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM")
}

pub(super) fn header(_: &[u8]) -> Result<Header, String> {
    Err(LEFT_OUT.into())
}

pub(super) fn image(_: &[u8], _: Depth) -> Result<DynamicImage, String> {
    Err(LEFT_OUT.into())
}

pub(super) fn patient(_: &[u8]) -> Result<Option<String>, String> {
    Ok(None)
}
