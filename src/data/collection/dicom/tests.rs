//! Files as the standard has them, written here; what should come out of them, by its formulas and by hand.

use image::DynamicImage;

use super::*;

const IMPLICIT: &str = "1.2.840.10008.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const BIG: &str = "1.2.840.10008.1.2.2";
const RLE: &str = "1.2.840.10008.1.2.5";

/// An element's value.
#[derive(Clone)]
enum V {
    /// Numbers of sixteen bits.
    Us(Vec<u16>),
    Ss(i16),
    Text(&'static str),
    /// Of type OW.
    Words(Vec<u16>),
    /// Of type OB, written as they are.
    Bytes(Vec<u8>),
    Items(Vec<Vec<(Tag, V)>>),
    Fragments(Vec<Vec<u8>>),
}

type Elements = Vec<(Tag, V)>;

struct Writer {
    is_explicit: bool,
    is_big: bool,
}

impl Writer {
    fn for_syntax(uid: &str) -> Writer {
        Writer { is_explicit: uid != IMPLICIT, is_big: uid == BIG }
    }

    fn short(&self, number: u16) -> [u8; 2] {
        if self.is_big { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn long(&self, number: u32) -> [u8; 4] {
        if self.is_big { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn tag(&self, tag: Tag) -> Vec<u8> {
        [self.short((tag >> 16) as u16), self.short(tag as u16)].concat()
    }

    fn element(&self, tag: Tag, value: &V) -> Vec<u8> {
        let words = |words: &[u16]| words.iter().flat_map(|&word| self.short(word)).collect::<Vec<u8>>();
        let item = |length: u32| [self.tag(0xfffe_e000), self.long(length).to_vec()].concat();
        let end = [self.tag(0xfffe_e0dd), self.long(0).to_vec()].concat();
        let (vr, length, mut bytes) = match value {
            V::Us(numbers) => (b"US", None, words(numbers)),
            V::Ss(number) => (b"SS", None, words(&[*number as u16])),
            V::Text(text) => (if tag >> 16 == 2 { b"UI" } else { b"LO" }, None, text.as_bytes().to_vec()),
            V::Words(numbers) => (b"OW", None, words(numbers)),
            V::Bytes(bytes) => (b"OB", None, bytes.clone()),
            V::Items(items) => {
                // One by length, the next by a mark.
                let of_item = |(index, elements): (usize, &Elements)| match (index % 2, self.elements(elements)) {
                    (0, bytes) => [item(bytes.len() as u32), bytes].concat(),
                    (_, bytes) => [item(u32::MAX), bytes, self.tag(0xfffe_e00d), vec![0; 4]].concat(),
                };
                let bytes: Vec<Vec<u8>> = items.iter().enumerate().map(of_item).collect();
                (b"SQ", Some(u32::MAX), [bytes.concat(), end].concat())
            }
            V::Fragments(fragments) => {
                let bytes: Vec<Vec<u8>> =
                    fragments.iter().map(|of| [item(of.len() as u32), of.clone()].concat()).collect();
                (b"OB", Some(u32::MAX), [bytes.concat(), end].concat())
            }
        };
        if bytes.len() % 2 == 1 {
            bytes.push(if *vr == *b"LO" { b' ' } else { 0 });
        }
        let length = length.unwrap_or(bytes.len() as u32);
        let is_long = [b"OB", b"OW", b"SQ"].contains(&vr);
        let head = match (self.is_explicit, is_long) {
            (false, _) => self.long(length).to_vec(),
            (true, true) => [&vr[..], &[0, 0], &self.long(length)].concat(),
            (true, false) => [&vr[..], &self.short(length as u16)].concat(),
        };
        [self.tag(tag), head, bytes].concat()
    }

    fn elements(&self, elements: &[(Tag, V)]) -> Vec<u8> {
        let mut sorted = elements.to_vec();
        sorted.sort_by_key(|(tag, _)| *tag);
        sorted.iter().flat_map(|(tag, value)| self.element(*tag, value)).collect()
    }
}

/// A file with its preamble and header.
fn file(uid: &'static str, elements: &[(Tag, V)]) -> Vec<u8> {
    let header = Writer::for_syntax(EXPLICIT).element(0x0002_0010, &V::Text(uid));
    [vec![0; 128], b"DICM".to_vec(), header, Writer::for_syntax(uid).elements(elements)].concat()
}

/// A row of grey pixels of sixteen bits, of which `stored` count.
fn grey(samples: &[u16], stored: u16, is_signed: bool) -> Elements {
    vec![
        (0x0028_0002, V::Us(vec![1])),
        (0x0028_0004, V::Text("MONOCHROME2")),
        (0x0028_0010, V::Us(vec![1])),
        (0x0028_0011, V::Us(vec![samples.len() as u16])),
        (0x0028_0100, V::Us(vec![16])),
        (0x0028_0101, V::Us(vec![stored])),
        (0x0028_0102, V::Us(vec![stored - 1])),
        (0x0028_0103, V::Us(vec![u16::from(is_signed)])),
        (PIXEL_DATA, V::Words(samples.to_vec())),
    ]
}

/// Pixels of eight bits in two rows.
fn eight(photometric: &'static str, samples: u16, columns: u16, pixels: V) -> Elements {
    vec![
        (0x0028_0002, V::Us(vec![samples])),
        (0x0028_0004, V::Text(photometric)),
        (0x0028_0010, V::Us(vec![2])),
        (0x0028_0011, V::Us(vec![columns])),
        (0x0028_0100, V::Us(vec![8])),
        (0x0028_0101, V::Us(vec![8])),
        (0x0028_0102, V::Us(vec![7])),
        (0x0028_0103, V::Us(vec![0])),
        (PIXEL_DATA, pixels),
    ]
}

/// With other values of some elements, or with more.
fn with(elements: &Elements, more: &[(Tag, V)]) -> Elements {
    let is_same = |tag: Tag| more.iter().any(|(other, _)| *other == tag);
    let kept = elements.iter().filter(|(tag, _)| !is_same(*tag)).cloned();
    kept.chain(more.iter().cloned()).collect()
}

fn deep(bytes: &[u8]) -> Vec<u16> {
    assert_eq!(header(bytes).map(|of| (of.depth, of.is_colour)), Ok((Depth::Sixteen, false)));
    match image(bytes, Depth::Sixteen).unwrap() {
        DynamicImage::ImageLuma16(image) => image.into_raw(),
        other => panic!("{:?}", other.color()),
    }
}

fn shallow(bytes: &[u8]) -> Vec<u8> {
    assert_eq!(header(bytes).map(|of| of.depth), Ok(Depth::Eight));
    match image(bytes, Depth::Eight).unwrap() {
        DynamicImage::ImageLuma8(image) => image.into_raw(),
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        other => panic!("{:?}", other.color()),
    }
}

/// 12 bits without a window: from the least, 100, to the greatest, 1100, in all ways of writing numbers.
#[test]
fn values_without_a_window_are_from_least_to_greatest() {
    let samples = [100, 600, 1100, 101];
    // 65535 · (x − 100) / 1000, rounded.
    let expected = [0, 32768, 65535, 66];
    for uid in [IMPLICIT, EXPLICIT, BIG] {
        assert_eq!(deep(&file(uid, &grey(&samples, 12, false))), expected, "{uid}");
    }
    // What is above the bits that count is no part of a sample.
    let dirty = samples.map(|sample| sample | 0xf000);
    assert_eq!(deep(&file(EXPLICIT, &grey(&dirty, 12, false))), expected);
    // Nor what is below, where these are the upper ones.
    let upper: Vec<u16> = samples.iter().map(|sample| sample << 4 | 3).collect();
    let upper = with(&grey(&upper, 12, false), &[(0x0028_0102, V::Us(vec![15]))]);
    assert_eq!(deep(&file(EXPLICIT, &upper)), expected);
    assert_eq!(deep(&file(EXPLICIT, &grey(&[7, 7], 12, false))), [0, 0]);
    let inverted = with(&grey(&samples, 12, false), &[(0x0028_0004, V::Text("MONOCHROME1"))]);
    assert_eq!(deep(&file(EXPLICIT, &inverted)), [65535, 32768, 0, 65469]);
    // Asked for eight bits, it is the same formula and not the upper half.
    match image(&file(EXPLICIT, &grey(&samples, 12, false)), Depth::Eight).unwrap() {
        DynamicImage::ImageLuma8(image) => assert_eq!(image.into_raw(), [0, 128, 255, 0]),
        other => panic!("{:?}", other.color()),
    }
}

/// PS3.3, C.11.2.1.2 and C.11.2.1.3, in Hounsfield units of signed samples: 2 · x − 1024.
#[test]
fn windows_are_those_of_the_standard() {
    // −100, 0, 40, 41 and 200 of twelve bits.
    let samples = [462, 512, 532, 532, 612].map(|sample: i16| sample as u16 & 0xfff);
    let slope = [(0x0028_1052, V::Text("-1024")), (0x0028_1053, V::Text("2.0"))];
    let signed = with(&grey(&samples, 12, true), &slope);
    let window = |center, width, function: Option<&'static str>| {
        let mut more = vec![(0x0028_1050, V::Text(center)), (0x0028_1051, V::Text(width))];
        more.extend(function.map(|function| (0x0028_1056, V::Text(function))));
        deep(&file(EXPLICIT, &with(&signed, &more)))
    };
    let rounded = |y: f64| (65535.0 * y + 0.5).floor() as u16;
    // Of center 40 and width 81: ((x − 39.5) / 80 + ½) of the range. The first of two counts.
    let linear = [0, rounded(0.5 - 39.5 / 80.0), rounded(0.5 + 0.5 / 80.0), rounded(0.5 + 0.5 / 80.0), 65535];
    assert_eq!(window("40", "81", None), linear);
    assert_eq!(window("40\\300", "81\\500", Some("LINEAR")), linear);
    assert_eq!(linear, [0, 410, 33177, 33177, 65535]);
    // (x − 40) / 110 + ½.
    assert_eq!(window("40", "110", Some("LINEAR_EXACT")), [0, 8937, 32768, 32768, 65535]);
    // 1 / (1 + exp(−4 (x − 40) / 100)).
    let sigmoid = [-140.0, -40.0, 0.0, 0.0, 160.0].map(|x: f64| rounded(1.0 / (1.0 + (-4.0 * x / 100.0).exp())));
    assert_eq!(window("40", "100", Some("SIGMOID")), sigmoid);
    // A width of one parts at center − ½; one of none is no window, and so all from −100 to 200 is shown.
    assert_eq!(window("0.5", "1", None), [0, 0, 65535, 65535, 65535]);
    assert_eq!(window("40", "0", None), [0, 21845, 30583, 30583, 65535]);
    let odd = with(&signed, &[(0x0028_1050, V::Text("1")), (0x0028_1051, V::Text("9")), (0x0028_1056, V::Text("X"))]);
    assert!(image(&file(EXPLICIT, &odd), Depth::Sixteen).unwrap_err().contains("'X'"));
}

#[test]
fn negative_samples_have_the_sign_of_their_highest_bit() {
    // −2, −1, 0 and 2 in ten bits.
    let samples = [0x3fe, 0x3ff, 0, 2];
    assert_eq!(deep(&file(BIG, &grey(&samples, 10, true))), [0, 16384, 32768, 65535]);
    assert_eq!(deep(&file(IMPLICIT, &grey(&samples, 10, false))), [65471, 65535, 0, 128]);
}

/// PS3.3, C.11.1.1.1: what is below the first entry is as this, what is beyond the last as that.
#[test]
fn tables_are_looked_up() {
    let table = |first: V, bits: u16, entries: Vec<u16>| {
        let first = match first {
            V::Ss(first) => first as u16,
            _ => 0,
        };
        let descriptor = V::Us(vec![entries.len() as u16, first, bits]);
        V::Items(vec![vec![(0x0028_3002, descriptor), (0x0028_3006, V::Words(entries))]])
    };
    // VOI of 12 bits: 4095 is white.
    let voi = with(&grey(&[0, 5, 6, 99], 12, false), &[(0x0028_3010, table(V::Ss(5), 12, vec![0, 1365, 4095]))]);
    for uid in [IMPLICIT, EXPLICIT, BIG] {
        assert_eq!(deep(&file(uid, &voi)), [0, 0, 21845, 65535], "{uid}");
    }
    // Modality from −1 on, of signed samples, where types are not written; then a window of it.
    let modality = [
        (0x0028_3000, table(V::Ss(-1), 16, vec![10, 20, 30])),
        (0x0028_1050, V::Text("20")),
        (0x0028_1051, V::Text("40")),
        (0x0028_1056, V::Text("LINEAR_EXACT")),
    ];
    let modality = with(&grey(&[0xfff, 0, 1, 9], 12, true), &modality);
    assert_eq!(deep(&file(IMPLICIT, &modality)), [16384, 32768, 49151, 49151]);
    let empty = with(&voi, &[(0x0028_3010, V::Items(vec![vec![(0x0028_3002, V::Us(vec![3, 0, 12]))]]))]);
    assert_eq!(deep(&file(EXPLICIT, &empty)), [0, 3310, 3972, 65535]);
}

/// R = Y + 1.402 (Cr − 128) and so on, rounded (PS3.3, C.7.6.3.1.2).
#[test]
fn colours_become_red_green_and_blue() {
    let rgb = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120].map(u8::from);
    let planar = [10, 40, 70, 100, 20, 50, 80, 110, 30, 60, 90, 120].map(u8::from);
    assert_eq!(shallow(&file(EXPLICIT, &eight("RGB", 3, 2, V::Bytes(rgb.to_vec())))), rgb);
    let planes = with(&eight("RGB", 3, 2, V::Bytes(planar.to_vec())), &[(0x0028_0006, V::Us(vec![1]))]);
    assert_eq!(shallow(&file(EXPLICIT, &planes)), rgb);
    // In words of which the high byte comes first.
    let words: Vec<u16> = rgb.as_chunks().0.iter().map(|&[low, high]| u16::from_le_bytes([low, high])).collect();
    assert_eq!(shallow(&file(BIG, &eight("RGB", 3, 2, V::Words(words)))), rgb);
    let ybr = [100, 128, 128, 100, 128, 228, 100, 228, 128, 250, 0, 255].map(u8::from);
    // 100 + 140.2, 100 − 71.4136; 100 − 34.4136, 100 + 177.2; 250 + 178.054, 250 + 44.0494 − 90.6953, 250 − 226.816.
    let expected = [100, 100, 100, 240, 29, 100, 100, 66, 255, 255, 203, 23];
    assert_eq!(shallow(&file(EXPLICIT, &eight("YBR_FULL", 3, 2, V::Bytes(ybr.to_vec())))), expected);
    // Two of Y and one each of Cb and Cr for two pixels.
    let halved = [100, 90, 128, 228, 100, 20, 228, 128].map(u8::from);
    let expected = [240, 29, 100, 230, 19, 90, 100, 66, 255, 20, 0, 197];
    assert_eq!(shallow(&file(IMPLICIT, &eight("YBR_FULL_422", 3, 2, V::Bytes(halved.to_vec())))), expected);
    // Sixteen bits to their upper eight.
    let deep: Vec<u16> = rgb.iter().map(|&sample| u16::from(sample) << 8 | 0x7f).collect();
    let more = [0x0028_0100, 0x0028_0101].map(|tag| (tag, V::Us(vec![16])));
    let deep = with(&eight("RGB", 3, 2, V::Words(deep)), &[&more[..], &[(0x0028_0102, V::Us(vec![15]))]].concat());
    assert_eq!(shallow(&file(EXPLICIT, &deep)), rgb);
}

#[test]
fn palettes_are_looked_up() {
    let palette = |entries: V, bits: u16| -> Elements {
        (0..3)
            .flat_map(|of| [(0x0028_1101 + of, V::Us(vec![3, 1, bits])), (0x0028_1201 + of, entries.clone())])
            .collect()
    };
    let indices = eight("PALETTE COLOR", 1, 2, V::Bytes(vec![0, 1, 2, 200]));
    let expected = [0x12, 0x12, 0x12, 0x12, 0x12, 0x12, 0x34, 0x34, 0x34, 0xff, 0xff, 0xff];
    for (uid, entries, bits) in [
        (EXPLICIT, V::Words(vec![0x12ab, 0x3400, 0xffff]), 16),
        (BIG, V::Words(vec![0x12ab, 0x3400, 0xffff]), 16),
        (IMPLICIT, V::Words(vec![0x12, 0x34, 0xff]), 8),
        (EXPLICIT, V::Bytes(vec![0x12, 0x34, 0xff]), 8),
    ] {
        assert_eq!(shallow(&file(uid, &with(&indices, &palette(entries, bits)))), expected, "{uid}, {bits}");
    }
    assert!(image(&file(EXPLICIT, &indices), Depth::Eight).unwrap_err().contains("no palette"));
    // Two entries as they are, two on a line to 0x600, and those of the first segment again (PS3.3, C.7.9.2).
    let segments = V::Words(vec![0, 2, 0x0100, 0x0200, 1, 2, 0x0600, 2, 1, 0, 0]);
    let segmented: Elements = (0..3)
        .flat_map(|of| [(0x0028_1101 + of, V::Us(vec![6, 0, 16])), (0x0028_1221 + of, segments.clone())])
        .collect();
    let indices = eight("PALETTE COLOR", 1, 3, V::Bytes(vec![0, 1, 2, 3, 4, 5]));
    let expected = [1, 2, 4, 6, 1, 2].map(|entry| [entry; 3]).concat();
    assert_eq!(shallow(&file(EXPLICIT, &with(&indices, &segmented))), expected);
}

/// PS3.5, G.3: literal runs, and repeated bytes.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![128];
    for run in bytes.chunk_by(|a, b| a == b) {
        run.chunks(128).for_each(|run| match run {
            [byte] => out.extend([0, *byte]),
            run => out.extend([(1 - run.len() as i32) as u8, run[0]]),
        });
    }
    out.resize(out.len().next_multiple_of(2), 128);
    out
}

fn rle(planes: &[Vec<u8>]) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = planes.iter().map(|plane| packed(plane)).collect();
    let mut header = vec![parts.len() as u32];
    let mut at = 64;
    for part in &parts {
        header.push(at);
        at += part.len() as u32;
    }
    header.resize(16, 0);
    [header.iter().flat_map(|number| number.to_le_bytes()).collect(), parts.concat()].concat()
}

#[test]
fn run_lengths_are_undone() {
    let samples: Vec<u16> = (0..600).map(|at| 100 + at / 200 * 500).collect();
    let [high, low]: [Vec<u8>; 2] =
        [8, 0].map(|shift| samples.iter().map(|sample| (sample >> shift) as u8).collect::<Vec<u8>>());
    let compressed = V::Fragments(vec![vec![], rle(&[high, low])]);
    let plain = grey(&samples, 12, false);
    let expected = deep(&file(EXPLICIT, &plain));
    assert_eq!(expected[199..202], [0, 32768, 32768]);
    assert_eq!(deep(&file(RLE, &with(&plain, &[(PIXEL_DATA, compressed)]))), expected);
    let planes = [vec![1, 1, 1, 9], vec![2, 2, 5, 5], vec![3; 4]];
    let colours = V::Fragments(vec![vec![], rle(&planes)]);
    let expected = [1, 2, 3, 1, 2, 3, 1, 5, 3, 9, 5, 3];
    assert_eq!(shallow(&file(RLE, &eight("RGB", 3, 2, colours))), expected);
}

#[test]
fn of_several_frames_the_middle_one_is_read() {
    let frames = |count: &'static str, samples: &[u16]| {
        with(&grey(samples, 12, false), &[(0x0028_0008, V::Text(count)), (0x0028_0011, V::Us(vec![2]))])
    };
    let bytes = file(EXPLICIT, &frames("3", &[0, 1, 10, 5, 3, 4]));
    assert_eq!(deep(&bytes), [65535, 0]);
    assert_eq!(header(&bytes).unwrap().frames, 3);
    // Each in a fragment; in two of them that offsets tell; without any.
    let of = |low: [u8; 2]| rle(&[vec![0, 0], low.to_vec()]);
    let [one, two, three] = [of([0, 1]), of([10, 5]), of([3, 4])];
    let parts = [one.clone(), two[..40].to_vec(), two[40..].to_vec(), three.clone()];
    let offset =
        |before: usize| (parts[..before].iter().map(|part| part.len() + 8).sum::<usize>() as u32).to_le_bytes();
    let table = [offset(0), offset(1), offset(3)].concat();
    let read = |fragments: Vec<Vec<u8>>| {
        let elements = with(&frames("3", &[]), &[(PIXEL_DATA, V::Fragments(fragments))]);
        image(&file(RLE, &elements), Depth::Sixteen).map(|image| image.to_luma16().into_raw())
    };
    assert_eq!(read(vec![vec![], one, two, three]).unwrap(), [65535, 0]);
    assert_eq!(read([&[table][..], &parts[..]].concat()).unwrap(), [65535, 0]);
    assert!(read([&[vec![]][..], &parts[..]].concat()).unwrap_err().contains("3 frames in 4 parts"));
    // What a file says of this frame alone, and of all (PS3.3, C.7.6.16).
    let slope = |slope| (0x0028_1053, V::Text(slope));
    let of_frame = |value| vec![(0x0028_9145, V::Items(vec![vec![slope(value)]]))];
    let window = [(0x0028_1050, V::Text("10")), (0x0028_1051, V::Text("40")), (0x0028_1056, V::Text("LINEAR_EXACT"))];
    let groups = [
        (0x5200_9229, V::Items(vec![vec![(0x0028_9132, V::Items(vec![window.to_vec()]))]])),
        (0x5200_9230, V::Items(vec![of_frame("7"), of_frame("2"), of_frame("9")])),
    ];
    // (2 · 10 − 10) / 40 + ½ and (2 · 5 − 10) / 40 + ½.
    for uid in [IMPLICIT, EXPLICIT] {
        assert_eq!(deep(&file(uid, &with(&frames("3", &[0, 1, 10, 5, 3, 4]), &groups))), [49151, 32768], "{uid}");
    }
}

#[test]
fn single_bits_and_thirty_two_are_samples() {
    let bits = |tag, bits| (tag, V::Us(vec![bits]));
    let one = with(
        &eight("MONOCHROME2", 1, 5, V::Bytes(vec![0b1010_0110, 0b01])),
        &[bits(0x0028_0100, 1), bits(0x0028_0101, 1), bits(0x0028_0102, 0)],
    );
    // The lowest bit is the first.
    assert_eq!(shallow(&file(EXPLICIT, &one)), [0, 255, 255, 0, 0, 255, 0, 255, 255, 0]);
    let long = with(
        &grey(&[0, 0, 0, 0x8000, 0, 0x4000], 12, true),
        &[bits(0x0028_0011, 3), bits(0x0028_0100, 32), bits(0x0028_0101, 32), bits(0x0028_0102, 31)],
    );
    // 0, −2³¹ and 2³⁰.
    assert_eq!(deep(&file(EXPLICIT, &long)), [43690, 0, 65535]);
}

#[test]
fn a_deflated_file_and_one_without_preamble_are_read() {
    use std::io::Write;
    let elements = grey(&[1, 2], 12, false);
    let whole = file(EXPLICIT, &elements);
    let plain = Writer::for_syntax(EXPLICIT).elements(&elements);
    let mut deflated = flate2::write::DeflateEncoder::new(file(syntax::DEFLATED, &[]), Default::default());
    deflated.write_all(&plain).unwrap();
    assert_eq!(deep(&deflated.finish().unwrap()), [0, 65535]);
    assert_eq!(deep(&whole[132..]), [0, 65535]);
    for uid in [EXPLICIT, IMPLICIT] {
        let with_name = with(&elements, &[(0x0008_0005, V::Text("ISO_IR 100"))]);
        let bytes = Writer::for_syntax(uid).elements(&with_name);
        assert!(is_dicom(&bytes), "{uid}");
        assert_eq!(deep(&bytes), [0, 65535], "{uid}");
    }
    assert!(!is_dicom(b"\x89PNG") && !is_dicom(&[2, 0]) && !is_dicom(&[]));
}

#[test]
fn whose_image_it_is_stands_in_the_header() {
    let elements = with(&grey(&[1, 2], 12, false), &[(0x0010_0020, V::Text("P 7")), (0x0008_0060, V::Text("CT"))]);
    for uid in [IMPLICIT, EXPLICIT, BIG] {
        let bytes = file(uid, &elements);
        assert_eq!(patient(&bytes), Ok(Some("P 7".into())), "{uid}");
        // Nothing behind it is needed.
        let end = bytes.windows(3).position(|of| of == b"P 7").unwrap() + 4;
        assert_eq!(patient(&bytes[..end]), Ok(Some("P 7".into())), "{uid}");
        assert!(patient(&bytes[..end - 1]).is_err(), "{uid}");
        assert_eq!(patient(&file(uid, &grey(&[1, 2], 12, false))), Ok(None), "{uid}");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let plain = grey(&[1, 2, 3], 12, false);
    let us = |tag, number| [(tag, V::Us(vec![number]))];
    let without = |tag: Tag| plain.iter().filter(|(of, _)| *of != tag).cloned().collect::<Elements>();
    let fragments = |bytes: &[u8]| with(&plain, &[(PIXEL_DATA, V::Fragments(vec![vec![], bytes.to_vec()]))]);
    let whole = file(EXPLICIT, &plain);
    for (bytes, says) in [
        (file("1.2.840.10008.1.2.4.102", &plain), "1.2.840.10008.1.2.4.102 (MPEG-4 AVC/H.264"),
        (file("1.2.3.4", &plain), "1.2.3.4 (an unknown"),
        (file(RLE, &plain), "1.2.840.10008.1.2.5 (RLE Lossless) does not fit"),
        (file(EXPLICIT, &fragments(&[1; 90])), "does not fit"),
        (file(RLE, &fragments(&[1; 90])), "not the 2 parts"),
        (file(RLE, &fragments(&rle(&[vec![0; 3], vec![1; 2]]))), "cut off: 2 of 3 bytes"),
        (file(EXPLICIT, &without(PIXEL_DATA)), "without pixels"),
        (file(EXPLICIT, &without(0x0028_0010)), "without an image"),
        (whole[..whole.len() - 2].to_vec(), "cut off"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0011, 4))), "cut off: 6 of 8 bytes"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0010, 0))), "without pixels"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0101, 17))), "17 bits in 16"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0102, 3))), "bit 3 is the highest of 12"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0100, 24))), "in 24"),
        (file(EXPLICIT, &with(&plain, &us(0x0028_0002, 4))), "MONOCHROME2 in 4 samples"),
        (file(EXPLICIT, &with(&plain, &[(0x0028_0004, V::Text("YBR_PARTIAL_420"))])), "YBR_PARTIAL_420"),
        (
            file(EXPLICIT, &with(&plain, &[us(0x0028_0010, 60_000), us(0x0028_0011, 60_000)].concat())),
            "60000×60000 pixels",
        ),
        (file("1.2.840.10008.1.2.4.50", &fragments(&[1; 90])), "(JPEG Baseline (Process 1)) fails: no JPEG"),
        (file("1.2.840.10008.1.2.4.70", &fragments(&[1; 90])), "fails: no JPEG"),
        (file("1.2.840.10008.1.2.4.80", &fragments(&[1; 90])), "fails: no JPEG-LS"),
        (file("1.2.840.10008.1.2.4.90", &fragments(&[1; 90])), "(JPEG 2000 (Lossless Only)) fails"),
    ] {
        let message = image(&bytes, Depth::Sixteen).map(|_| ()).expect_err(says);
        assert!(message.contains(says) && !message.contains('\n'), "{message}, not {says}");
    }
    // A length that no file has takes no memory.
    let mut long = whole.clone();
    let at = long.windows(2).rposition(|of| of == b"OW").unwrap();
    long[at + 4..at + 8].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    assert_eq!(image(&long, Depth::Sixteen).unwrap_err(), elements::CUT_OFF);
}

/// Wherever a file ends, and whatever a byte becomes, it is an image or an error.
#[test]
fn damaged_files_are_no_panic() {
    let nested = [
        (0x0010_0020, V::Text("P")),
        (0x0028_3010, V::Items(vec![vec![(0x0028_3002, V::Us(vec![1, 0, 12])), (0x0028_3006, V::Us(vec![9]))]; 2])),
    ];
    for uid in [IMPLICIT, EXPLICIT, BIG, RLE] {
        let pixels = [(PIXEL_DATA, V::Fragments(vec![vec![], rle(&[vec![0; 3], vec![1, 1, 2]])]))];
        let more = if uid == RLE { &pixels[..] } else { &[] };
        let bytes = file(uid, &with(&with(&grey(&[1, 2, 3], 12, false), &nested), more));
        assert!(image(&bytes, Depth::Sixteen).is_ok(), "{uid}");
        for end in 0..bytes.len() {
            let _ = (header(&bytes[..end]), image(&bytes[..end], Depth::Sixteen), patient(&bytes[..end]));
        }
        for at in 128..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xfe, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = (header(&damaged), image(&damaged, Depth::Sixteen), patient(&damaged));
            }
        }
    }
}

/// Differences of samples by one table, whose code of each of 17 sizes is its number in five bits (ITU-T T.81, annex H).
fn lossless_jpeg(samples: &[u16], width: usize, precision: u32, predictor: u8, interval: u16) -> Vec<u8> {
    let mut bits = String::new();
    let mut scan = Vec::new();
    let flush = |bits: &mut String, scan: &mut Vec<u8>| {
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        for byte in bits.as_bytes().chunks(8).map(|of| u8::from_str_radix(str::from_utf8(of).unwrap(), 2).unwrap()) {
            scan.push(byte);
            if byte == 0xff {
                scan.push(0);
            }
        }
        bits.clear();
    };
    let mut top = 0;
    for (at, &sample) in samples.iter().enumerate() {
        if interval > 0 && at > 0 && at.is_multiple_of(interval as usize) {
            flush(&mut bits, &mut scan);
            scan.extend([0xff, 0xd0 + (at / interval as usize - 1) as u8 % 8]);
            top = at / width;
        }
        let before = |back: usize| i32::from(samples[at - back]);
        let prediction = match (at % width, at / width - top) {
            (0, 0) => 1 << (precision - 1),
            (_, 0) => before(1),
            (0, _) => before(width),
            _ => {
                let [a, b, c] = [1, width, width + 1].map(before);
                [0, a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) / 2][usize::from(predictor)]
            }
        };
        // Differences are modulo 2¹⁶.
        let difference = (i32::from(sample) - prediction) as i16;
        let size = if difference == i16::MIN { 16 } else { 16 - difference.unsigned_abs().leading_zeros() };
        bits += &format!("{size:05b}");
        let value = (i32::from(difference) - i32::from(difference < 0)) as u16;
        if (1..16).contains(&size) {
            bits += &format!("{value:016b}")[16 - size as usize..];
        }
    }
    flush(&mut bits, &mut scan);
    let height = (samples.len() / width) as u16;
    let segment =
        |marker: u8, content: &[u8]| [&[0xff, marker], &(content.len() as u16 + 2).to_be_bytes()[..], content].concat();
    let mut counts = [0; 17];
    counts[5] = 17;
    let sizes: Vec<u8> = (0..17).collect();
    let [height, width] = [height, width as u16].map(u16::to_be_bytes);
    [
        vec![0xff, 0xd8],
        segment(0xc4, &[&counts[..], &sizes].concat()),
        segment(0xdd, &interval.to_be_bytes()),
        segment(0xc3, &[&[precision as u8], &height[..], &width[..], &[1, 1, 0x11, 0]].concat()),
        segment(0xda, &[1, 1, 0, predictor, 0, 0]),
        scan,
        vec![0xff, 0xd9],
    ]
    .concat()
}

/// The samples of `columns` in a row that a codec's bytes are said to hold.
fn compressed(uid: &'static str, bytes: &[u8], layout: [u16; 4]) -> Result<Vec<u16>, String> {
    let [columns, rows, allocated, stored] = layout;
    let us = |tag, number| (tag, V::Us(vec![number]));
    let more = [
        us(0x0028_0011, columns),
        us(0x0028_0010, rows),
        us(0x0028_0100, allocated),
        us(0x0028_0101, stored),
        us(0x0028_0102, stored - 1),
        (PIXEL_DATA, V::Fragments(vec![vec![], bytes.to_vec()])),
    ];
    // A window over all that there can be, so that a sample of sixteen bits is itself.
    let (center, top) = match stored {
        8 => ("127.5", "255"),
        12 => ("2047.5", "4095"),
        _ => ("32767.5", "65535"),
    };
    let window = [(0x0028_1050, V::Text(center)), (0x0028_1051, V::Text(top)), (0x0028_1056, V::Text("LINEAR_EXACT"))];
    let bytes = file(uid, &with(&grey(&[], 16, false), &[&more[..], &window].concat()));
    let whole = f64::from(u16::MAX) / top.parse::<f64>().unwrap();
    let samples = image(&bytes, Depth::Sixteen)?.into_luma16().into_raw();
    Ok(samples.into_iter().map(|sample| (f64::from(sample) / whole).round() as u16).collect())
}

#[test]
fn lossless_jpeg_is_decoded_by_every_predictor() {
    let samples: Vec<u16> = (0..24u32).map(|at| ((at * at * 2_654_435) >> 7) as u16).collect();
    for (precision, uid) in [(16, "1.2.840.10008.1.2.4.57"), (12, "1.2.840.10008.1.2.4.70")] {
        let samples: Vec<u16> = samples.iter().map(|sample| sample >> (16 - precision)).collect();
        for predictor in 1..=7 {
            for interval in [0, 6, 12] {
                let bytes = lossless_jpeg(&samples, 6, precision as u32, predictor, interval);
                let read = compressed(uid, &bytes, [6, 4, 16, precision]).unwrap();
                assert_eq!(read, samples, "{precision} bits, predictor {predictor}, interval {interval}");
            }
        }
        let bytes = lossless_jpeg(&samples, 6, precision as u32, 1, 0);
        let cut = compressed(uid, &bytes[..bytes.len() - 6], [6, 4, 16, precision]).unwrap_err();
        assert!(cut.contains("fails: it is cut off"), "{cut}");
        let narrow = compressed(uid, &bytes, [8, 3, 16, precision]).unwrap_err();
        assert!(narrow.contains("6×4×1 samples are compressed, 8×3×1 announced"), "{narrow}");
    }
    // Twice the jump of half the range, which takes no bits but its size.
    let jumps = [0x8000, 0, 0x8000, 0xffff];
    assert_eq!(
        compressed("1.2.840.10008.1.2.4.57", &lossless_jpeg(&jumps, 4, 16, 1, 0), [4, 1, 16, 16]).unwrap(),
        jumps
    );
}

/// The recommendation's own example (ITU-T T.87, H.3).
#[test]
fn jpeg_ls_is_decoded() {
    let bytes = [
        0xff, 0xd8, 0xff, 0xf7, 0x00, 0x0b, 0x08, 0x00, 0x04, 0x00, 0x04, 0x01, 0x01, 0x11, 0x00, 0xff, 0xda, 0x00,
        0x08, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00, 0x6c, 0x80, 0x20, 0x8e, 0x01, 0xc0, 0x00, 0x00,
        0x57, 0x40, 0x00, 0x00, 0x6e, 0xe6, 0x00, 0x00, 0x01, 0xbc, 0x18, 0x00, 0x00, 0x05, 0xd8, 0x00, 0x00, 0x91,
        0x60, 0xff, 0xd9,
    ];
    let samples = [0, 0, 90, 74, 68, 50, 43, 205, 64, 145, 145, 145, 100, 145, 145, 145];
    assert_eq!(compressed("1.2.840.10008.1.2.4.80", &bytes, [4, 4, 8, 8]).unwrap(), samples);
    let cut = compressed("1.2.840.10008.1.2.4.80", &bytes[..bytes.len() - 8], [4, 4, 8, 8]).unwrap_err();
    assert!(cut.contains("fails: it is cut off"), "{cut}");
}

/// Six samples without loss, as OpenJPEG 2.5 writes them; where the codestream says that they have a sign, it is that of the highest bit.
#[test]
fn jpeg_2000_is_decoded() {
    let mut bytes = [
        0xff, 0x4f, 0xff, 0x51, 0x00, 0x29, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x0f, 0x01, 0x01, 0xff, 0x52, 0x00, 0x0c, 0x00, 0x00, 0x00, 0x01, 0x00,
        0x00, 0x04, 0x04, 0x00, 0x01, 0xff, 0x5c, 0x00, 0x04, 0x40, 0x80, 0xff, 0x90, 0x00, 0x0a, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x20, 0x00, 0x01, 0xff, 0x93, 0xdf, 0xf8, 0x90, 0x70, 0x07, 0xa2, 0xd6, 0x11, 0x4d, 0xe1, 0x86,
        0x49, 0x15, 0x74, 0xc5, 0x8b, 0xb3, 0x5f, 0xff, 0xd9,
    ];
    let uid = "1.2.840.10008.1.2.4.90";
    let samples = [0, 100, 65535, 7, 2048, 1];
    assert_eq!(compressed(uid, &bytes, [3, 2, 16, 16]).unwrap(), samples);
    bytes[42] |= 0x80;
    assert_eq!(compressed(uid, &bytes, [3, 2, 16, 16]).unwrap(), samples.map(|sample| sample ^ 0x8000));
    assert!(compressed(uid, &bytes, [2, 3, 16, 16]).unwrap_err().contains("3×2×1 samples are compressed"));
    assert!(compressed(uid, &bytes[..60], [3, 2, 16, 16]).unwrap_err().contains("fails"));
}

/// Of one colour, whatever a decoder rounds: R, G and B of 200, 30 and 60 are Y, Cb and Cr of 84, 114 and 211.
#[test]
fn lossy_jpeg_is_decoded_and_says_what_its_samples_are() {
    let colours = [200, 30, 60];
    let mut jfif = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jfif, 100);
    encoder.encode(&colours.repeat(256), 16, 16, image::ExtendedColorType::Rgb8).unwrap();
    let uid = "1.2.840.10008.1.2.4.50";
    let read = |photometric: &'static str, bytes: &[u8]| {
        let sides = [0x0028_0010, 0x0028_0011].map(|tag| (tag, V::Us(vec![16])));
        let elements = eight(photometric, 3, 16, V::Fragments(vec![vec![], bytes.to_vec()]));
        image(&file(uid, &with(&elements, &sides)), Depth::Eight).map(|image| image.into_rgb8().into_raw())
    };
    let is_near = |samples: Vec<u8>, expected: [u8; 3]| {
        let far = samples.iter().zip(expected.iter().cycle()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(samples.len() == 768 && far <= Some(2), "{expected:?} within {far:?}");
    };
    let stored = [84, 114, 211];
    // Its own mark is stronger than what the file says.
    is_near(read("YBR_FULL_422", &jfif).unwrap(), colours);
    is_near(read("RGB", &jfif).unwrap(), colours);
    // Without it the file decides, unless components are called R, G and B, or Adobe's mark says that nothing was transformed.
    let mark = jfif.windows(4).position(|of| of == b"JFIF").unwrap() - 4;
    let plain = [&jfif[..mark], &jfif[mark + 18..]].concat();
    is_near(read("YBR_FULL_422", &plain).unwrap(), colours);
    is_near(read("RGB", &plain).unwrap(), stored);
    let adobe = [&[0xff, 0xd8, 0xff, 0xee, 0, 14][..], b"Adobe", &[0, 100, 0, 0, 0, 0, 0], &plain[2..]].concat();
    is_near(read("YBR_FULL_422", &adobe).unwrap(), stored);
    let mut named = plain.clone();
    let frame = named.windows(2).position(|of| of == [0xff, 0xc0]).unwrap();
    let scan = named.windows(2).position(|of| of == [0xff, 0xda]).unwrap();
    for (at, name) in b"RGB".iter().enumerate() {
        (named[frame + 10 + 3 * at], named[scan + 5 + 2 * at]) = (*name, *name);
    }
    is_near(read("YBR_FULL_422", &named).unwrap(), stored);
    named[frame + 4] = 12;
    assert!(read("RGB", &named).unwrap_err().contains("lossy JPEG of 12 bits is not decoded here"));
}
