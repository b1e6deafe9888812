//! DICOM files as images: a folder of them and a table, and no patient in two splits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use medmerge::data::{Dataset, SplitName};

use crate::support::{Folder, assert_refused, case};

const MULTI_FRAME: (u32, &[u8]) = (0x0028_0008, b"2 ");

/// A grey image of twelve bits in explicit VR little endian, of the elements that a reader needs, and `more`.
fn dicom(patient: &str, side: u16, samples: &[u16], syntax: &str, more: &[(u32, &[u8])]) -> Vec<u8> {
    let element = |tag: u32, vr: &[u8; 2], value: &[u8]| {
        let mut value = value.to_vec();
        value.resize(value.len().next_multiple_of(2), 0);
        let length = match vr {
            b"OW" => [&[0, 0][..], &(value.len() as u32).to_le_bytes()].concat(),
            _ => (value.len() as u16).to_le_bytes().to_vec(),
        };
        let [group, number] = [(tag >> 16) as u16, tag as u16].map(u16::to_le_bytes);
        [&group, &number, &vr[..], &length, &value].concat()
    };
    let short = |tag: u32, number: u16| (tag, b"US", number.to_le_bytes().to_vec());
    let mut elements = vec![
        (0x0002_0010, b"UI", syntax.as_bytes().to_vec()),
        (0x0010_0020, b"LO", patient.as_bytes().to_vec()),
        short(0x0028_0002, 1),
        (0x0028_0004, b"CS", b"MONOCHROME2".to_vec()),
        short(0x0028_0010, side),
        short(0x0028_0011, side),
        short(0x0028_0100, 16),
        short(0x0028_0101, 12),
        short(0x0028_0102, 11),
        short(0x0028_0103, 0),
        (0x0028_1050, b"DS", b"2047.5".to_vec()),
        (0x0028_1051, b"DS", b"4095".to_vec()),
        (0x0028_1056, b"CS", b"LINEAR_EXACT".to_vec()),
        (0x7fe0_0010, b"OW", samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()),
    ];
    elements.extend(more.iter().map(|(tag, value)| (*tag, b"IS", value.to_vec())));
    elements.sort_by_key(|(tag, ..)| *tag);
    let elements = elements.iter().flat_map(|(tag, vr, value)| element(*tag, vr, value));
    [vec![0; 128], b"DICM".to_vec(), elements.collect()].concat()
}

const EXPLICIT: &str = "1.2.840.10008.1.2.1";

/// The images of `data/target.npz` as DICOM files, two or three for each patient, half of them without an extension, and a table.
fn published(folder: &Folder) -> usize {
    let data = Dataset::load(&folder.path("data/target.npz")).unwrap();
    fs::create_dir_all(folder.path("set/series")).unwrap();
    let mut table = "image,diagnosis\n".to_string();
    let mut number = 0;
    for split in SplitName::ALL {
        let bytes = data.split(split).bytes().unwrap();
        for (pixels, label) in bytes.chunks(data.height * data.width).zip(&data.split(split).labels) {
            let samples: Vec<u16> = pixels.iter().map(|&pixel| 16 * u16::from(pixel)).collect();
            let patient = format!("P{}", number * 2 / 5);
            let name = format!("1.2.826.{number}{}", if number % 2 == 0 { ".dcm" } else { "" });
            let file = dicom(&patient, data.height as u16, &samples, EXPLICIT, &[]);
            folder.write(&format!("set/series/{name}"), file);
            table += &format!("1.2.826.{number},{}\n", ["healthy", "ill", "other"][*label as usize % 3]);
            number += 1;
        }
    }
    folder.write("set/labels.csv", table);
    // A disc's table of contents is none of its images; nor is what has no extension and no magic.
    folder.write("set/DICOMDIR", dicom("", 1, &[1], EXPLICIT, &[]));
    folder.write("set/README", "what is here");
    number
}

#[test]
fn a_folder_of_dicom_files_is_a_data_set() {
    let folder = Folder::with_sources();
    let count = published(&folder);
    let told = folder.json("inspect set --image-size 16 --write-splits splits.csv");
    let counts = ["train", "val", "test"].map(|split| told["summary"][split]["images"].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), count as u64);
    assert!(counts.iter().all(|&images| images > 0), "{counts:?}");
    let text = folder.done("inspect set --image-size 16");
    assert!(text.contains("groups are patients, by PatientID of the DICOM files"), "{text}");
    // No patient is in two splits.
    let mut splits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in folder.text("splits.csv").lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        let number: usize = columns[0].trim_end_matches(".dcm").rsplit_once('.').unwrap().1.parse().unwrap();
        assert_eq!(columns[3], format!("P{}", number * 2 / 5), "{row}");
        splits.entry(columns[3].into()).or_default().insert(columns[2].into());
    }
    assert!(splits.len() > 20 && splits.values().all(|of| of.len() == 1), "{splits:?}");
    let without = folder.done("inspect set --image-size 16 --group-column none");
    assert!(!without.contains("PatientID"), "{without}");
    // Trained, measured and predicted on; the archive of the same files is the same.
    let train = "train --architecture resnet8 --width 4 --epochs 1 --batch-size 8 --seed 3 --image-size 16";
    folder.done(&format!("{train} --data set --out network"));
    let mut archive = tar::Builder::new(fs::File::create(folder.path("set.tar")).unwrap());
    archive.append_dir_all("set", folder.path("set")).unwrap();
    archive.finish().unwrap();
    let [of_folder, of_tar] =
        ["set", "set.tar"].map(|data| folder.json(&format!("eval --model network --data {data}")));
    assert_eq!(of_folder["metrics"], of_tar["metrics"]);
    let classes = of_folder["metrics"]["per_class"].as_array().unwrap();
    assert_eq!(classes.iter().map(|class| class["support"].as_u64().unwrap()).sum::<u64>(), counts[2]);
    folder.done("predict --model network --data set --out scores.csv");
    assert_eq!(folder.text("scores.csv").lines().count() as u64, 1 + counts[2]);
    let learn = "learn --models texture.safetensors shape.safetensors --anchor 0 --epochs 1 --batch-size 8";
    folder.done(&format!("{learn} --data set --image-size 16 --out merged"));
    // Values are those of the window: sixteen times a pixel, of 4095.
    let collecting = medmerge::data::Collecting { image_size: Some(16), ..Default::default() };
    let data = Dataset::open(&folder.path("set"), &collecting).unwrap().data;
    let bytes = data.test.bytes().unwrap();
    let samples: Vec<u16> = bytes.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
    assert_eq!(samples.len() as u64, counts[2] * 256);
    let is_of_a_pixel = |&sample: &u16| {
        let unit = 16.0 * 65535.0 / 4095.0;
        (f64::from(sample) - (f64::from(sample) / unit).round() * unit).abs() <= 0.5
    };
    assert!(samples.iter().all(is_of_a_pixel) && samples.iter().any(|&sample| sample > 30_000));
}

#[test]
fn what_is_wrong_with_a_dicom_file_is_told_by_its_name() {
    let folder = Folder::new();
    for (set, name, bytes) in [
        ("unknown", "a/x.dcm", dicom("P", 2, &[0, 1, 2, 3], "1.2.840.10008.1.2.4.102", &[])),
        ("short", "a/x", dicom("P", 2, &[0, 1, 2], EXPLICIT, &[])),
    ] {
        for class in ["a", "b"] {
            for at in 0..10 {
                let path = folder.path(&format!("{set}/{class}/{at}.dcm"));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                // One patient for all tells none apart.
                fs::write(path, dicom("anonymous", 2, &[0, 1, 2, at], EXPLICIT, &[])).unwrap();
            }
        }
        folder.write(&format!("{set}/{name}"), bytes);
    }
    assert_refused(
        &folder,
        &[
            case("a syntax", "inspect unknown", &["x.dcm: DICOM's transfer syntax 1.2.840.10008.1.2.4.102 (MPEG-4"]),
            case(
                "a short one",
                "train --data short --architecture resnet8 --width 4 --image-size 8 --epochs 1 --out n",
                &["short/a/x: a DICOM file that is cut off", "--skip-broken"],
            ),
        ],
    );
    fs::remove_file(folder.path("short/a/x")).unwrap();
    for at in 0..10 {
        for class in ["a", "b"] {
            let two = dicom("anonymous", 2, &[0, 1, 2, 3, 9, 8, 7, at], EXPLICIT, &[MULTI_FRAME]);
            folder.write(&format!("short/{class}/{at}.dcm"), two);
        }
    }
    let told = folder.done("inspect short");
    assert!(told.contains("every DICOM file has the same PatientID"), "{told}");
    assert!(told.contains("several frames (up to 2) the middle one"), "{told}");
}
