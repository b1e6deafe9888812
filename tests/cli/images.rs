//! Images as they are published: folders, tables, archives, and what may be wrong with them.

use std::fs;
use std::io::Write;
use std::path::Path;

use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use medmerge::data::{Collecting, Dataset, SplitName};

use crate::support::{Folder, assert_refused, case, floats};

const TRAIN: &str = "train --architecture resnet8 --width 4 --epochs 1 --batch-size 8 --seed 3";

/// The images of `data/target.npz` as PNG files below `name`, and a table of them.
fn published(folder: &Folder, name: &str) -> Dataset {
    let data = Dataset::load(&folder.path("data/target.npz")).unwrap();
    let mut table = "\u{feff}image,diagnosis,set\r\n".to_string();
    fs::create_dir_all(folder.path(&format!("{name}/images"))).unwrap();
    let mut number = 0;
    for split in SplitName::ALL {
        let bytes = data.split(split).bytes().unwrap();
        let stride = data.height * data.width;
        for (pixels, label) in bytes.chunks(stride).zip(&data.split(split).labels) {
            let image = GrayImage::from_raw(data.width as u32, data.height as u32, pixels.to_vec()).unwrap();
            image.save(folder.path(&format!("{name}/images/{number:04}.png"))).unwrap();
            table += &format!("{number:04},{label},{split}\r\n");
            number += 1;
        }
    }
    folder.write(&format!("{name}/labels.csv"), table.as_bytes());
    data
}

fn tar_of(folder: &Folder, name: &str, out: &str) {
    let mut archive = tar::Builder::new(fs::File::create(folder.path(out)).unwrap());
    archive.append_dir_all("some/where", folder.path(name)).unwrap();
    archive.finish().unwrap();
}

fn zip_of(folder: &Folder, name: &str, out: &str) {
    let mut archive = zip::ZipWriter::new(fs::File::create(folder.path(out)).unwrap());
    let stored = zip::write::SimpleFileOptions::default();
    archive.start_file("labels.csv", stored).unwrap();
    archive.write_all(&folder.bytes(&format!("{name}/labels.csv"))).unwrap();
    for entry in fs::read_dir(folder.path(&format!("{name}/images"))).unwrap() {
        let entry = entry.unwrap();
        archive.start_file(format!("images/{}", entry.file_name().to_str().unwrap()), stored).unwrap();
        archive.write_all(&fs::read(entry.path()).unwrap()).unwrap();
    }
    archive.finish().unwrap();
}

/// However the same images are published, they are the same data set, and train the same network.
#[test]
fn a_folder_an_archive_and_an_npz_of_the_same_images_are_the_same() {
    let folder = Folder::with_sources();
    let expected = published(&folder, "png").sha256().unwrap();
    tar_of(&folder, "png", "png.tar");
    zip_of(&folder, "png", "png.zip");
    let text = folder.text("png/labels.csv").replace("image,", "path,").replace("\r\n", "\n");
    let listed: String =
        text.lines().skip(1).map(|line| format!("images/{}.png {}\n", &line[..4], &line[5..6])).collect();
    folder.write("png/list.txt", listed.as_bytes());
    let of = |path: &str, collecting: &Collecting| Dataset::open(&folder.path(path), collecting).unwrap().data;
    let collecting = Collecting { image_size: Some(16), ..Collecting::default() };
    for path in ["png", "png.tar", "png.zip", "png/labels.csv"] {
        assert_eq!(of(path, &collecting).sha256().unwrap(), expected, "{path}");
    }
    let list = of("png/list.txt", &collecting);
    assert_eq!(list.train.len() + list.val.len() + list.test.len(), 32 + 16 + 24);
    folder.done(&format!("{TRAIN} --data data/target.npz --out npz"));
    for (path, threads) in [("png", 1), ("png", 2), ("png.tar", 2), ("png.zip", 1)] {
        folder.done(&format!("{TRAIN} --data {path} --image-size 16 --threads {threads} --out ours --force"));
        assert!(floats(&folder, "ours") == floats(&folder, "npz"), "{path}, {threads} threads");
    }
    // The size of the images is that of the network's.
    let [npz, tar] = ["data/target.npz", "png.tar"].map(|path| folder.json(&format!("eval --model npz --data {path}")));
    assert_eq!(npz["metrics"], tar["metrics"]);
    let predicted = folder.done("predict --model npz --data png --out scores.csv");
    assert!(predicted.contains("scores.csv"), "{predicted}");
    let learn = "learn --models texture.safetensors shape.safetensors --anchor 0 --epochs 1 --batch-size 8";
    folder.done(&format!("{learn} --data png.zip --out merged"));
    folder.done(&format!("{learn} --data data/target.npz --out of-npz"));
    assert!(floats(&folder, "merged") == floats(&folder, "of-npz"));
}

/// A grey image of one colour in a folder of its class.
fn flat(folder: &Folder, name: &str, value: u8) {
    let path = folder.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_pixel(6, 5, image::Luma([value])).save(path).unwrap();
}

fn opened(folder: &Folder, path: &str, collecting: Collecting) -> (Dataset, Vec<String>) {
    let collected = Dataset::open(&folder.path(path), &Collecting { image_size: Some(8), ..collecting }).unwrap();
    (collected.data, collected.remarks)
}

#[test]
fn classes_and_splits_are_those_of_folders() {
    let folder = Folder::new();
    for (split, count) in [("training", 8), ("valid", 2), ("Test", 3)] {
        for class in ["nevus", "melanoma"] {
            (0..count).for_each(|i| flat(&folder, &format!("set/inner/{split}/{class}/{i}.png"), 10 * i as u8));
        }
    }
    flat(&folder, "set/inner/training/nevus/3_mask.png", 255);
    folder.write("set/inner/notes.csv", b"who,when\na,b\n");
    fs::create_dir_all(folder.path("set/.hidden/nevus")).unwrap();
    flat(&folder, "set/.hidden/nevus/1.png", 1);
    let (data, remarks) = opened(&folder, "set", Collecting::default());
    assert_eq!([data.train.len(), data.val.len(), data.test.len()], [16, 4, 6]);
    assert_eq!((data.classes, data.class_names.as_deref()), (2, Some(&["melanoma".to_string(), "nevus".into()][..])));
    assert_eq!((data.height, data.width, data.channels), (8, 8, 1));
    assert_eq!(remarks, ["1 masks are left out"]);
    // Without folders of splits they are drawn, and the same again.
    let (drawn, remarks) =
        opened(&folder, "set/inner/training", Collecting { shares: Some([0.25, 0.25]), ..Collecting::default() });
    assert_eq!([drawn.train.len(), drawn.val.len(), drawn.test.len()], [8, 4, 4]);
    assert!(remarks.iter().any(|remark| remark.contains("drawn by seed 0")), "{remarks:?}");
    let summary = folder.json("inspect set --image-size 8");
    assert_eq!(summary["summary"]["train"]["class_counts"], serde_json::json!([8, 8]));
}

#[test]
fn tables_of_challenges_are_read() {
    let folder = Folder::new();
    let mut one_hot = "image,MEL,NV,UNK\n".to_string();
    let mut more = "image,age,lesion_id\n".to_string();
    for index in 0..40 {
        flat(&folder, &format!("isic/ISIC_2019_Training_Input/ISIC_{index:07}.jpg"), index);
        let is_nevus = index % 4 != 0;
        one_hot += &format!("ISIC_{index:07},{}.0,{}.0,0.0\n", u8::from(!is_nevus), u8::from(is_nevus));
        // Four images of each lesion; of the last nobody knows.
        more +=
            &format!("ISIC_{index:07},40,{}\n", if index == 39 { String::new() } else { format!("L{}", index / 4) });
    }
    folder.write("isic/ISIC_2019_Training_GroundTruth.csv", one_hot.as_bytes());
    folder.write("isic/ISIC_2019_Training_Metadata.csv", more.as_bytes());
    let (data, remarks) = opened(&folder, "isic", Collecting::default());
    assert_eq!(data.class_names.as_deref(), Some(&["MEL".to_string(), "NV".into()][..]));
    assert!(remarks.iter().any(|remark| remark.contains("'lesion_id'")), "{remarks:?}");
    let lesions = |split: SplitName| -> Vec<u8> {
        let split = data.split(split);
        // A JPEG keeps a flat colour.
        let mut lesions: Vec<u8> = split.bytes().unwrap().chunks(64).map(|image| image[0] / 4).collect();
        lesions.dedup();
        lesions
    };
    let [train, val, test] = SplitName::ALL.map(lesions);
    assert!(!val.is_empty() && !test.is_empty());
    assert!(
        train.iter().all(|lesion| *lesion == 9 || !val.contains(lesion) && !test.contains(lesion)),
        "{train:?} {val:?} {test:?}"
    );
    assert!(val.iter().all(|lesion| *lesion == 9 || !test.contains(lesion)));
    let (free, _) = opened(&folder, "isic", Collecting { group_column: Some("none".into()), ..Collecting::default() });
    assert_eq!([free.val.len(), free.test.len()], [4, 8]);

    // Both eyes of a patient are in one split; grades count from 0.
    let mut levels = "image,level\n".to_string();
    for patient in 0..30 {
        for (side, level) in [("left", patient % 3), ("right", (patient + 1) % 3)] {
            flat(&folder, &format!("eyes/train/{patient}_{side}.jpeg"), patient);
            levels += &format!("{patient}_{side},{level}\n");
        }
    }
    folder.write("eyes/trainLabels.csv", levels.as_bytes());
    // A form to be filled in says nothing, however many rows it has.
    let form: String = (0..30).flat_map(|p| [0, 1, 2].map(|_| format!("{p}_left,0\n"))).collect();
    folder.write("eyes/sampleSubmission.csv", format!("image,level\n{form}").as_bytes());
    let (eyes, remarks) = opened(&folder, "eyes", Collecting::default());
    assert!(remarks.iter().any(|remark| remark.contains("both eyes")), "{remarks:?}");
    assert_eq!((eyes.classes, eyes.class_names.clone()), (3, None));
    for split in SplitName::ALL {
        let pixels: Vec<u8> = eyes.split(split).bytes().unwrap().chunks(64).map(|image| image[0]).collect();
        assert!(pixels.chunks(2).all(|pair| pair[0] == pair[1]), "{split}: {pixels:?}");
    }
    // Grades with a gap are classes, which is said.
    folder.write("eyes/trainLabels.csv", levels.replace(",2\n", ",4\n").as_bytes());
    let (gap, remarks) = opened(&folder, "eyes", Collecting::default());
    assert_eq!(gap.class_names.as_deref(), Some(&["0".to_string(), "1".into(), "4".into()][..]));
    assert!(remarks.iter().any(|remark| remark.contains("labels 0, 1, 4 are classes 0 to 2")), "{remarks:?}");
}

#[test]
fn images_without_labels_are_predicted() {
    let folder = Folder::with_sources();
    (0..3).for_each(|i| flat(&folder, &format!("new/{i}.png"), i));
    let scores = folder.done("predict --model shape.safetensors --data new --out scores.csv");
    assert!(scores.contains("3"), "{scores}");
    let text = folder.text("scores.csv");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[1]).collect::<Vec<_>>(), ["image", "0.png", "1.png", "2.png"]);
    assert_eq!(rows[0][..4], ["index", "image", "label", "predicted"]);
    assert_refused(
        &folder,
        &[
            case("to learn from", format!("{TRAIN} --data new --out x"), &["images without labels", "--labels"]),
            case("to measure", "eval --model shape.safetensors --data new", &["images without labels"]),
        ],
    );
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn what_is_wrong_is_named_in_one_line() {
    let folder = Folder::new();
    let set = |name: &str, odd: &[u8]| {
        for (class, value) in [("a", 10), ("b", 200)] {
            for split in ["train", "val", "test"] {
                (0..2).for_each(|i| flat(&folder, &format!("{name}/{split}/{class}/{i}.png"), value + i));
            }
        }
        folder.write(&format!("{name}/train/a/odd.png"), odd);
    };
    let whole = encoded(&DynamicImage::ImageRgb8(RgbImage::new(40, 30)), ImageFormat::Png);
    set("truncated", &whole[..whole.len() / 2]);
    set("empty", b"");
    set("text", b"not an image at all");
    // 30,000 × 30,000 pixels, as the header says.
    let mut bomb = whole.clone();
    bomb[16..20].copy_from_slice(&30_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&30_000u32.to_be_bytes());
    let check = crc(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&check.to_be_bytes());
    set("bomb", &bomb);
    // What a file is says its content.
    set("renamed", &encoded(&DynamicImage::ImageRgb8(RgbImage::new(40, 30)), ImageFormat::Jpeg));
    folder.done(&format!("{TRAIN} --data renamed --image-size 8 --out fine"));
    let train = |name: &str| format!("{TRAIN} --data {name} --image-size 8 --out x");
    let table = |name: &str, text: &str| {
        (0..4).for_each(|i| flat(&folder, &format!("{name}/{i}.png"), i));
        folder.write(&format!("{name}/table.csv"), text.as_bytes());
    };
    table("missing", "image,label\n0,a\n1,b\n2,a\n7,b\n");
    table("twice", "image,label\n0,a\n1,b\n0,b\n");
    fs::create_dir_all(folder.path("nothing")).unwrap();
    (0..2).for_each(|i| flat(&folder, &format!("loose/{i}/x.png"), i));
    flat(&folder, "loose/y.png", 1);
    assert_refused(
        &folder,
        &[
            case(
                "truncated",
                train("truncated"),
                &["truncated/train/a/odd.png: a damaged or unusual image", "--skip-broken"],
            ),
            case("empty", train("empty"), &["empty/train/a/odd.png: an empty file"]),
            case("text", train("text"), &["text/train/a/odd.png: no JPEG, PNG, TIFF, BMP, WebP or DICOM image"]),
            case("bomb", train("bomb"), &["bomb/train/a/odd.png: 30000×30000 pixels"]),
            case("no image", train("nothing"), &["no image in it"]),
            case(
                "a row without image",
                train("missing"),
                &["1 of 4 rows name images that are not there: 7", "--skip-broken"],
            ),
            case("two labels", train("twice"), &["images with two labels: 0"]),
            case("no folder", train("loose"), &["y.png is in no folder of a class"]),
            case("column", format!("{} --label-column dx", train("missing")), &["unknown column 'dx'"]),
            case(
                "group",
                format!("{} --group-column who --skip-broken", train("missing")),
                &["no table has a column 'who'"],
            ),
            case("shares", format!("{} --shares 0.5,0.6", train("empty")), &["--shares 0.5,0.6"]),
            case("size", format!("{TRAIN} --data empty --image-size 5000 --out x"), &["--image-size 5000"]),
            case(
                "for an npz",
                format!("{TRAIN} --data fine --image-size 8 --out x"),
                &["options for folders of images"],
            ),
        ],
    );
    // Broken ones are left out if that is asked for, and said.
    for (name, says) in [
        ("truncated", "1 broken images are left out: train/a/odd.png"),
        ("missing", "1 rows whose images are not there"),
    ] {
        let run = folder.run(&format!("{} --skip-broken --force", train(name)));
        let is_small = name == "missing";
        assert!(run.stderr.contains(says), "{}", run.stderr);
        assert!(is_small || run.code == Some(0), "{}", run.stderr);
    }
}

/// CRC-32, as PNG has it.
fn crc(bytes: &[u8]) -> u32 {
    let of_byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, of_byte)
}

/// A network is measured on images that it was not trained on, whoever asks.
#[test]
fn splits_that_were_drawn_are_those_of_the_training() {
    let folder = Folder::new();
    for class in ["a", "b"] {
        (0..40).for_each(|i| flat(&folder, &format!("set/{class}/{i}.png"), 3 * i + u8::from(class == "b")));
    }
    folder.done(&format!("{TRAIN} --data set --image-size 16 --split-seed 5 --shares 0.2,0.3 --out net"));
    let scores = |more: &str| {
        folder.done(&format!("predict --model net --data set {more} --logits --out scores.csv --force"));
        folder.text("scores.csv")
    };
    let remembered = scores("");
    assert_eq!(remembered.lines().count(), 1 + 24);
    assert_eq!(remembered, scores("--split-seed 5 --shares 0.2,0.3"));
    assert_ne!(remembered, scores("--split-seed 6"));
    assert_eq!(scores("--shares 0.1,0.2").lines().count(), 1 + 16);
    // Of other images it knows nothing.
    fs::rename(folder.path("set"), folder.path("other")).unwrap();
    folder.done("predict --model net --data other --logits --out scores.csv --force");
    assert_eq!(folder.text("scores.csv").lines().count(), 1 + 16);
}

/// Who measures may have some of the network's classes, in any order: their names tell.
#[test]
fn classes_are_known_by_their_names() {
    let folder = Folder::new();
    for (class, value) in [("a", 10), ("b", 120), ("c", 230)] {
        (0..20).for_each(|i| flat(&folder, &format!("set/{class}/{i}.png"), value + i));
        (0..6).for_each(|i| flat(&folder, &format!("outside/test/{class}/{i}.png"), value + 2 * i));
    }
    folder.done(&format!("{TRAIN} --data set --image-size 16 --out net"));
    let counts = |data: &str| {
        let metrics = folder.json(&format!("eval --model net --data {data} --bootstrap 0"))["metrics"].clone();
        let classes = metrics["per_class"].as_array().unwrap().clone();
        (classes.iter().map(|class| class["support"].as_u64().unwrap()).collect::<Vec<_>>(), metrics)
    };
    let (all, whole) = counts("outside");
    assert_eq!(all, [6, 6, 6]);
    fs::remove_dir_all(folder.path("outside/test/a")).unwrap();
    let (some, part) = counts("outside");
    assert_eq!(some, [0, 6, 6]);
    assert_eq!(part["confusion"][2], whole["confusion"][2]);
    // Numbers of a table, whose order is another.
    let rows = |class: &str, number: u32| {
        (0..6).map(|i| format!("test/{class}/{i}.png,{class},{number}\n")).collect::<String>()
    };
    folder.write("outside/table.csv", format!("path,class,label\n{}{}", rows("b", 1), rows("c", 0)).as_bytes());
    assert_eq!(counts("outside").1, part);
    fs::rename(folder.path("outside/test/c"), folder.path("outside/test/d")).unwrap();
    fs::remove_file(folder.path("outside/table.csv")).unwrap();
    assert_refused(
        &folder,
        &[case("another", "eval --model net --data outside", &["2 classes, and the network tells 3 apart", "b, d"])],
    );
}

/// Splits that were drawn once are a table from then on.
#[test]
fn splits_are_written_and_read_again() {
    let folder = Folder::new();
    for class in ["a", "b"] {
        (0..20).for_each(|i| flat(&folder, &format!("set/{class}/{i}.png"), 5 * i + u8::from(class == "b")));
    }
    folder.done("inspect set --image-size 8 --split-seed 9 --write-splits splits.csv");
    let (drawn, _) = opened(&folder, "set", Collecting { split_seed: Some(9), ..Collecting::default() });
    let again = Collecting { labels: Some(folder.path("splits.csv")), ..Collecting::default() };
    let (read, remarks) = opened(&folder, "set", again);
    assert!(!remarks.iter().any(|remark| remark.contains("drawn")), "{remarks:?}");
    assert_eq!(read.sha256().unwrap(), drawn.sha256().unwrap());
    assert_eq!(read.class_names, drawn.class_names);
    let (other, _) = opened(&folder, "set", Collecting::default());
    assert_ne!(other.sha256().unwrap(), drawn.sha256().unwrap());
    read.save(&folder.path("x.npz")).unwrap();
    assert_refused(
        &folder,
        &[
            case("there", "inspect set --write-splits splits.csv", &["splits.csv already exists"]),
            case("has them", "inspect x.npz --write-splits y.csv", &["it has its splits already"]),
        ],
    );
}

/// What the examples write is what was read.
#[test]
fn a_collection_is_saved_as_an_npz() {
    let folder = Folder::with_sources();
    let data = published(&folder, "png");
    let (read, _) = opened(&folder, "png", Collecting::default());
    read.save(&folder.path("saved.npz")).unwrap();
    let saved = Dataset::load(Path::new(&folder.path("saved.npz"))).unwrap();
    assert_eq!(saved.sha256().unwrap(), read.sha256().unwrap());
    assert_eq!(saved.test.labels, data.test.labels);
}

/// CheXpert's table of findings, and MURA's folders.
#[test]
fn patients_and_findings_are_those_of_folders() {
    let folder = Folder::new();
    let mut table = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pleural Effusion\n".to_string();
    for patient in 0..20 {
        for view in 1..=2 {
            let name = format!("chest-small/train/patient{patient:05}/study1/view{view}_frontal.png");
            flat(&folder, &name, patient);
            let finding = |of: u8| ["", "0.0", "1.0", "-1.0"][usize::from(patient / of % 4)];
            table += &format!("{name},Female,6{view},Frontal,AP,{},{},{}\n", finding(5), finding(1), finding(2));
        }
    }
    folder.write("chest-small/train.csv", table.as_bytes());
    let (data, remarks) = opened(&folder, "chest-small", Collecting::default());
    assert!(
        ["it looks like CheXpert", "groups are patients, by their folders"]
            .iter()
            .all(|says| { remarks.iter().any(|remark| remark.contains(says)) }),
        "{remarks:?}"
    );
    assert_eq!((data.task.name(), data.classes), ("multi-label", 3));
    // Of patient 6 no finding is "0.0", edema "1.0", and effusion "-1.0".
    let patients = |name: SplitName| -> Vec<(String, u32)> {
        let split = data.split(name);
        let of = |index: usize| split.images().name(index).unwrap().split('/').nth(1).unwrap().to_string();
        (0..split.len()).map(|index| (of(index), split.labels[index])).collect()
    };
    let all: Vec<Vec<(String, u32)>> = SplitName::ALL.map(patients).to_vec();
    assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 40);
    let sixth: Vec<u32> =
        all.iter().flatten().filter(|(name, _)| name.ends_with("00006")).map(|(_, set)| *set).collect();
    assert_eq!(sixth, [0b010, 0b010]);
    for (index, split) in all.iter().enumerate() {
        for (name, _) in split {
            assert!(all.iter().enumerate().all(|(other, rest)| other == index || rest.iter().all(|(n, _)| n != name)));
        }
    }

    for patient in 0..12 {
        for (study, says) in [(1, "negative"), (2, "positive")] {
            let split = if patient < 8 { "train" } else { "valid" };
            flat(
                &folder,
                &format!("bones/{split}/XR_ELBOW/patient{patient:05}/study{study}_{says}/image1.png"),
                patient,
            );
            flat(
                &folder,
                &format!("bones/{split}/XR_WRIST/patient{patient:05}/study{study}_{says}/image1.png"),
                patient,
            );
        }
    }
    let (data, remarks) = opened(&folder, "bones", Collecting::default());
    assert!(remarks.iter().any(|remark| remark.contains("it looks like MURA")), "{remarks:?}");
    assert_eq!(data.class_names.as_deref().unwrap(), ["negative", "positive"]);
    assert_eq!((data.val.len(), data.class_counts(SplitName::Val)), (16, vec![8, 8]));
    assert_eq!(data.train.len() + data.test.len(), 32);
}
