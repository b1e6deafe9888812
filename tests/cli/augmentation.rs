//! What happens to training images, and the mirrors in which images are looked at.

use crate::support::{Folder, assert_refused, case, floats, in_parts, last_phase};

const TRAIN: &str = "train --architecture resnet8 --width 4 --batch-size 8 --seed 3 --data data/target.npz";
const ALL: &str = "--flip --flip-vertical --shift 1 --quarter-turns --rotate 20 --crop 0.5 --jitter 0.2,0.2,0.1,0.05 \
                   --blur 1 --erase 0.3 --mixup 0.4 --cutmix 1";

/// The bits of an augmented run are those of any number of threads, and of one that was stopped.
#[test]
fn augmented_runs_are_repeated_bit_by_bit() {
    let folder = Folder::new();
    folder.data("data", "");
    folder.done(&format!("{TRAIN} {ALL} --epochs 2 --threads 1 --out a"));
    folder.done(&format!("{TRAIN} {ALL} --epochs 2 --threads 2 --out b"));
    assert!(floats(&folder, "a") == floats(&folder, "b"));
    in_parts(&folder, &format!("{TRAIN} {ALL} --sampling balanced --epochs 3 --out parts"));
    folder.done(&format!("{TRAIN} {ALL} --sampling balanced --epochs 3 --out whole"));
    assert!(floats(&folder, "parts") == floats(&folder, "whole"));
    let mut seen = vec![floats(&folder, "a")];
    for option in [
        "",
        "--crop 0.5",
        "--quarter-turns",
        "--flip-vertical",
        "--rotate 20",
        "--jitter 0.2,0,0,0",
        "--blur 1",
        "--erase 1",
        "--mixup 1",
        "--cutmix 1",
        "--sampling balanced",
    ] {
        folder.done(&format!("{TRAIN} {option} --epochs 1 --out one --force"));
        let found = floats(&folder, "one");
        assert!(!seen.contains(&found), "{option} has no effect");
        seen.push(found);
    }
    // The header tells, of what an older file did not know as little as it did.
    let header = last_phase(&folder, "a");
    assert_eq!(
        (&header["augmentation"]["crop"], &header["augmentation"]["mixup"]),
        (&0.5.into(), &0.4.into()),
        "{header}"
    );
    folder.done(&format!("{TRAIN} --flip --epochs 1 --out plain"));
    let header = last_phase(&folder, "plain");
    assert!(header["augmentation"].is_null() && header["flip"] == true, "{header}");
    assert_refused(
        &folder,
        &[
            case("crop", format!("{TRAIN} --crop 2 --out x"), &["--crop 2"]),
            case("jitter", format!("{TRAIN} --jitter 0.2,0.2 --out x"), &["give four numbers"]),
            case("erase", format!("{TRAIN} --erase -1 --out x"), &["--erase -1"]),
        ],
    );
}

#[cfg(feature = "emulator")]
#[test]
fn a_device_sees_the_same_images() {
    let folder = Folder::new();
    folder.data("data", "");
    for options in [ALL.to_string(), "--flip --rotate 20 --crop 0.4".into()] {
        for device in ["cpu", "emulator"] {
            let device = format!("--device {device} --out {device} --force");
            folder.done(&format!("{TRAIN} {options} --epochs 1 --optimizer sgd --learning-rate 1e-2 {device}"));
        }
        let [cpu, emulator] = ["cpu", "emulator"].map(|name| floats(&folder, name));
        for (name, values) in &cpu {
            let worst = values.iter().zip(&emulator[name]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
            assert!(worst <= 1e-3 * largest.max(1e-2), "{options}: {name} differs by {worst} of {largest}");
        }
    }
}

/// The mean over mirrors is the same of an image and of its mirror.
#[test]
fn mirrors_change_nothing_of_what_is_seen_in_all_of_them() {
    let folder = Folder::new();
    folder.data("data", "");
    folder.done(&format!("{TRAIN} --epochs 1 --out a"));
    let path = folder.path("data/target.npz");
    let data = medmerge::data::Dataset::load(&path).unwrap();
    let flips = medmerge::data::Flips { across: true, down: false };
    data.mirrored(medmerge::data::SplitName::Test, flips).save(&folder.path("mirrored.npz")).unwrap();
    let scores = |data: &str, options: &str| {
        folder.done(&format!("predict --model a --data {data} --out scores.csv --format medmnist --force {options}"));
        let text = folder.text("scores.csv");
        text.lines().flat_map(|line| line.split(',').skip(1)).map(|score| score.parse().unwrap()).collect::<Vec<f64>>()
    };
    let apart = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let [one, other] = ["data/target.npz", "mirrored.npz"];
    assert!(apart(scores(one, ""), scores(other, "")) > 1e-3);
    for flips in ["horizontal", "both"] {
        let options = format!("--test-flips {flips}");
        assert!(apart(scores(one, &options), scores(other, &options)) < 1e-6, "{flips}");
        let [plain, seen] = [String::new(), options].map(|options| scores(one, &options));
        assert!(apart(plain, seen) > 1e-3, "{flips}");
    }
    let plain = folder.json("eval --model a --data mirrored.npz --test-flips both")["metrics"].clone();
    assert_eq!(plain, folder.json("eval --model a --data data/target.npz --test-flips both")["metrics"]);
}
