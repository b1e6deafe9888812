//! Merge weights that are pulled to their start, and those that are learned on while a network is fine-tuned.

use medmerge::checkpoint::Numbers;
use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, header, in_parts, last_phase};

const LEARN: &str =
    "learn --models texture.safetensors shape.safetensors --anchor 0 --data data/target.npz --batch-size 8";
const TUNE: &str = "train --data data/target.npz --batch-size 8 --seed 3";
const MERGED: &str = "--weights w.weights.safetensors --models texture.safetensors shape.safetensors";

/// The farthest merge weight from 0.3.
fn farthest(folder: &Folder, weights: &str) -> f32 {
    let weights = floats(folder, weights).into_iter().filter(|(name, _)| name.ends_with("merge_weight"));
    weights.flat_map(|(_, values)| values).fold(0.0, |most, w| most.max((w - 0.3).abs()))
}

#[test]
fn merge_weights_are_pulled_to_their_start() {
    let folder = Folder::with_sources();
    let learn = format!("{LEARN} --granularity filter --start 0.3 --epochs 5");
    folder.done(&format!("{learn} --out without"));
    folder.done(&format!("{learn} --regularise 0 --out none"));
    for suffix in ["", ".weights.safetensors"] {
        assert_eq!(folder.bytes(&format!("without{suffix}")), folder.bytes(&format!("none{suffix}")));
    }
    assert_eq!(header(&folder, "none", "regularise"), Value::Null);
    for (optimizer, strength, limit) in [("adamw", 50.0, "100"), ("sgd", 5.0, "10")] {
        let learn = format!("{learn} --optimizer {optimizer}");
        let pulled = format!("{learn} --regularise {strength} --out pulled");
        folder.done(&format!("{learn} --out free --force"));
        folder.done(&format!("{pulled} --force"));
        let [free, near] = ["free", "pulled"].map(|name| farthest(&folder, &format!("{name}.weights.safetensors")));
        assert!(0.0 < near && near < 0.7 * free, "{optimizer}: {near} of {free}");
        assert_eq!(header(&folder, "pulled", "regularise"), strength.to_string());
        let merge = "merge --models texture.safetensors shape.safetensors --weights pulled.weights.safetensors";
        folder.done(&format!("{merge} --out again --force"));
        assert_eq!(folder.bytes("again"), folder.bytes("pulled"));
        in_parts(&folder, &format!("{learn} --regularise {strength} --out parts-{optimizer}"));
        assert_eq!(folder.bytes(&format!("parts-{optimizer}")), folder.bytes("pulled"));
        let too_much = format!("{learn} --out x --regularise 1001");
        let says = ["beyond where learning starts", &format!("give {limit} or less")];
        assert_refused(&folder, &[case("too much", too_much, &says)]);
    }
    // The strength belongs to the run.
    let run = folder.start_until(&format!("{learn} --regularise 2 --out x --resume -v"), "epoch 2,").interrupt();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let other = folder.run(&format!("{learn} --out x --resume"));
    assert!(other.code == Some(2) && other.stderr.contains("--regularise was 2"), "{}", other.stderr);
    for strength in ["-1", "nan", "inf"] {
        let says = ["--regularise", "give 0 or a positive number"];
        assert_refused(&folder, &[case(strength, format!("{learn} --out y --regularise {strength}"), &says)]);
    }
    folder.rewrite("pulled.weights.safetensors", "altered", |file| {
        file.metadata.insert("medmerge.regularise".into(), "-2".into());
    });
    let merge = "merge --models texture.safetensors shape.safetensors --weights altered --out y";
    assert_refused(&folder, &[case("altered", merge, &["its header's regularise makes no sense"])]);
}

#[test]
fn merge_weights_are_learned_on_while_a_network_is_fine_tuned() {
    let folder = Folder::with_sources();
    for (align, more) in [("none", ""), ("weights", "--constraint simplex --batch-norm anchor --granularity layer")] {
        folder.done(&format!("{LEARN} --start 0.3 --epochs 1 --align {align} {more} --out w --force"));
        let [on, off] = ["0.01", "0"].map(|rate| {
            let result =
                folder.json(&format!("{TUNE} {MERGED} --epochs 2 --merge-learning-rate {rate} --out on --force"));
            assert_eq!(result["epochs"].as_array().unwrap().len(), 2);
            floats(&folder, "on")
        });
        // An ordinary network, which learned everything: merge weights that stay leave fine-tuning as it is.
        folder.done(&format!("{TUNE} --from w --epochs 2 --out plain --force"));
        let plain = floats(&folder, "plain");
        assert!(off == plain, "{align}");
        assert!(on != plain && on.keys().eq(plain.keys()), "{align}");
        folder.done("eval --model on --data data/target.npz");
    }
    assert_eq!(header(&folder, "on", "method"), "fine-tune, merge weights learned on");
    assert_eq!(header(&folder, "on", "sources"), header(&folder, "w", "sources"));
    let phase = last_phase(&folder, "on");
    assert_eq!(phase["kind"], "fine-tune, merge weights learned on");
    assert_eq!((&phase["epochs_done"], &phase["merge_learning_rate"]), (&Value::from(2), &Value::from(0.0)));
    assert_eq!(last_phase(&folder, "plain")["kind"], "fine-tune");
    // The head that was learned, and a new one.
    let heads = [("kept", ""), ("new", "--new-head")].map(|(name, more)| {
        let still = "--epochs 1 --learning-rate 0 --merge-learning-rate 0";
        folder.done(&format!("{TUNE} {MERGED} {still} {more} --out {name}"));
        floats(&folder, name)["fc.weight"].clone()
    });
    let learned = &floats(&folder, "w")["fc.weight"];
    assert!(heads[0] == *learned && heads[1] != *learned);
}

#[test]
fn a_resumed_run_that_learns_on_equals_an_uninterrupted_one() {
    let folder = Folder::with_sources();
    folder.done(&format!("{LEARN} --start 0.3 --constraint simplex --epochs 1 --out w"));
    for optimizer in ["sgd", "adamw"] {
        let tune = format!("{TUNE} {MERGED} --epochs 5 --optimizer {optimizer} --flip");
        folder.done(&format!("{tune} --out whole --force"));
        in_parts(&folder, &format!("{tune} --out parts-{optimizer}"));
        assert_eq!(folder.bytes("whole"), folder.bytes(&format!("parts-{optimizer}")), "{optimizer}");
    }
    let run = folder.start_until(&format!("{TUNE} {MERGED} --epochs 9 --out x --resume -v"), "epoch 2,").interrupt();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let other = folder.run(&format!("{TUNE} {MERGED} --epochs 9 --merge-learning-rate 0.02 --out x --resume"));
    assert!(other.code == Some(2) && other.stderr.contains("--merge-learning-rate was 0.01"), "{}", other.stderr);
    let other = folder.run(&format!("{TUNE} --from w --epochs 9 --out x --resume"));
    let says = "the content of --weights was given and is not";
    assert!(other.code == Some(2) && other.stderr.contains(says), "{}", other.stderr);
}

#[test]
fn merge_weights_that_cannot_be_learned_on_are_refused() {
    let folder = Folder::with_sources();
    folder.source("other", "shape", "--architecture resnet8 --width 4 --seed 9");
    folder.done(&format!("{LEARN} --epochs 1 --out w"));
    folder.rewrite("w.weights.safetensors", "nan", |file| {
        let weights = file.tensors.iter_mut().find(|(name, _)| name.ends_with("merge_weight")).unwrap().1;
        let Numbers::Floats(values) = &mut weights.numbers else { panic!("merge weights are floats") };
        values[0] = f32::NAN;
    });
    let tune = format!("{TUNE} --epochs 1 --out x");
    let two = "--models texture.safetensors shape.safetensors";
    assert_refused(
        &folder,
        &[
            case("no sources", format!("{tune} --weights w.weights.safetensors"), &["--models"]),
            case("no weights", format!("{tune} {two}"), &["--weights"]),
            case("a rate of nothing", format!("{tune} --merge-learning-rate 0.1"), &["--weights"]),
            case("a network too", format!("{tune} {MERGED} --from w"), &["cannot be used with"]),
            case("a new network too", format!("{tune} {MERGED} --architecture resnet8"), &["cannot be used with"]),
            case("the head alone", format!("{tune} {MERGED} --head-only"), &["cannot be used with"]),
            case(
                "another source",
                format!("{tune} --weights w.weights.safetensors --models texture.safetensors other.safetensors"),
                &["learned for another file than other.safetensors"],
            ),
            case(
                "another order",
                format!("{tune} --weights w.weights.safetensors --models shape.safetensors texture.safetensors"),
                &["learned for another file than shape.safetensors"],
            ),
            case("one more", format!("{tune} {MERGED} other.safetensors"), &["merge weights for 2 sources, not for 3"]),
            case("a network", format!("{tune} --weights w {two}"), &["w"]),
            case("not a number", format!("{tune} --weights nan {two}"), &["a merge weight is NaN or infinity"]),
            case("a rate below 0", format!("{tune} {MERGED} --merge-learning-rate -1"), &["--merge-learning-rate -1"]),
            case(
                "onto a source",
                format!("{TUNE} {MERGED} --out shape.safetensors --force"),
                &["--models and --out name the same file"],
            ),
        ],
    );
}

/// The same job by the GPU's kernels.
#[cfg(feature = "emulator")]
#[test]
fn merge_weights_are_learned_on_by_the_kernels_as_on_the_cpu() {
    let folder = Folder::with_sources();
    folder.done(&format!("{LEARN} --start 0.3 --epochs 1 --out w"));
    let tuned = |name: &str, device: &str| {
        folder.done(&format!("{TUNE} {MERGED} --epochs 1 --learning-rate 1e-4 --device {device} --out {name}"));
        floats(&folder, name)
    };
    let (cpu, ours) = (tuned("cpu", "cpu"), tuned("ours", "emulator"));
    let before = floats(&folder, "w");
    let mut moved = 0f32;
    for (name, values) in &cpu {
        for ((cpu, ours), before) in values.iter().zip(&ours[name]).zip(&before[name]) {
            moved = moved.max((cpu - before).abs());
            assert!((cpu - ours).abs() <= 2e-3 * cpu.abs().max(1.0), "{name}: {ours} is not {cpu}");
        }
    }
    assert!(moved > 1e-2, "{moved}");
}
