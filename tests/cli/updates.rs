//! Options of how updates are made: what they do, that they continue, and what they refuse.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, in_parts, last_phase};

const TUNE: &str = "train --from shape.safetensors --data data/target.npz --batch-size 8 --seed 3 --epochs 4";

/// Ways to make updates, and what a header says of each.
const WAYS: [(&str, &[(&str, &str)]); 7] = [
    ("--clip-norm 0.1", &[("clip_norm", "0.1")]),
    ("--optimizer sgd --nesterov", &[("nesterov", "true")]),
    ("--weight-decay 1 --decay-of weights", &[("decay_of", "\"weights\"")]),
    ("--accumulate 3", &[("accumulate", "3")]),
    ("--layer-decay 0.25", &[("layer_decay", "0.25")]),
    ("--head-learning-rate 0.1", &[("head_learning_rate", "0.1")]),
    ("--accumulate 2 --clip-norm 1 --optimizer sgd --nesterov", &[("accumulate", "2"), ("clip_norm", "1.0")]),
];

#[test]
fn updates_are_made_as_asked_told_and_continued() {
    let folder = Folder::with_sources();
    folder.done(&format!("{TUNE} --out usual"));
    let phase = last_phase(&folder, "usual");
    let mut written = vec![floats(&folder, "usual")];
    for (index, (way, told)) in WAYS.into_iter().enumerate() {
        let tune = format!("{TUNE} {way}");
        folder.done(&format!("{tune} --out whole --force"));
        in_parts(&folder, &format!("{tune} --out parts{index}"));
        assert_eq!(folder.bytes(&format!("parts{index}")), folder.bytes("whole"), "{way}");
        let numbers = floats(&folder, "whole");
        assert!(!written.contains(&numbers), "{way}");
        written.push(numbers);
        for &(key, value) in told {
            assert_eq!(last_phase(&folder, "whole")[key], serde_json::from_str::<Value>(value).unwrap(), "{way}");
            assert_eq!(phase[key], Value::Null, "{key}");
        }
    }
}

/// What is asked for as it would be anyway gives the bits that it gives anyway.
#[test]
fn what_is_usual_changes_nothing() {
    let folder = Folder::with_sources();
    folder.done(&format!("{TUNE} --out usual"));
    for way in ["--accumulate 1", "--layer-decay 1", "--decay-of all", "--clip-norm 1e9", "--head-learning-rate 1e-3"] {
        folder.done(&format!("{TUNE} {way} --out same --force"));
        assert!(floats(&folder, "same") == floats(&folder, "usual"), "{way}");
    }
}

#[test]
fn learning_makes_updates_in_the_same_ways() {
    let folder = Folder::with_sources();
    let learn = "learn --models texture.safetensors shape.safetensors --anchor 0 --data data/target.npz --batch-size 8 --epochs 3";
    folder.done(&format!("{learn} --out usual"));
    for (index, way) in ["--clip-norm 0.01", "--optimizer sgd --nesterov --accumulate 3"].into_iter().enumerate() {
        folder.done(&format!("{learn} {way} --out whole --force"));
        assert_ne!(folder.bytes("whole.weights.safetensors"), folder.bytes("usual.weights.safetensors"), "{way}");
        in_parts(&folder, &format!("{learn} {way} --out parts{index}"));
        assert_eq!(folder.bytes(&format!("parts{index}")), folder.bytes("whole"), "{way}");
    }
}

/// With a patience of 0 rates fall behind each epoch that is not better, of which the log tells.
#[test]
fn rates_fall_on_plateaus() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --epochs 8 --schedule plateau --plateau-patience 0 --learning-rate 0.01")
        .replace("--epochs 4 ", "");
    for by in ["loss", "accuracy"] {
        let tune = format!("{tune} --select-by {by}");
        let told = folder.json(&format!("{tune} --out whole --force"));
        let epochs = told["epochs"].as_array().unwrap();
        let (mut best, mut rate, mut fell) = (f64::NEG_INFINITY, 0.01, 0);
        for epoch in epochs {
            assert!((epoch["learning_rate"].as_f64().unwrap() / rate - 1.0).abs() < 1e-12, "{by}: {epochs:#?}");
            let figure = epoch[format!("val_{by}")].as_f64().unwrap() * if by == "loss" { -1.0 } else { 1.0 };
            if figure > best {
                best = figure;
            } else {
                (rate, fell) = (rate * 0.1, fell + 1);
            }
        }
        assert!(epochs.len() == 8 && fell > 0, "{by}: {epochs:#?}");
        let phase = last_phase(&folder, "whole");
        assert_eq!((&phase["plateau_patience"], &phase["select_by"]), (&Value::from(0), &by.into()));
        in_parts(&folder, &format!("{tune} --out parts-{by}"));
        assert_eq!(folder.bytes(&format!("parts-{by}")), folder.bytes("whole"));
    }
}

/// The epoch that is kept is the best by the figure, and what `eval` measures of it is what was told.
#[test]
fn the_best_epoch_is_kept_by_the_figure_that_is_asked_for() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --learning-rate 0.02 --schedule constant");
    for (by, name) in [
        ("accuracy", "accuracy"),
        ("balanced-accuracy", "balanced_accuracy"),
        ("macro-f1", "macro_f1"),
        ("auc", "auc"),
        ("loss", "loss"),
    ] {
        let told = folder.json(&format!("{tune} --select-by {by} --out net --force"));
        let figures =
            told["epochs"].as_array().unwrap().iter().map(|epoch| epoch[format!("val_{name}")].as_f64().unwrap());
        let figures: Vec<f64> = figures.map(|figure| if by == "loss" { -figure } else { figure }).collect();
        let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let best = 1 + figures.iter().position(|&figure| figure == most).unwrap();
        let phase = last_phase(&folder, "net");
        assert_eq!(phase["epoch"], Value::from(best), "{by}: {figures:?}");
        assert_eq!(phase["select_by"], if by == "macro-f1" { Value::Null } else { by.into() });
        if by != "loss" {
            let eval = folder.json("eval --model net --data data/target.npz --split val");
            assert_eq!(eval["metrics"][name].as_f64(), Some(most), "{by}");
        }
    }
    // Patience goes by it too.
    let told = folder.done(
        &format!("{tune} --epochs 40 --select-by loss --patience 1 --out net --force").replace("--epochs 4 ", ""),
    );
    assert!(told.contains("best validation loss") && last_phase(&folder, "net")["stopped_early"] == true, "{told}");
    folder.data("single", "--val 1");
    let single = tune.replace("data/target.npz", "single/target.npz");
    let says = &["a single class, which has no AUC"];
    assert_refused(&folder, &[case("one class", format!("{single} --select-by auc --out x"), says)]);
}

/// The content of each record of a file of events.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut records) = (bytes, Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        records.push(behind[4..4 + length].to_vec());
        rest = &behind[4 + length + 4..];
    }
    records
}

#[test]
fn epochs_are_told_as_lines_and_as_events_also_of_a_run_in_parts() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --out parts --metrics parts.jsonl --tensorboard runs");
    in_parts(&folder, &tune);
    let told = folder.json(&format!("{TUNE} --out whole --metrics whole.jsonl"));
    let lines = |name: &str| -> Vec<Value> {
        let parsed = folder.text(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        let without = |mut line: Value| {
            line.as_object_mut().unwrap().remove("seconds").unwrap();
            line
        };
        parsed.into_iter().map(without).collect()
    };
    assert_eq!(lines("parts.jsonl"), lines("whole.jsonl"));
    let epochs = told["epochs"].as_array().unwrap();
    assert_eq!((lines("whole.jsonl").len(), epochs.len()), (4, 4));
    for (line, epoch) in lines("whole.jsonl").iter().zip(epochs) {
        assert_eq!(line["phase"], "training");
        for key in ["epoch", "train_loss", "learning_rate", "val_accuracy", "val_macro_f1", "val_auc", "val_loss"] {
            assert_eq!(line[key], epoch[key], "{key}");
        }
    }
    let events = records(&folder.bytes("runs/events.out.tfevents.parts"));
    assert_eq!(events.len(), 5, "the version, and four epochs");
    for (event, epoch) in events[1..].iter().zip(epochs) {
        for (tag, key) in
            [("train/loss", "train_loss"), ("val/auc", "val_auc"), ("train/learning_rate", "learning_rate")]
        {
            // A tag, then the field of its number.
            let number = (epoch[key].as_f64().unwrap() as f32).to_le_bytes();
            let expected = [tag.as_bytes(), &[0x15], &number].concat();
            assert!(event.windows(expected.len()).any(|window| window == expected), "{key}");
        }
    }
    folder.write("file", "theirs");
    let whole = format!("{TUNE} --out x");
    assert_refused(
        &folder,
        &[
            case("events there", format!("{TUNE} --out x/parts.safetensors --tensorboard runs"), &["x/parts"]),
            case("a file", format!("{whole} --tensorboard file"), &["file is no folder"]),
            case("nowhere", format!("{whole} --tensorboard no/runs"), &["no/runs is no folder"]),
            case("lines there", format!("{whole} --metrics whole.jsonl"), &["whole.jsonl already exists"]),
            case("one file", format!("{whole} --metrics x"), &["--metrics name the same file"]),
        ],
    );
}

/// As if it had been asked for at once, whether it had ended before or not; and only over its own result.
#[test]
fn a_run_that_has_ended_goes_on_with_more_epochs() {
    let folder = Folder::with_sources();
    let tune = TUNE.replace(" --epochs 4", "");
    for (index, how) in
        ["--schedule constant --ema 0.5", "--schedule plateau --plateau-patience 0 --warmup 1"].into_iter().enumerate()
    {
        let tune = format!("{tune} {how}");
        folder.done(&format!("{tune} --epochs 6 --out whole --force"));
        let parts = format!("{tune} --resume --keep-state --out parts{index}");
        folder.done(&format!("{parts} --epochs 2"));
        let first = folder.bytes(&format!("parts{index}"));
        // Nothing is left to do, and it is done again.
        folder.done(&format!("{parts} --epochs 2"));
        assert_eq!(folder.bytes(&format!("parts{index}")), first, "{how}");
        folder.done(&format!("{parts} --epochs 4"));
        folder.done(&format!("{parts} --epochs 6").replace(" --keep-state", ""));
        assert_eq!(folder.bytes(&format!("parts{index}")), folder.bytes("whole"), "{how}");
        assert!(!folder.path(&format!("parts{index}.resume.safetensors")).exists());
    }
    let tune = format!("{tune} --schedule constant");
    folder.done(&format!("{tune} --epochs 2 --resume --keep-state --out net"));
    let more = format!("{tune} --epochs 3 --resume --keep-state --out net");
    folder.write("theirs", "theirs");
    assert_refused(
        &folder,
        &[
            case("fewer", more.replace("--epochs 3", "--epochs 1"), &["--epochs 1, and 2 are done"]),
            case("another run", more.replace("--seed 3", "--seed 4"), &["the state of another run"]),
            case("cosine", more.replace("constant", "cosine"), &["--keep-state with a schedule that ends"]),
            case("a file", format!("{more} --metrics theirs"), &["theirs already exists"]),
            case("no state", more.replace("--resume ", ""), &["--resume"]),
        ],
    );
    // Another network in the place of its result.
    std::fs::copy(folder.path("whole"), folder.path("net")).unwrap();
    assert_refused(&folder, &[case("another's", more, &["net already exists"])]);
}

#[test]
fn updates_that_make_no_sense() {
    let folder = Folder::with_sources();
    let tune = |way: &str| format!("{TUNE} {way} --out x");
    assert_refused(
        &folder,
        &[
            case("no batch", tune("--accumulate 0"), &["--accumulate 0"]),
            case("no norm", tune("--clip-norm 0"), &["--clip-norm 0"]),
            case("norm below 0", tune("--clip-norm -1"), &["--clip-norm -1"]),
            case("norm NaN", tune("--clip-norm nan"), &["--clip-norm NaN"]),
            case("AdamW with Nesterov's", tune("--nesterov"), &["--nesterov without --optimizer sgd"]),
            case("no rate", tune("--layer-decay 0"), &["--layer-decay 0"]),
            case("rates that grow", tune("--layer-decay 1.5"), &["--layer-decay 1.5"]),
            case("a rate of the head below 0", tune("--head-learning-rate -1"), &["--head-learning-rate -1"]),
            case("no plateau", tune("--plateau-patience 2"), &["--plateau-patience without --schedule plateau"]),
            case("no trunk", tune("--layer-decay 0.5 --head-only"), &["cannot be used with"]),
            case("decay of what", tune("--decay-of norms"), &["all, weights"]),
        ],
    );
}
