//! Whole jobs: from images to a merged network and its scores, the same to the last bit each time.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, scores};

const TWO: &str = "--models texture.safetensors shape.safetensors";
const SHORT: &str = "--epochs 1 --batch-size 16";

#[test]
fn from_generated_images_to_scores() {
    let folder = Folder::with_sources();
    let learned = folder
        .json(&format!("learn {TWO} --data data/target.npz {SHORT} --out merged.safetensors --picture picture.svg"));
    assert_eq!(learned["weights"], "merged.weights.safetensors");
    assert_eq!(learned["anchor_scores"].as_array().unwrap().len(), 2);
    folder.bytes("picture.svg");
    folder.done(&format!("merge {TWO} --weights merged.weights.safetensors --out again.safetensors"));
    assert!(folder.bytes("again.safetensors") == folder.bytes("merged.safetensors"));

    let trained = folder.json(
        "train --from merged.safetensors --data data/target.npz --epochs 2 --batch-size 16 --out tuned.safetensors",
    );
    assert_eq!(trained["epochs"].as_array().unwrap().len(), 2);

    let evaluated = folder.json("eval --model tuned.safetensors --data data/target.npz");
    assert_eq!((&evaluated["images"], &evaluated["split"]), (&Value::from(24), &Value::from("test")));
    let labels = medmerge::data::Dataset::load(&folder.path("data/target.npz")).unwrap().test.labels;
    for (kind, out) in [("--logits", "logits.csv"), ("", "probabilities.csv")] {
        folder.done(&format!("predict --model tuned.safetensors --data data/target.npz {kind} --out {out}"));
        let rows = scores(&folder.text(out));
        assert!(rows.iter().all(|row| row.len() == 16));
        assert_eq!(rows.len(), 24);
        let right = rows.iter().zip(&labels).filter(|(row, label)| argmax(row) == **label as usize).count();
        assert_eq!(right as f64 / 24.0, evaluated["metrics"]["accuracy"].as_f64().unwrap(), "{out}");
    }
    let sum_is_1 = |row: &Vec<f32>| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5;
    assert!(scores(&folder.text("probabilities.csv")).iter().all(sum_is_1));

    let kind = |file: &str| folder.json(&format!("inspect {file}"))["kind"].clone();
    assert_eq!(kind("data/target.npz"), "data set");
    assert_eq!(kind("tuned.safetensors"), "checkpoint");
    assert_eq!(kind("merged.weights.safetensors"), "merge weights");
    for (file, says) in [
        ("data/target.npz", "16×16 pixels, 1 channels, 16 classes"),
        ("tuned.safetensors", "resnet8 (stem 3x3, width 4), 1 input channels, 16 classes"),
        ("merged.weights.safetensors", "merge weights for resnet8"),
    ] {
        let text = folder.done(&format!("inspect {file}"));
        assert!(text.contains(says), "{text}");
    }
}

fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
}

#[test]
fn every_way_to_learn_folds_to_the_same_bytes() {
    let folder = Folder::with_sources();
    folder.source("third", "texture", "--architecture resnet8 --width 4 --seed 3");
    let three = format!("{TWO} third.safetensors");
    for (name, models, how) in [
        ("model", TWO, "--granularity model"),
        ("layer", TWO, "--granularity layer --constraint clamp --start 0.25"),
        ("filter", TWO, "--granularity filter --constraint simplex --start uniform"),
        ("kernel", TWO, "--granularity kernel --constraint free"),
        ("anchor", TWO, "--batch-norm anchor --anchor shape --keep-statistics"),
        ("three", &three, "--constraint simplex --start uniform --anchor 2"),
        ("options", TWO, "--optimizer sgd --schedule constant --flip --shift 1 --class-weights balanced --patience 1"),
    ] {
        let data = "--data data/target.npz --merge-learning-rate 0.1";
        folder.done(&format!("learn {models} {data} {SHORT} {how} --out {name}.safetensors"));
        folder.done(&format!("merge {models} --weights {name}.weights.safetensors --out {name}.again.safetensors"));
        let (folded, again) = (format!("{name}.safetensors"), format!("{name}.again.safetensors"));
        assert!(folder.bytes(&folded) == folder.bytes(&again), "{name}");
        folder.done(&format!("eval --model {folded} --data data/target.npz"));
        folder.done(&format!("inspect {name}.weights.safetensors"));
        // Something was learned.
        let weights = floats(&folder, &format!("{name}.weights.safetensors"));
        let numbers = weights.iter().filter(|(name, _)| name.ends_with("merge_weight")).flat_map(|(_, values)| values);
        let distinct: std::collections::BTreeSet<u32> = numbers.map(|number| number.to_bits()).collect();
        assert!(distinct.len() > if name == "model" { 0 } else { 3 }, "{name}: {distinct:?}");
    }
}

#[test]
fn fixed_coefficients() {
    let folder = Folder::with_sources();
    let merge = |coefficients: &str, more: &str, out: &str| {
        folder.done(&format!("merge {TWO} --coefficients {coefficients} {more} --out {out}"));
        floats(&folder, out)
    };
    let [texture, shape] = ["texture", "shape"].map(|name| floats(&folder, &format!("{name}.safetensors")));

    assert_eq!(merge("1,0", "", "first"), texture);
    let second = merge("0,1", "--anchor shape", "second");
    assert_eq!(second, shape);

    let average = merge("0.5,0.5", "", "average");
    let difference = merge("1.5,-0.5", "", "difference");
    for (name, values) in &average {
        let of_statistics = name.contains("running_");
        for (index, &value) in values.iter().enumerate() {
            let (a, b) = (texture[name][index], shape[name][index]);
            assert_eq!(value, if of_statistics { a } else { 0.5 * a + 0.5 * b }, "{name}[{index}]");
            let expected = if of_statistics { a } else { 1.5 * a - 0.5 * b };
            assert!((difference[name][index] - expected).abs() <= 1e-6 * (a.abs() + b.abs()), "{name}[{index}]");
        }
    }

    let norms_kept = merge("0.5,0.5", "--batch-norm anchor", "norms-kept");
    for name in ["bn1.weight", "bn1.bias", "layer2.0.downsample.1.weight"] {
        assert_eq!(norms_kept[name], texture[name], "{name}");
    }
    let reestimated = merge("0.5,0.5", "--data data/target.npz", "reestimated");
    assert_ne!(reestimated["bn1.running_mean"], average["bn1.running_mean"]);
    assert_eq!(reestimated["conv1.weight"], average["conv1.weight"]);
}

/// What each command writes, one after another, in a folder of its own. Each takes the options in `all`, those that compute
/// also those in `place`, and those that draw random numbers `seed`.
fn files_of_a_job(all: &str, place: &str, seed: &str) -> Vec<(&'static str, Vec<u8>)> {
    let folder = Folder::new();
    let width = "--architecture resnet8 --width 8";
    folder.done(&format!(
        "synth --out data --image-size 20 --source-train 70 --target-train 70 --val 20 --test 40 {all} {seed}"
    ));
    for name in ["texture", "shape"] {
        let train = format!("train --data data/{name}.npz {width} --epochs 1 --batch-size 32 --flip --shift 2");
        folder.done(&format!("{train} --out {name}.safetensors {all} {place} {seed}"));
    }
    folder.done(&format!(
        "learn {TWO} --data data/target.npz --epochs 1 --batch-size 32 --granularity kernel \
         --out merged.safetensors {all} {place} {seed}"
    ));
    folder.done(&format!(
        "merge {TWO} --coefficients 0.3,0.7 --data data/target.npz --out fixed.safetensors {all} {place}"
    ));
    folder.done(&format!("predict --model merged.safetensors --data data/target.npz --out scores.csv {all} {place}"));
    let names = [
        "data/target.npz",
        "texture.safetensors",
        "shape.safetensors",
        "merged.weights.safetensors",
        "merged.safetensors",
        "fixed.safetensors",
        "scores.csv",
    ];
    names.map(|name| (name, folder.bytes(name))).to_vec()
}

#[test]
fn the_same_command_gives_the_same_bytes_with_any_number_of_threads() {
    let once = files_of_a_job("", "", "");
    for (all, place) in [
        ("", ""),
        ("--threads 1", ""),
        ("--threads 2", ""),
        ("--threads 3", ""),
        ("--quiet", "--device cpu --precision f32"),
    ] {
        for ((name, bytes), (_, again)) in once.iter().zip(files_of_a_job(all, place, "")) {
            assert!(*bytes == again, "{name} differs with '{all} {place}'");
        }
    }
    for ((name, bytes), (_, other)) in once.iter().zip(files_of_a_job("", "", "--seed 1")) {
        assert!(*bytes != other, "{name} does not depend on the seed");
    }
}

#[test]
fn the_size_of_a_batch_changes_scores_by_rounding_alone() {
    let folder = Folder::with_sources();
    let predict = |batch_size: usize| {
        let out = format!("scores-{batch_size}.csv");
        let what = "--model texture.safetensors --data data/texture.npz --logits";
        folder.done(&format!("predict {what} --batch-size {batch_size} --out {out}"));
        scores(&folder.text(&out)).concat()
    };
    let whole = predict(128);
    for batch_size in [1, 7] {
        for (a, b) in predict(batch_size).iter().zip(&whole) {
            assert!((a - b).abs() < 1e-5, "{a} and {b} with batches of {batch_size}");
        }
    }
}

/// Joined into stages or not: the same numbers in f32, whatever runs.
#[test]
fn without_fusion_the_same_bytes() {
    let folder = Folder::with_sources();
    let both = |command: &str| {
        let [fused, apart] = ["", "--no-fusion"].map(|flag| {
            let out = format!("out{}", flag.len());
            let stdout = folder.done(&command.replace("OUT", &out).replace("FLAG", flag)).replace(&out, "OUT");
            (stdout, folder.path(&out).exists().then(|| folder.bytes(&out)))
        });
        assert!(fused == apart, "{command}: {} and {}", fused.0, apart.0);
    };
    both(&format!("train --from texture.safetensors --data data/target.npz {SHORT} --out OUT FLAG"));
    both(&format!(
        "learn FLAG {TWO} --data data/target.npz {SHORT} --anchor 1 --out OUT --weights OUT.weights --force"
    ));
    both("predict FLAG --model texture.safetensors --data data/texture.npz --logits --out OUT --force");
    both("FLAG eval --model texture.safetensors --data data/texture.npz --json");
}

#[test]
fn a_plan_shows_what_runs_as_one() {
    let folder = Folder::with_sources();
    let of_file = folder.json("inspect --plan texture.safetensors");
    let of_name = folder.json("inspect resnet8 --plan");
    assert_eq!(of_file["stages"], of_name["stages"]);
    let layers = |plan: &Value| -> Vec<Vec<String>> {
        let name = |name: &Value| name.as_str().unwrap().to_string();
        let of_stage = |stage: &Value| stage["layers"].as_array().unwrap().iter().map(name).collect();
        plan["stages"].as_array().unwrap().iter().map(of_stage).collect()
    };
    let (joined, apart) = (layers(&of_name), layers(&folder.json("inspect resnet8 --plan --no-fusion")));
    assert!(joined.contains(&["layer1.0.bn2", "layer1.0.add", "layer1.0.relu"].map(String::from).to_vec()));
    assert!(apart.iter().all(|stage| stage.len() == 1) && apart.len() == 30);
    let sorted = |stages: Vec<Vec<String>>| {
        let mut names = stages.concat();
        names.sort();
        names
    };
    assert_eq!(sorted(joined), sorted(apart));

    // On tensor cores, convolutions make the sums of batch norms.
    let forward = |flags: &str| folder.json(&format!("inspect resnet50 --plan {flags}"))["forward"].as_u64().unwrap();
    let [f32, bf16] = ["", "--precision bf16"].map(forward);
    assert_eq!(forward("--precision bf16 --no-fusion"), forward("--no-fusion") + 2, "the stem is padded");
    assert_eq!(f32 + 2 - bf16, 53, "one launch less for each batch norm");

    let text = folder.done("inspect --plan resnet18");
    assert!(text.starts_with("resnet18: 40 stages of 68 layers\n"), "{text}");
    assert!(text.contains("bn1 + relu ") && text.contains("batch norm, sum, ReLU"), "{text}");
    assert_eq!(text.matches("batch norm, batch norm, sum, ReLU").count(), 3, "blocks with a shortcut: {text}");
    assert!(folder.done("inspect --plan densenet121").contains("concatenation"));
    assert_refused(
        &folder,
        &[
            case("name", "inspect --plan resnet17", &["unknown network 'resnet17'", "did you mean 'resnet1"]),
            case("file", "inspect --plan none.safetensors", &["cannot read none.safetensors"]),
            case("data", "inspect --plan data/target.npz", &["target.npz"]),
        ],
    );
}

#[test]
fn help_explains_every_argument() {
    let folder = Folder::new();
    let verbs =
        ["demo", "train", "learn", "merge", "eval", "predict", "export", "inspect", "synth", "kernels", "devices"];
    let top = folder.done("--help");
    for verb in verbs {
        assert!(top.lines().any(|line| line.trim_start().starts_with(verb)), "--help does not list {verb}");
        for help in [folder.done(&format!("{verb} --help")), folder.done(&format!("help {verb}"))] {
            assert_explained(&help, verb);
        }
    }
    assert_explained(&top, "medmerge");
    let version = concat!("medmerge ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(folder.done("--version"), version);
    assert_eq!(folder.run("").code, Some(2));
    assert!(folder.snapshot().is_empty());
}

/// An argument's text stands behind it, or indented below it.
#[track_caller]
fn assert_explained(help: &str, verb: &str) {
    let lines: Vec<&str> = help.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut arguments = 0;
    for (index, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        if !(2..=6).contains(&indent(line)) || !text.starts_with(['-', '<']) {
            continue;
        }
        arguments += 1;
        let behind = text.split_once("  ").is_some_and(|(_, text)| text.trim().len() > 3);
        let below = lines.get(index + 1).is_some_and(|next| indent(next) > indent(line) && next.trim().len() > 3);
        assert!(behind || below, "{verb}: nothing explains {text}");
    }
    assert!(arguments > 7, "{verb}: only {arguments} arguments in\n{help}");
}

#[test]
fn devices_lists_the_processor() {
    let devices = Folder::new().json("devices --threads 2");
    assert_eq!((&devices["cpu"]["available"], &devices["cpu"]["threads"]), (&Value::from(true), &Value::from(2)));
    assert!(devices["cuda"]["reason"].is_string());
}

/// The whole job by the GPU's kernels: it agrees with the CPU's, and with itself to the last bit.
#[cfg(feature = "emulator")]
mod emulator {
    use super::*;

    const TARGET: &str = "--data data/target.npz --batch-size 8 --flip --shift 1";

    /// A folder with two trained ResNet-20.
    fn sources() -> Folder {
        let folder = Folder::new();
        folder.data("data", "");
        for name in ["texture", "shape"] {
            folder.source(name, name, "--architecture resnet20 --width 4 --device cpu");
        }
        folder
    }

    /// Learns, folds, fine-tunes and evaluates with the flags `on`; every file is named after `name`.
    fn job(folder: &Folder, name: &str, on: &str) -> Value {
        folder.done(&format!("learn {TWO} {TARGET} --epochs 1 --anchor 0 --start 0.3 --out {name}-merged {on}"));
        // Folding is f32 whatever the precision of activations.
        let device = on.split(" --precision").next().unwrap();
        folder.done(&format!("merge {TWO} --weights {name}-merged.weights.safetensors --out {name}-again {device}"));
        assert!(folder.bytes(&format!("{name}-again")) == folder.bytes(&format!("{name}-merged")), "{on}");
        folder.done(&format!("train --from {name}-merged {TARGET} --epochs 1 --out {name}-tuned {on}"));
        folder.done(&format!("predict --model {name}-tuned --data data/target.npz --logits --out {name}.csv {on}"));
        folder.json(&format!("eval --model {name}-tuned --data data/target.npz {on}"))
    }

    #[test]
    fn agrees_with_the_cpu() {
        let folder = sources();
        let on_cpu = job(&folder, "cpu", "--device cpu");
        let on_emulator = job(&folder, "emulator", "--device emulator");
        assert_eq!(on_cpu["images"], on_emulator["images"]);
        for file in ["merged.weights.safetensors", "merged", "tuned"] {
            let expected = floats(&folder, &format!("cpu-{file}"));
            for (name, ours) in floats(&folder, &format!("emulator-{file}")) {
                let far = ours.iter().zip(&expected[&name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far < 5e-3, "{file}: {name} is {far:.1e} off");
            }
        }
        let logits = |name: &str| scores(&folder.text(&format!("{name}.csv"))).concat();
        let far = logits("cpu").iter().zip(logits("emulator")).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 2e-2, "logits are {far:.1e} off");
    }

    #[test]
    fn comes_to_the_same_bytes_with_any_number_of_threads() {
        let folder = sources();
        for (name, threads) in [("one", 1), ("three", 3)] {
            job(&folder, name, &format!("--device emulator --threads {threads}"));
        }
        for file in ["merged.weights.safetensors", "merged", "tuned"] {
            let [one, three] = ["one", "three"].map(|name| folder.bytes(&format!("{name}-{file}")));
            assert!(one == three, "{file}");
        }
        assert_eq!(folder.text("one.csv"), folder.text("three.csv"));
    }

    #[test]
    fn runs_in_half_precision() {
        let folder = sources();
        for precision in ["bf16", "f16"] {
            let result = job(&folder, precision, &format!("--device emulator --precision {precision}"));
            assert!(result["metrics"]["accuracy"].as_f64().unwrap() >= 0.0);
        }
        assert_ne!(folder.text("bf16.csv"), folder.text("f16.csv"));
    }

    #[test]
    fn says_how_many_launches_a_step_has() {
        let folder = sources();
        let run =
            folder.run(&format!("train --from texture.safetensors {TARGET} --epochs 1 --out o -v --device emulator"));
        assert!(
            run.stderr.contains(" is one graph of ") && run.stderr.contains(" (0 buffers did not fit the plan)"),
            "{}",
            run.stderr
        );
    }
}
