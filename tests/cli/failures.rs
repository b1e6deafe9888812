//! Work that fails on its way: training that diverges, and Ctrl-C.

use std::path::PathBuf;

use crate::support::{Folder, Run};

fn assert_failed(run: &Run, says: &[&str]) {
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", run.stderr);
    for text in says {
        assert!(run.stderr.contains(text), "does not say '{text}':\n{}", run.stderr);
    }
}

#[test]
fn divergence_in_the_first_epoch_leaves_no_file() {
    let folder = Folder::with_sources();
    let before = folder.snapshot();
    let no_file: &[&str] = &["the loss became", "epoch 1)", "no checkpoint was written", "a smaller --learning-rate"];
    for (learning_rate, batch_size, at) in [
        // The first step's loss is that of the network as it was.
        ("1e30", 16, "at step 2 (epoch 1)"),
        // A single step in the epoch: what it did shows on the validation split alone.
        ("1e38", 32, "at step 1 (epoch 1)"),
        ("1e300", 32, "at step 1 (epoch 1)"),
    ] {
        let how = format!("--optimizer sgd --learning-rate {learning_rate} --batch-size {batch_size} --out out");
        let run = folder.run(&format!("train --from texture.safetensors --data data/texture.npz {how}"));
        assert_failed(&run, no_file);
        assert!(run.stderr.contains(at), "{}", run.stderr);
        let models = "--models texture.safetensors shape.safetensors --data data/target.npz --anchor 0";
        let says = &["the loss became", "no checkpoint was written"];
        assert_failed(&folder.run(&format!("learn {models} {how}")), says);
        // Merge weights take longer to diverge; what is written then is the log of the epochs before.
        let _ = std::fs::remove_file(folder.path("out.log.csv"));
    }
    assert_eq!(folder.snapshot(), before);
}

#[test]
fn divergence_later_leaves_the_last_good_checkpoint() {
    let folder = Folder::with_sources();
    // A decay that multiplies the parameters by −99 each step; one step an epoch.
    let how = "--optimizer sgd --schedule constant --learning-rate 10 --weight-decay 10 --batch-size 32 --epochs 100";
    let run = folder.run(&format!("train --from texture.safetensors --data data/texture.npz {how} --out out"));
    assert_failed(&run, &["the loss became", "the last good checkpoint is out"]);
    assert!(!run.stderr.contains("(epoch 1)"), "{}", run.stderr);
    let metrics = folder.json("eval --model out --data data/texture.npz --split val");
    assert!(metrics["metrics"]["macro_f1"].is_f64(), "{metrics}");
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupt_before_the_first_epoch_ends_leaves_no_file() {
    let folder = Folder::with_sources();
    folder.done("synth --out long --image-size 32 --source-train 3000 --target-train 3000 --val 16 --test 16");
    folder.source("deep", "texture", "--architecture resnet50");
    let before = folder.snapshot();
    // An epoch of three thousand steps of fifty layers lies between the line and what may not happen.
    let train = "train --from deep.safetensors --new-head --data long/texture.npz --batch-size 1 --out out";
    let run = folder.start_until(train, "the head is new").interrupt();
    assert_failed(&run, &["error: interrupted"]);
    assert!(!run.stderr.contains("hint"), "{}", run.stderr);
    assert_eq!(folder.snapshot(), before);
}

#[test]
fn an_interrupt_later_leaves_the_last_good_checkpoint() {
    let folder = Folder::with_sources();
    let train = "train --from texture.safetensors --data data/texture.npz --epochs 1000000 -v --out out";
    // The line of the second epoch comes after the first epoch's checkpoint.
    let run = folder.start_until(train, "epoch 2,").interrupt();
    assert_failed(&run, &["error: interrupted", "hint: the last good checkpoint is out"]);
    folder.done("eval --model out --data data/texture.npz");
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

/// Killed as many times as it takes to end, a run comes to the same bytes as one that was left alone.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    resume(&Folder::with_sources(), "--batch-size 8 --device cpu");
}

/// The scale of the loss is part of the state.
#[cfg(feature = "emulator")]
#[test]
fn a_resumed_run_equals_an_uninterrupted_one_on_the_emulator() {
    let folder = Folder::with_sources();
    // Two steps in an epoch.
    folder.done("synth --out data --force --image-size 16 --source-train 16 --target-train 16 --val 4 --test 4");
    resume(&folder, "--batch-size 8 --device emulator --precision f16");
}

/// Interrupted at an epoch's line, a run gets to the line after the next at most: so the second time is behind the first,
/// and the end behind both.
fn resume(folder: &Folder, how: &str) {
    let (epochs, interrupts) = (6, [1, 3]);
    for optimizer in ["sgd", "adamw"] {
        let train = format!(
            "train --from texture.safetensors --data data/texture.npz --epochs {epochs} --optimizer {optimizer} \
             --flip --shift 1 {how} -v --out"
        );
        folder.done(&format!("{train} whole --force"));
        let parts = format!("{train} parts --resume");
        for epoch in interrupts {
            let run = folder.start_until(&parts, &format!("epoch {epoch},")).interrupt();
            assert_failed(&run, &["error: interrupted"]);
            assert!(folder.path("parts.resume.safetensors").exists());
        }
        // The state is this run's alone.
        let other = folder.run(&parts.replace("--shift 1", "--shift 2"));
        assert!(other.code == Some(2) && other.stderr.contains("the state of another run"), "{}", other.stderr);
        let last = folder.run(&parts);
        assert_eq!(last.code, Some(0), "{}", last.stderr);
        assert!(last.stderr.contains("continuing from") && !last.stderr.contains("epoch 1,"), "{}", last.stderr);
        assert_eq!(folder.bytes("whole"), folder.bytes("parts"), "{optimizer}");
        let [whole, in_parts] =
            ["whole", "parts"].map(|name| without_seconds(&folder.text(&format!("{name}.log.csv"))));
        assert!(whole == in_parts && whole.len() == 1 + epochs, "{in_parts:#?}");
        assert!(!folder.path("parts.resume.safetensors").exists());
        for name in ["parts", "parts.log.csv"] {
            std::fs::remove_file(folder.path(name)).unwrap();
        }
    }
}

/// The rows of a log of epochs, but for what each took.
fn without_seconds(log: &str) -> Vec<String> {
    log.lines().map(|line| line.rsplit_once(',').unwrap().0.to_string()).collect()
}

#[test]
fn an_interrupt_of_learning_leaves_the_log_of_its_epochs_alone() {
    let folder = Folder::with_sources();
    let before = folder.snapshot();
    let models = "--models texture.safetensors shape.safetensors --data data/target.npz";
    // Choosing the anchor, and learning.
    for anchor in ["auto", "0"] {
        let learn = format!("learn {models} --anchor {anchor} --epochs 1000000 -v --out out --picture picture.svg");
        let run = folder.start_until(&learn, "epoch 2,").interrupt();
        assert_failed(&run, &["error: interrupted"]);
        let log = folder.text("out.log.csv");
        let phase = if anchor == "auto" { "linear probe of texture.safetensors" } else { "learning merge weights" };
        assert!(log.lines().nth(1).unwrap().starts_with(&format!("{phase},1,")), "{log}");
        assert!(log.lines().count() > 2 && log.ends_with('\n'), "{log}");
        std::fs::remove_file(folder.path("out.log.csv")).unwrap();
        assert_eq!(folder.snapshot(), before);
    }
}
