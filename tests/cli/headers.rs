//! What a network's file says of itself, and that commands go by it.

use std::path::Path;

use medmerge::data::Dataset;
use serde_json::Value;

use crate::support::{Folder, Run, assert_refused, case, floats, scores};

const SHORT: &str = "--epochs 1 --batch-size 16";
const TWO: &str = "--models texture.safetensors shape.safetensors";

/// A folder with what the program wrote before headers told more than method and sources, under the same names.
fn with_old_files() -> Folder {
    let folder = Folder::new();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/before");
    for entry in std::fs::read_dir(files).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    folder
}

/// A key of a file's header, parsed.
fn header(folder: &Folder, file: &str, key: &str) -> Value {
    let metadata = folder.json(&format!("inspect {file}"))["metadata"].clone();
    match metadata[format!("medmerge.{key}")].as_str() {
        Some(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        None => Value::Null,
    }
}

#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    let far = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far <= tolerance, "{far:.1e} off");
}

/// Runs what has to succeed, and returns what it says on stderr too.
#[track_caller]
fn done(folder: &Folder, arguments: &str) -> Run {
    let run = folder.run(arguments);
    assert_eq!(run.code, Some(0), "medmerge {arguments}\n{}", run.stderr);
    run
}

#[test]
fn files_from_before_headers_said_more_still_load() {
    let folder = with_old_files();
    folder.done("predict --model merged.safetensors --data target.npz --logits --out again.csv");
    // The processor decides how sums are grouped.
    assert_near(&scores(&folder.text("again.csv")).concat(), &scores(&folder.text("merged.csv")).concat(), 1e-4);
    let merge = done(&folder, &format!("merge {TWO} --weights merged.weights.safetensors --out again.safetensors"));
    assert!(!merge.stderr.contains("stem"), "the header names it: {}", merge.stderr);
    for (name, values) in floats(&folder, "merged.safetensors") {
        assert_near(&floats(&folder, "again.safetensors")[&name], &values, 1e-6);
    }
    let metrics = folder.json("eval --model texture.safetensors --data texture.npz");
    assert!(metrics["metrics"]["accuracy"].is_f64());
    folder.done(&format!("train --from merged.safetensors --data target.npz {SHORT} --out tuned.safetensors"));
    folder.done(&format!("learn {TWO} --data target.npz {SHORT} --anchor 0 --out new.safetensors"));
    assert!(folder.done("inspect merged.weights.safetensors").contains("layer1.0.conv1"));
}

#[test]
fn a_header_says_how_a_network_was_trained_and_on_what() {
    let folder = Folder::with_sources();
    let dataset = |name: &str| Dataset::load(&folder.path(&format!("data/{name}.npz"))).unwrap();
    folder.done(&format!(
        "learn {TWO} --data data/target.npz --epochs 2 --batch-size 16 --anchor 0 --merge-learning-rate 0.02 --out merged.safetensors"
    ));
    folder.done(
        "train --from merged.safetensors --data data/target.npz --epochs 3 --batch-size 8 --learning-rate 0.004 \
         --schedule constant --optimizer sgd --seed 5 --mean 0.25 --std 0.75 --out tuned.safetensors",
    );
    let of = |key: &str| header(&folder, "tuned.safetensors", key);
    assert_eq!(of("normalisation"), serde_json::json!({"mean": [0.25], "std": [0.75]}));
    assert_eq!(of("image_size"), serde_json::json!([16, 16]));
    assert_eq!(of("data")["name"], "target.npz");
    assert_eq!(of("data")["sha256"], dataset("target").sha256().unwrap());
    assert_eq!(of("class_names"), Value::Null);
    let phases = of("training");
    let [learned, tuned] = phases.as_array().unwrap().as_slice() else { panic!("{phases}") };
    assert_eq!(
        (&learned["kind"], &learned["epochs"], &learned["merge_learning_rate"]),
        (&Value::from("merge weights"), &Value::from(2), &Value::from(0.02))
    );
    for (key, value) in [
        ("kind", Value::from("fine-tune")),
        ("epochs", 3.into()),
        ("epochs_done", 3.into()),
        ("stopped_early", false.into()),
        ("learning_rate", 0.004.into()),
        ("schedule", "constant".into()),
        ("optimizer", "sgd".into()),
        ("batch_size", 8.into()),
        ("seed", 5.into()),
    ] {
        assert_eq!(tuned[key], value, "{key}");
    }
    assert!((1..=3).contains(&tuned["epoch"].as_u64().unwrap()));
    // Merge weights say the same as the network that was folded from them.
    for key in ["normalisation", "image_size", "data", "training"] {
        let [weights, merged] = ["merged.weights.safetensors", "merged.safetensors"].map(|f| header(&folder, f, key));
        assert_eq!(weights, merged, "{key}");
        assert_ne!(weights, Value::Null, "{key}");
    }
    let text = folder.done("inspect tuned.safetensors");
    assert!(text.contains("fine-tune: 3 of 3 epochs"), "{text}");
}

#[test]
fn a_network_is_used_with_the_normalisation_that_it_was_trained_with() {
    let folder = Folder::with_sources();
    folder.source("odd", "texture", "--architecture resnet8 --width 4 --mean 0.2 --std 0.05");
    let logits = |more: &str| {
        let run = done(
            &folder,
            &format!("predict --model odd.safetensors --data data/texture.npz --logits --force --out o {more}"),
        );
        (folder.text("o"), run.stderr)
    };
    let ((by_header, said), (asked, _), (other, said_of_other)) =
        (logits(""), logits("--mean 0.2 --std 0.05"), logits("--mean 0.5"));
    assert_eq!(by_header, asked);
    assert_ne!(by_header, other);
    assert!(!said.contains("--mean"), "{said}");
    let told = "odd.safetensors was trained with --mean 0.2 --std 0.05; here --mean 0.5 --std 0.05";
    assert!(said_of_other.contains(told), "{said_of_other}");
    let [by_header, asked] = ["", "--mean 0.2 --std 0.05"].map(|more| {
        folder.json(&format!("eval --model odd.safetensors --data data/texture.npz {more}"))["metrics"].clone()
    });
    assert_eq!(by_header, asked);

    let tuned = done(&folder, &format!("train --from odd.safetensors --data data/texture.npz {SHORT} --out tuned"));
    assert!(!tuned.stderr.contains("--mean"), "{}", tuned.stderr);
    let odd = header(&folder, "odd.safetensors", "normalisation");
    assert_eq!(header(&folder, "tuned", "normalisation"), odd);

    // Two sources that agree, and two that do not.
    folder.source("odd2", "shape", "--architecture resnet8 --width 4 --mean 0.2 --std 0.05");
    let odd_two = "--models odd.safetensors odd2.safetensors";
    folder.done(&format!("learn {odd_two} --data data/target.npz {SHORT} --anchor 0 --out learned"));
    assert_eq!(header(&folder, "learned", "normalisation"), odd);
    folder.done(&format!("merge {odd_two} --coefficients 0.5,0.5 --data data/texture.npz --out average"));
    assert_eq!(header(&folder, "average", "normalisation"), odd);
    folder.done(&format!(
        "merge {odd_two} --coefficients 0.5,0.5 --data data/texture.npz --mean 0.5 --std 0.5 --out other-average"
    ));
    assert_ne!(floats(&folder, "average")["bn1.running_mean"], floats(&folder, "other-average")["bn1.running_mean"]);
    let mixed = "--models odd.safetensors shape.safetensors";
    let differ = &["odd.safetensors was trained with --mean 0.2 --std 0.05", "say which to use"];
    assert_refused(
        &folder,
        &[
            case("learn", format!("learn {mixed} --data data/target.npz --anchor 0 --out o2"), differ),
            case("merge", format!("merge {mixed} --coefficients 1,0 --data data/texture.npz --out o2"), differ),
            case(
                "with weights",
                format!("merge {odd_two} --weights learned.weights.safetensors --mean 0.5 --out o2"),
                &["--mean and --std have no effect with --weights"],
            ),
        ],
    );
    let told = done(
        &folder,
        &format!("learn {mixed} --data data/target.npz {SHORT} --anchor 0 --mean 0.5 --std 0.5 --out o2"),
    );
    assert!(told.stderr.contains("odd.safetensors was trained with"), "{}", told.stderr);
    let merged = done(&folder, &format!("merge {mixed} --coefficients 1,0 --out o3"));
    assert!(merged.stderr.contains("the header says no --mean and --std"), "{}", merged.stderr);
    assert_eq!(header(&folder, "o3", "normalisation"), Value::Null);
}

#[test]
fn images_of_another_size_are_told() {
    let folder = Folder::with_sources();
    folder.done("synth --out large --image-size 20 --source-train 16 --target-train 16 --val 4 --test 8");
    let said =
        |data: &str| done(&folder, &format!("eval --model texture.safetensors --data {data}/texture.npz")).stderr;
    assert!(said("large").contains("was trained on images of 16×16 pixels; these are 20×20"), "{}", said("large"));
    assert!(!said("data").contains("pixels"));
}

#[test]
fn names_of_classes_travel_with_the_network_and_must_mean_the_same() {
    let folder = Folder::with_sources();
    let named = |to: &str, names: [&str; 4]| {
        let mut data = Dataset::load(&folder.path("data/texture.npz")).unwrap();
        data.class_names = Some(names.map(String::from).to_vec());
        data.save(&folder.path(to)).unwrap();
    };
    named("named.npz", ["ring", "disc", "star", "bar"]);
    named("swapped.npz", ["disc", "ring", "star", "bar"]);
    folder.done(&format!("train --data named.npz --architecture resnet8 --width 4 {SHORT} --out named"));
    assert_eq!(header(&folder, "named", "class_names"), serde_json::json!(["ring", "disc", "star", "bar"]));
    let text = folder.done("eval --model named --data named.npz");
    assert!(text.contains("ring") && text.contains("bar"), "{text}");
    folder.done("eval --model named --data data/texture.npz");
    let says = &["its class 0 is 'ring', and that of swapped.npz is 'disc'"];
    assert_refused(
        &folder,
        &[
            case("eval", "eval --model named --data swapped.npz", says),
            case("kept head", "train --from named --data swapped.npz --out o", says),
        ],
    );
    folder.done(&format!("train --from named --new-head --data swapped.npz {SHORT} --out o"));
}

#[test]
fn an_interrupted_run_leaves_a_file_that_says_so() {
    let folder = Folder::with_sources();
    let train = "train --from texture.safetensors --data data/texture.npz --epochs 1000000 -v --out out";
    let run = folder.start_until(train, "epoch 2,").interrupt();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let phases = header(&folder, "out", "training");
    let last = phases.as_array().unwrap().last().unwrap();
    let (done_epochs, epoch) = (last["epochs_done"].as_u64().unwrap(), last["epoch"].as_u64().unwrap());
    assert!(epoch >= 1 && done_epochs == epoch && last["epochs"] == 1_000_000, "{last}");
    let said = done(&folder, "eval --model out --data data/texture.npz").stderr;
    let expected = format!("out is of an unfinished run: {done_epochs} of 1000000 epochs");
    assert!(said.contains(&expected), "{said}");
    assert!(folder.done("inspect out").contains("unfinished"));
}

#[test]
fn a_run_that_stops_early_says_so_and_is_finished() {
    let folder = Folder::with_sources();
    // Nothing moves, so nothing improves after the first epoch; the statistics of a linear probe stay too.
    let how = "--head-only --learning-rate 0 --weight-decay 0 --patience 2 --epochs 50";
    let run = done(&folder, &format!("train --from texture.safetensors --data data/texture.npz {how} --out out"));
    let told = "stopped after epoch 3 of 50: no better macro F1 on the validation split for 2 epochs";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    let phases = header(&folder, "out", "training");
    let last = phases.as_array().unwrap().last().unwrap();
    assert_eq!((&last["epochs_done"], &last["stopped_early"], &last["epoch"]), (&3.into(), &true.into(), &1.into()));
    assert!(!done(&folder, "eval --model out --data data/texture.npz").stderr.contains("unfinished"));

    folder.done("synth --out noval --image-size 16 --source-train 16 --target-train 16 --val 0 --test 4");
    let run = done(
        &folder,
        &format!("train --from texture.safetensors --data noval/texture.npz {SHORT} --patience 1 --out o"),
    );
    assert!(run.stderr.contains("--patience has no effect, because the validation split is empty"), "{}", run.stderr);
}

#[test]
fn a_stem_that_a_file_leaves_open_is_told_and_can_be_named() {
    let folder = Folder::with_sources();
    // As another program writes it.
    folder.rewrite("texture.safetensors", "foreign.safetensors", |file| file.metadata.clear());
    let logits = |model: &str, more: &str| {
        let run =
            done(&folder, &format!("predict --model {model} --data data/texture.npz --logits --force --out o {more}"));
        (folder.text("o"), run.stderr)
    };
    let ((ours, said_of_ours), (assumed, said)) =
        (logits("texture.safetensors", ""), logits("foreign.safetensors", ""));
    assert_eq!(ours, assumed);
    assert!(!said_of_ours.contains("stem"), "{said_of_ours}");
    assert!(said.contains("foreign.safetensors does not say its stem; 3x3 is taken"), "{said}");
    let normalised = "foreign.safetensors does not say how its images were normalised; --mean 0.5 --std 0.5 is taken";
    assert!(said.contains(normalised), "{said}");
    let mut all = vec![assumed];
    for stem in ["3x3-pool", "3x3-stride2", "3x3-stride2-pool"] {
        let (logits, said) = logits("foreign.safetensors", &format!("--stem {stem}"));
        assert!(!said.contains("stem"), "{said}");
        assert!(!all.contains(&logits), "{stem} computes what another does");
        all.push(logits);
    }
    let (otherwise, said) = logits("texture.safetensors", "--stem 3x3-stride2");
    assert_eq!(otherwise, all[2]);
    assert!(said.contains("texture.safetensors says its stem is 3x3; here it is 3x3-stride2"), "{said}");
    let text = folder.done("inspect foreign.safetensors");
    assert!(text.contains("stem 3x3") && text.contains("--stem"), "{text}");
    assert_eq!(folder.json("inspect foreign.safetensors")["stem_is_assumed"], true);
    assert_eq!(folder.json("inspect texture.safetensors")["stem_is_assumed"], false);

    // What was trained with another stem remembers it, through learning and merging.
    for name in ["texture", "shape"] {
        folder.source(&format!("{name}2"), name, "--architecture resnet8 --width 4 --stem 3x3-stride2");
    }
    let two = "--models texture2.safetensors shape2.safetensors";
    folder.done(&format!("learn {two} --data data/target.npz {SHORT} --anchor 0 --out merged.safetensors"));
    folder.done(&format!("merge {two} --weights merged.weights.safetensors --out again"));
    assert!(folder.bytes("again") == folder.bytes("merged.safetensors"));
    assert_eq!(folder.json("inspect again")["architecture"]["stem"], "3x3-stride2");
    // Sources that do not say it, with weights that do.
    let says = &["its stem is 3x3-stride2, and that of texture.safetensors is 3x3", "--stem"];
    let wrong_window = &["a stem of 7x7 was asked for, and conv1.weight is 3×3"];
    for (to, blocks, widths, stem) in [
        ("contradicts", "[1,1,2]", "[4,8,16]", "3x3"),
        ("no-widths", "[1,1,1]", "[]", "3x3"),
        ("large-stem", "[1,1,1]", "[4,8,16]", "7x7"),
    ] {
        folder.rewrite("texture.safetensors", to, |file| {
            let architecture = format!(r#"{{"bottleneck":false,"blocks":{blocks},"widths":{widths},"stem":"{stem}"}}"#);
            file.metadata.insert("medmerge.architecture".into(), architecture);
        });
    }
    assert_refused(
        &folder,
        &[
            case(
                "mixed",
                "learn --models texture.safetensors shape2.safetensors --data data/target.npz --out o2",
                says,
            ),
            case("window", "eval --model texture.safetensors --data data/texture.npz --stem 7x7", wrong_window),
            case(
                "contradiction",
                "eval --model contradicts --data data/texture.npz",
                &["its header's medmerge.architecture is", "[1,1,2]", "and its tensors are those of", "[1,1,1]"],
            ),
            case(
                "no widths",
                "eval --model no-widths --data data/texture.npz",
                &["its header's medmerge.architecture makes no sense: 3 stages with 0 widths"],
            ),
            case(
                "another window",
                "eval --model large-stem --data data/texture.npz",
                &["its header's medmerge.architecture tells a stem of 7x7, and conv1.weight is 3×3"],
            ),
        ],
    );
}
