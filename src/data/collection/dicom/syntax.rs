//! Transfer syntaxes: how elements and pixels are written (PS3.5, chapter 10; PS3.6, table A-1).

use super::elements::Coding;

/// What pixels are compressed by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Codec {
    /// By nothing.
    Native,
    /// By nothing, in fragments.
    Fragments,
    Rle,
    Jpeg,
    LosslessJpeg,
    JpegLs,
    Jpeg2000,
    /// One that there is no decoder for here.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Syntax {
    pub uid: &'static str,
    pub name: &'static str,
    pub codec: Codec,
}

const fn syntax(uid: &'static str, name: &'static str, codec: Codec) -> Syntax {
    Syntax { uid, name, codec }
}

pub(super) const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

const SYNTAXES: [Syntax; 39] = [
    syntax("1.2.840.10008.1.2", "Implicit VR Little Endian", Codec::Native),
    syntax("1.2.840.10008.1.2.1", "Explicit VR Little Endian", Codec::Native),
    syntax("1.2.840.10008.1.2.1.98", "Encapsulated Uncompressed Explicit VR Little Endian", Codec::Fragments),
    syntax(DEFLATED, "Deflated Explicit VR Little Endian", Codec::Native),
    syntax("1.2.840.10008.1.2.2", "Explicit VR Big Endian", Codec::Native),
    syntax("1.2.840.10008.1.2.5", "RLE Lossless", Codec::Rle),
    syntax("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression", Codec::Other),
    syntax("1.2.840.10008.1.2.4.50", "JPEG Baseline (Process 1)", Codec::Jpeg),
    syntax("1.2.840.10008.1.2.4.51", "JPEG Extended (Process 2 and 4)", Codec::Jpeg),
    syntax("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection (Process 6 and 8)", Codec::Jpeg),
    syntax("1.2.840.10008.1.2.4.55", "JPEG Full Progression (Process 10 and 12)", Codec::Jpeg),
    syntax("1.2.840.10008.1.2.4.57", "JPEG Lossless (Process 14)", Codec::LosslessJpeg),
    syntax("1.2.840.10008.1.2.4.70", "JPEG Lossless (Process 14, Selection Value 1)", Codec::LosslessJpeg),
    syntax("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless", Codec::JpegLs),
    syntax("1.2.840.10008.1.2.4.81", "JPEG-LS Near-Lossless", Codec::JpegLs),
    syntax("1.2.840.10008.1.2.4.90", "JPEG 2000 (Lossless Only)", Codec::Jpeg2000),
    syntax("1.2.840.10008.1.2.4.91", "JPEG 2000", Codec::Jpeg2000),
    syntax("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component (Lossless Only)", Codec::Other),
    syntax("1.2.840.10008.1.2.4.93", "JPEG 2000 Part 2 Multi-component", Codec::Other),
    syntax("1.2.840.10008.1.2.4.94", "JPIP Referenced", Codec::Other),
    syntax("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate", Codec::Other),
    syntax("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level", Codec::Other),
    syntax("1.2.840.10008.1.2.4.101", "MPEG2 Main Profile / High Level", Codec::Other),
    syntax("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", Codec::Other),
    syntax("1.2.840.10008.1.2.4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", Codec::Other),
    syntax("1.2.840.10008.1.2.4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", Codec::Other),
    syntax("1.2.840.10008.1.2.4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", Codec::Other),
    syntax("1.2.840.10008.1.2.4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", Codec::Other),
    syntax("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile / Level 5.1", Codec::Other),
    syntax("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", Codec::Other),
    syntax("1.2.840.10008.1.2.4.110", "JPEG XL Lossless", Codec::Other),
    syntax("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression", Codec::Other),
    syntax("1.2.840.10008.1.2.4.112", "JPEG XL", Codec::Other),
    syntax("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 (Lossless Only)", Codec::Other),
    syntax("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", Codec::Other),
    syntax("1.2.840.10008.1.2.4.203", "High-Throughput JPEG 2000", Codec::Other),
    syntax("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced", Codec::Other),
    syntax("1.2.840.10008.1.2.4.205", "JPIP HTJ2K Referenced Deflate", Codec::Other),
    syntax("1.2.840.113619.5.2", "GE Private Implicit VR Big Endian", Codec::Other),
];

impl Syntax {
    /// One of which pixels can be decoded.
    pub fn readable(uid: &str) -> Result<Syntax, String> {
        match SYNTAXES.into_iter().find(|syntax| syntax.uid == uid) {
            Some(syntax) if syntax.codec != Codec::Other => Ok(syntax),
            Some(syntax) => Err(syntax.cannot("is not decoded here")),
            None => Err(format!("DICOM's transfer syntax {uid} (an unknown or private one) is not decoded here")),
        }
    }

    pub fn cannot(&self, what: &str) -> String {
        format!("DICOM's transfer syntax {} ({}) {what}", self.uid, self.name)
    }
}

/// How elements are written: all but two write the types of values, and the low byte first.
pub(super) fn coding(uid: &str) -> Coding {
    match uid {
        "1.2.840.10008.1.2" => Coding::IMPLICIT,
        "1.2.840.10008.1.2.2" => Coding::BIG,
        _ => Coding::EXPLICIT,
    }
}
