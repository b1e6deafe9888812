//! Options of learning and of fine-tuning that are off unless asked for: what they do, that they continue, and what they refuse.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, header, in_parts, last_phase};

const LEARN: &str =
    "learn --models texture.safetensors shape.safetensors --anchor 0 --data data/target.npz --batch-size 8 --epochs 5";
const TUNE: &str = "train --from shape.safetensors --data data/target.npz --batch-size 8 --seed 3";

const WAYS: [&str; 7] = [
    "--start 0.3 --batch-norm own",
    "--start 0.3 --batch-norm own --granularity layer --constraint simplex",
    "--start 0.3 --probe-statistics running",
    "--start layer --granularity kernel",
    "--start filter --granularity kernel --regularise 2",
    "--start 0/0.5",
    "--start layer --batch-norm own --probe-statistics running --keep-statistics --regularise 2",
];

#[test]
fn what_is_learned_in_any_way_is_measured_folded_and_continued() {
    let folder = Folder::with_sources();
    folder.done(&format!("{LEARN} --start 0.3 --out usual"));
    for (index, way) in WAYS.into_iter().enumerate() {
        let learn = format!("{LEARN} {way}");
        let learned = folder.json(&format!("{learn} --out whole --force"));
        assert_ne!(folder.bytes("whole"), folder.bytes("usual"), "{way}");
        let merge = "merge --models texture.safetensors shape.safetensors --weights whole.weights.safetensors";
        folder.done(&format!("{merge} --out again --force"));
        assert_eq!(folder.bytes("again"), folder.bytes("whole"), "{way}");
        in_parts(&folder, &format!("{learn} --out parts{index}"));
        assert_eq!(folder.bytes(&format!("parts{index}")), folder.bytes("whole"), "{way}");
        // What was told of the best epoch is what the file gives.
        let told = learned["epochs"].as_array().unwrap().iter().filter_map(|epoch| epoch["val_macro_f1"].as_f64());
        let told = told.fold(f64::NEG_INFINITY, f64::max);
        let eval = folder.json("eval --model whole --data data/target.npz --split val");
        assert_eq!(eval["metrics"]["macro_f1"].as_f64(), Some(told), "{way}");
    }
    assert_eq!(header(&folder, "parts3", "start"), "layer");
    assert_eq!(header(&folder, "parts1", "batch_norm"), "own");
    assert_eq!(
        [2, 3].map(|way| header(&folder, &format!("parts{way}"), "probe_statistics")),
        [Value::from("running"), Value::Null]
    );
    // Two of five epochs for layers, and both are told.
    let phases: Vec<Value> = serde_json::from_str(header(&folder, "parts3", "training").as_str().unwrap()).unwrap();
    assert_eq!(phases.iter().map(|phase| phase["epochs"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
    // The better of two starts is told.
    assert!(["0", "0.5"].contains(&header(&folder, "parts5", "start").as_str().unwrap()));
    // γ and β went their own ways.
    let weights = floats(&folder, "parts0.weights.safetensors");
    let [of_filters, of_scales, of_shifts] =
        ["conv1", "bn1.weight", "bn1.bias"].map(|name| weights[&format!("{name}.merge_weight")].clone());
    assert!(of_filters.len() == of_scales.len() && of_scales != of_shifts && of_scales != of_filters);
    folder.rewrite("parts2.weights.safetensors", "altered", |file| {
        file.metadata.insert("medmerge.probe_statistics".into(), "moving".into());
    });
    let merge = "merge --models texture.safetensors shape.safetensors";
    assert_refused(
        &folder,
        &[
            case(
                "layers first",
                format!("{LEARN} --start layer --granularity layer --out x"),
                &["shares a merge weight among more"],
            ),
            case(
                "one epoch",
                format!("{LEARN} --start layer --out x").replace("--epochs 5", "--epochs 1"),
                &["--start layer with a single epoch"],
            ),
            case(
                "no weights of their own",
                format!("{merge} --coefficients 0.5,0.5 --batch-norm own --out x"),
                &["`learn` has own"],
            ),
            case("altered", format!("{merge} --weights altered --out x"), &["'moving'"]),
        ],
    );
}

#[test]
fn a_single_source_is_given_numbers_of_its_own() {
    let folder = Folder::with_sources();
    let learn =
        LEARN.replace("texture.safetensors ", "").replace("--anchor 0", "--constraint free --granularity kernel");
    let learned = folder.json(&format!("{learn} --out whole"));
    assert!(learned["moved"].as_f64().unwrap() > 0.0);
    folder.done("merge --models shape.safetensors --weights whole.weights.safetensors --out again");
    assert_eq!(folder.bytes("again"), folder.bytes("whole"));
    in_parts(&folder, &format!("{learn} --out parts"));
    assert_eq!(folder.bytes("parts"), folder.bytes("whole"));
    // Each kernel is the source's by its number.
    let [before, after, numbers] =
        ["shape.safetensors", "whole", "whole.weights.safetensors"].map(|file| floats(&folder, file));
    let (numbers, name) = (&numbers["layer2.0.conv1.merge_weight"], "layer2.0.conv1.weight");
    let (before, after) = (&before[name], &after[name]);
    assert_eq!(before.len(), 9 * numbers.len());
    for ((before, after), number) in before.chunks(9).zip(after.chunks(9)).zip(numbers) {
        assert!(before.iter().zip(after).all(|(before, after)| (before * number - after).abs() < 1e-6));
    }
    let on = "train --weights whole.weights.safetensors --models shape.safetensors --data data/target.npz --epochs 1";
    folder.done(&format!("{on} --batch-size 8 --out on"));
    assert_refused(
        &folder,
        &[
            case(
                "of two",
                "merge --models shape.safetensors texture.safetensors --weights whole.weights.safetensors --out x",
                &["merge weights for 1 sources, not for 2"],
            ),
            case("nothing", "learn --data data/target.npz --out x", &["--models"]),
        ],
    );
}

/// The farthest number of a trunk from where fine-tuning began.
fn farthest(folder: &Folder, file: &str) -> f32 {
    let (before, after) = (floats(folder, "shape.safetensors"), floats(folder, file));
    let of_trunk = after.iter().filter(|(name, _)| name.contains("conv"));
    let moved = of_trunk.flat_map(|(name, values)| values.iter().zip(&before[name]).map(|(a, b)| (a - b).abs()));
    moved.fold(0.0, f32::max)
}

#[test]
fn a_trunk_is_pulled_to_where_fine_tuning_starts() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --epochs 4");
    folder.done(&format!("{tune} --out free"));
    folder.done(&format!("{tune} --l2-sp 0 --out none"));
    assert_eq!(folder.bytes("free"), folder.bytes("none"));
    for (optimizer, strength, limit) in [("adamw", 300, "1000"), ("sgd", 90, "100")] {
        let tune = format!("{tune} --optimizer {optimizer}");
        folder.done(&format!("{tune} --out free --force"));
        folder.done(&format!("{tune} --l2-sp {strength} --out pulled --force"));
        let [free, near] = ["free", "pulled"].map(|file| farthest(&folder, file));
        assert!(0.0 < near && near < 0.7 * free, "{optimizer}: {near} of {free}");
        let phase = last_phase(&folder, "pulled");
        assert_eq!((&phase["l2_sp"], &phase["ema"]), (&Value::from(f64::from(strength)), &Value::Null));
        in_parts(&folder, &format!("{tune} --l2-sp {strength} --out parts-{optimizer}"));
        assert_eq!(folder.bytes(&format!("parts-{optimizer}")), folder.bytes("pulled"));
        let says = ["pulls the trunk beyond where learning starts", &format!("give {limit} or less")];
        assert_refused(&folder, &[case("too much", format!("{tune} --l2-sp 1001 --out x"), &says)]);
    }
    let new = "train --architecture resnet8 --width 4 --data data/target.npz --epochs 1 --out x";
    assert_refused(
        &folder,
        &[
            case("below 0", format!("{tune} --l2-sp -1 --out x"), &["--l2-sp -1"]),
            case("no start", format!("{new} --l2-sp 1"), &["--from"]),
            case("a head", format!("{tune} --l2-sp 1 --head-only --out x"), &["cannot be used with"]),
        ],
    );
}

#[test]
fn features_are_kept_near_those_of_teachers() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --epochs 4 --optimizer sgd --learning-rate 3e-2");
    let teachers = "--teachers shape.safetensors texture.safetensors";
    folder.done(&format!("{tune} --out free"));
    folder.done(&format!("{tune} --distill 0.3 --teachers shape.safetensors --out distilled"));
    assert_eq!(last_phase(&folder, "distilled")["distill"], Value::from(0.3));
    assert!(floats(&folder, "distilled") != floats(&folder, "free"));
    folder.done(&format!("{tune} --distill 0.3 {teachers} --out both"));
    assert_ne!(folder.bytes("both"), folder.bytes("distilled"));
    in_parts(&folder, &format!("{tune} --distill 0.3 {teachers} --out parts"));
    assert_eq!(folder.bytes("parts"), folder.bytes("both"));
    folder.done("train --architecture resnet8 --width 8 --data data/target.npz --epochs 1 --out other");
    assert_refused(
        &folder,
        &[
            case("below 0", format!("{tune} --distill -1 {teachers} --out x"), &["--distill -1"]),
            case("nobody", format!("{tune} --distill 1 --out x"), &["--teachers"]),
            case("for nothing", format!("{tune} {teachers} --out x"), &["--teachers without --distill"]),
            case("a head", format!("{tune} --distill 1 {teachers} --head-only --out x"), &["cannot be used with"]),
            case(
                "another",
                format!("{tune} --distill 1 --teachers other --out x"),
                &["features are compared one by one"],
            ),
        ],
    );
}

#[test]
fn rates_rise_before_they_fall() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --epochs 4");
    let mut written = Vec::new();
    for way in ["", "--warmup 1", "--schedule step", "--schedule step --warmup 2"] {
        folder.done(&format!("{tune} {way} --out net --force"));
        written.push(floats(&folder, "net"));
    }
    assert!(written.iter().enumerate().all(|(at, one)| !written[..at].contains(one)), "each is a way of its own");
    assert_eq!(
        (&last_phase(&folder, "net")["warmup"], &last_phase(&folder, "net")["schedule"]),
        (&Value::from(2), &"step".into())
    );
    in_parts(&folder, &format!("{tune} --schedule step --warmup 2 --out parts"));
    assert_eq!(folder.bytes("parts"), folder.bytes("net"));
    assert_refused(&folder, &[case("all of it", format!("{tune} --warmup 4 --out x"), &["--warmup 4 of 4 epochs"])]);
}

#[test]
fn the_average_of_epochs_is_what_is_measured_and_kept() {
    let folder = Folder::with_sources();
    let tune = format!("{TUNE} --epochs 5");
    // The first epoch is its own average; the fifth is not.
    folder.done(&format!("{TUNE} --epochs 1 --out one"));
    folder.done(&format!("{TUNE} --epochs 1 --ema 0.7 --out averaged"));
    assert!(floats(&folder, "one") == floats(&folder, "averaged"));
    // Without validation images the last epoch is kept.
    folder.data("blind", "--val 0");
    let last = tune.replace("data/target.npz", "blind/target.npz");
    folder.done(&format!("{last} --out free"));
    folder.done(&format!("{last} --ema 0.7 --out averaged --force"));
    assert!(floats(&folder, "free") != floats(&folder, "averaged"));
    let averaged = folder.json(&format!("{tune} --ema 0.7 --out averaged --force"));
    let told = averaged["epochs"].as_array().unwrap().iter().filter_map(|epoch| epoch["val_macro_f1"].as_f64());
    let eval = folder.json("eval --model averaged --data data/target.npz --split val");
    assert_eq!(eval["metrics"]["macro_f1"].as_f64(), Some(told.fold(f64::NEG_INFINITY, f64::max)));
    assert_eq!(last_phase(&folder, "averaged")["ema"], 0.7);
    in_parts(&folder, &format!("{tune} --ema 0.7 --out parts"));
    assert_eq!(folder.bytes("parts"), folder.bytes("averaged"));
    // A trunk that stays keeps its statistics too.
    folder.done(&format!("{TUNE} --new-head --head-only --epochs 3 --ema 0.5 --out probe"));
    let (before, after) = (floats(&folder, "shape.safetensors"), floats(&folder, "probe"));
    assert!(before.iter().filter(|(name, _)| !name.starts_with("fc.")).all(|(name, values)| after[name] == *values));
    for ema in ["1", "-0.1", "nan"] {
        assert_refused(&folder, &[case(ema, format!("{tune} --ema {ema} --out x"), &["--ema", "below 1"])]);
    }
}

/// Farther than this numbers move, and much nearer than this devices agree.
#[cfg(feature = "emulator")]
const FAR: f32 = 3e-3;

/// The same by the GPU's kernels. By SGD: AdamW's first steps are of one length, whatever the gradient.
#[cfg(feature = "emulator")]
#[test]
fn kernels_do_as_the_cpu_does_in_any_way() {
    let folder = Folder::with_sources();
    let sgd = "--epochs 2 --optimizer sgd --learning-rate 3e-2";
    let learn = LEARN.replace("--epochs 5", &format!("{sgd} --merge-learning-rate 0.1"));
    // λ of 2 pulls all the way with this rate.
    let way = |way: &str| format!("{learn} {}", way.replace("--regularise 2", "--regularise 0.5"));
    let mut commands: Vec<String> = WAYS.iter().map(|text| way(text)).collect();
    // Without validation images the last epoch is kept.
    folder.data("blind", "--val 0");
    let tune = format!("{TUNE} {sgd}").replace("data/target.npz", "blind/target.npz");
    commands.extend(
        ["", "--ema 0.6", "--l2-sp 3", "--distill 0.5 --teachers texture.safetensors"]
            .map(|option| format!("{tune} {option}")),
    );
    let mut tuned = Vec::new();
    for command in commands {
        let [cpu, ours] = ["cpu", "emulator"].map(|device| {
            folder.done(&format!("{command} --device {device} --out {device} --force"));
            let weights = format!("{device}.weights.safetensors");
            let file = if command.starts_with("learn ") { weights } else { device.to_string() };
            floats(&folder, &file)
        });
        for (name, values) in &cpu {
            for (cpu, ours) in values.iter().zip(&ours[name]) {
                assert!((cpu - ours).abs() <= 0.1 * FAR * cpu.abs().max(1.0), "{command}: {name}: {ours} is not {cpu}");
            }
        }
        if command.starts_with("train ") {
            tuned.push(cpu["fc.weight"].clone().into_iter().chain(cpu["conv1.weight"].clone()).collect::<Vec<f32>>());
        }
    }
    let [plain, others @ ..] = &tuned[..] else { panic!("ways to tune") };
    assert_eq!(others.len(), 3);
    for other in others {
        let farthest = plain.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(farthest > FAR, "{farthest}");
    }
}

#[test]
fn merge_weights_that_hardly_move_are_told() {
    let folder = Folder::with_sources();
    let learn = format!("{LEARN} --start 0.3").replace("--epochs 5", "--epochs 1");
    for (rate, says) in [("0", true), ("0.1", false)] {
        let run = folder.run(&format!("{learn} --merge-learning-rate {rate} --out out --force"));
        assert_eq!((run.code, run.stdout.contains("hint: they hardly moved")), (Some(0), says), "{}", run.stdout);
    }
}
