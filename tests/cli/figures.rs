//! What is printed holds for the file that was written, and what has no number is no result.

use medmerge::checkpoint::Numbers;
use serde_json::Value;

use crate::support::{Folder, Run, assert_refused, case, floats};

const TWO: &str = "--models texture.safetensors shape.safetensors";

fn macro_f1(folder: &Folder, model: &str, data: &str, batch_size: usize) -> f64 {
    let eval = format!("eval --model {model} --data {data} --split val --batch-size {batch_size}");
    folder.json(&eval)["metrics"]["macro_f1"].as_f64().unwrap()
}

/// The best macro F1 of a run's epochs.
fn best(epochs: &Value) -> f64 {
    epochs.as_array().unwrap().iter().map(|epoch| epoch["val_macro_f1"].as_f64().unwrap()).fold(0.0, f64::max)
}

fn assert_failed(run: &Run, says: &[&str]) {
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", run.stderr);
    says.iter().for_each(|text| assert!(run.stderr.contains(text), "does not say '{text}':\n{}", run.stderr));
}

#[test]
fn what_learning_prints_is_what_eval_gives_for_the_file() {
    let folder = Folder::with_sources();
    // Started halfway, so that the statistics of learning are far from those of the blend.
    let learn = format!(
        "learn {TWO} --data data/target.npz --epochs 3 --batch-size 8 --anchor 0 --start 0.5 --learning-rate 0.02 --force"
    );
    for more in ["", "--keep-statistics", "--granularity kernel"] {
        let result = folder.json(&format!("{learn} --out merged.safetensors {more}"));
        assert_eq!(best(&result["epochs"]), macro_f1(&folder, "merged.safetensors", "data/target.npz", 8), "{more}");
        let from = &folder.json("inspect merged.safetensors")["metadata"]["medmerge.statistics"];
        assert_eq!(from, if more == "--keep-statistics" { "anchor" } else { "reestimate" });
    }
    let printed = folder.done(&format!("{learn} --out merged.safetensors"));
    let f1 = macro_f1(&folder, "merged.safetensors", "data/target.npz", 8);
    assert!(printed.contains(&format!("best validation macro F1 {f1:.4}")), "{f1}: {printed}");
}

#[test]
fn the_anchor_is_chosen_by_the_figures_that_are_shown() {
    let folder = Folder::with_sources();
    let how = "--data data/target.npz --epochs 3 --batch-size 8 --learning-rate 0.02";
    let run = folder.run(&format!("learn {TWO} {how} --out merged.safetensors -v --json"));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let result: Value = serde_json::from_str(&run.stdout).unwrap();
    let scores: Vec<f64> = result["anchor_scores"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    for (index, name) in ["texture", "shape"].into_iter().enumerate() {
        let lines =
            run.stderr.lines().filter(|line| line.starts_with(&format!("linear probe of {name}.safetensors: epoch ")));
        let shown: Vec<&str> = lines.filter_map(|line| line.split("macro F1 ").nth(1)?.split(',').next()).collect();
        assert_eq!(shown.len(), 3, "{}", run.stderr);
        assert!(shown.contains(&format!("{:.4}", scores[index]).as_str()), "{name}: {shown:?} and {scores:?}");
        // The same as a linear probe by `train`, and what is in that file.
        let probe = format!("train --from {name}.safetensors --new-head --head-only {how} --out {name}-probe");
        let trained = folder.json(&probe);
        assert_eq!(best(&trained["epochs"]), scores[index], "{name}");
        assert_eq!(macro_f1(&folder, &format!("{name}-probe"), "data/target.npz", 8), scores[index], "{name}");
    }
    let better = if scores[1] > scores[0] { "shape.safetensors" } else { "texture.safetensors" };
    assert_eq!(result["anchor"], better);
    // It says which start is the better one, by these very figures.
    let start = if scores[0].max(scores[1]) > best(&result["epochs"]) { better } else { "merged.safetensors" };
    assert_eq!(result["start"], start);
    let printed = folder.done(&format!("learn {TWO} {how} --out merged.safetensors --force"));
    assert!(printed.contains(&format!("next: medmerge train --from {start} ")), "{printed}");
    let says = if start == better { "merging has not helped" } else { "no linear probe of a source is better" };
    assert!(printed.contains(says), "{printed}");
}

#[test]
fn a_linear_probe_leaves_all_but_the_head_as_it_was() {
    let folder = Folder::with_sources();
    let probe =
        "train --from texture.safetensors --head-only --data data/texture.npz --batch-size 8 --epochs 2 --out probe";
    folder.done(probe);
    let (before, after) = (floats(&folder, "texture.safetensors"), floats(&folder, "probe"));
    assert_eq!(before.len(), after.len());
    for (name, values) in &before {
        assert_eq!(values != &after[name], name.starts_with("fc."), "{name}");
    }
    let counter = |file: &str| {
        let file = medmerge::checkpoint::TensorFile::read(&folder.path(file)).unwrap();
        file.integer("bn1.num_batches_tracked").unwrap()
    };
    assert_eq!(counter("texture.safetensors"), counter("probe"));
}

#[test]
fn scores_that_are_no_numbers_are_no_result() {
    let folder = Folder::with_sources();
    // Finite, every one of them, until they are added up.
    folder.rewrite("texture.safetensors", "huge", |file| {
        for name in ["fc.weight", "fc.bias"] {
            let Numbers::Floats(values) = &mut file.tensors.get_mut(name).unwrap().numbers else { panic!("floats") };
            values.fill(3e38);
        }
    });
    let before = folder.snapshot();
    let says = &["the score of class 0 for image ", "of the test split is ", "hint: "];
    for verb in ["eval", "predict --out scores.csv", "predict --logits --out scores.csv"] {
        assert_failed(&folder.run(&format!("{verb} --model huge --data data/texture.npz")), says);
    }
    // A network that its own reader would refuse is not written either.
    let merge = format!("merge {TWO} --out merged");
    let says = &["merged was not written: ", "holds NaN or infinity"];
    assert_failed(&folder.run(&format!("{merge} --coefficients=3e38,3e38")), says);
    assert_failed(&folder.run(&format!("{merge} --coefficients=3e38,3e38 --data data/texture.npz")), says);
    let negative = folder.run(&format!("{merge} --coefficients=-1,-1"));
    assert_eq!(negative.code, Some(0), "running statistics are the anchor's: {}", negative.stderr);
    std::fs::remove_file(folder.path("merged")).unwrap();
    let train = "train --from huge --data data/texture.npz --batch-size 16 --epochs 1 --out merged";
    assert_failed(&folder.run(train), &["the loss became"]);
    assert_eq!(folder.snapshot(), before);
    assert_refused(&folder, &[case("beyond f32", format!("{merge} --coefficients=1e39,1"), &["1e39"])]);
}

#[test]
fn one_value_per_channel_has_no_variance() {
    let folder = Folder::new();
    folder.data("data", "");
    folder.done("synth --out one --image-size 16 --source-train 9 --target-train 17 --val 4 --test 4");
    // Sixteen pixels become one through four strides.
    let how = "--architecture resnet18 --stem 7x7 --width 4 --epochs 1 --out net.safetensors";
    let says = &["leaves a batch norm one value per channel", "--batch-size"];
    assert_refused(&folder, &[case("batch of one", format!("train --data one/shape.npz {how} --batch-size 1"), says)]);
    // A last image on its own is left out of both passes.
    folder.done(&format!("train --data one/shape.npz {how} --batch-size 4"));
    folder
        .done(&format!("train --data data/shape.npz --seed 1 {} --batch-size 4", how.replace("net.safe", "two.safe")));
    let merge = "merge --models net.safetensors two.safetensors --coefficients 0.5,0.5";
    folder.done(&format!("{merge} --data one/target.npz --out merged"));
    // Where the smallest layer has several pixels, one image is enough.
    folder.done("train --data one/shape.npz --architecture resnet8 --width 4 --epochs 1 --batch-size 1 --out small");
}

#[test]
fn heads_are_merged_only_where_there_are_as_many_of_one_kind() {
    let folder = Folder::with_sources();
    folder.rewrite("shape.safetensors", "headless.safetensors", |file| {
        file.tensors.remove("fc.weight");
        file.tensors.remove("fc.bias");
    });
    folder.source("sixteen", "target", "--architecture resnet8 --width 4");
    let merge = |models: &str, out: &str| {
        let models: Vec<String> = models.split(' ').map(|name| format!("{name}.safetensors")).collect();
        let run = folder.run(&format!("merge --models {} --coefficients 0.5,0.5 --out {out}", models.join(" ")));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run
    };
    let run = merge("texture headless", "kept");
    let told = "the anchor's classifier is kept: texture.safetensors tells 4 classes apart, headless.safetensors has no classifier";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    assert_eq!(floats(&folder, "kept")["fc.weight"], floats(&folder, "texture.safetensors")["fc.weight"]);
    let run = merge("texture sixteen", "kept16");
    assert!(run.stderr.contains("tells 4 classes apart, sixteen.safetensors tells 16 classes apart"), "{}", run.stderr);
    // Nothing is invented where the anchor has no head.
    let run = merge("headless texture", "none");
    assert!(run.stderr.contains("the merged network has no classifier, because headless.safetensors has none"));
    assert!(run.stdout.contains("no classifier"), "{}", run.stdout);
    assert!(!floats(&folder, "none").contains_key("fc.weight"));
    assert!(folder.done("inspect none").contains("no head"));
    let run = merge("headless headless", "none2");
    assert!(run.stderr.contains("no classifier"), "{}", run.stderr);
    // And it goes on as any headless network does.
    folder.done("train --from none --data data/target.npz --epochs 1 --batch-size 16 --out tuned");
}

#[test]
fn a_state_that_was_altered_is_not_continued() {
    let folder = Folder::with_sources();
    let train = "train --from texture.safetensors --data data/texture.npz --epochs 1000000 --batch-size 8 --resume -v --out out";
    let run = folder.start_until(train, "epoch 2,").interrupt();
    assert_failed(&run, &["error: interrupted"]);
    let state = "out.resume.safetensors";
    let whole = folder.bytes(state);
    let altered = |change: &dyn Fn(&mut medmerge::checkpoint::TensorFile)| {
        folder.write("copy", &whole);
        std::fs::remove_file(folder.path(state)).unwrap();
        folder.rewrite("copy", state, change);
        assert_refused(&folder, &[case("altered", train, &["it was altered since it was written", "delete it"])]);
    };
    altered(&|file| {
        let Numbers::Floats(values) = &mut file.tensors.get_mut("model.trunk").unwrap().numbers else {
            panic!("floats")
        };
        values[0] += 1.0;
    });
    altered(&|file| {
        let steps = file.metadata["steps"].parse::<usize>().unwrap() + 1;
        file.metadata.insert("steps".into(), steps.to_string());
    });
    // A network that has come in the meantime is not the interrupted run's.
    let interrupted = folder.bytes("out");
    folder.write(state, &whole);
    folder.write("out", folder.bytes("shape.safetensors"));
    assert_refused(&folder, &[case("another network", train, &["out already exists", "--force"])]);
    folder.write("out", interrupted);
    // Options that were changed are named, with what they were.
    folder.write(state, &whole);
    let changed = train.replace("--batch-size 8", "--batch-size 4 --flip --learning-rate 0.5");
    let says = &[
        "it is the state of another run",
        "--batch-size was 8 and is 4",
        "--flip was false and is true",
        "--learning-rate was 0.001 and is 0.5",
    ];
    assert_refused(&folder, &[case("changed", changed, says)]);
    let other_data = train.replace("data/texture.npz", "data/shape.npz");
    assert_refused(&folder, &[case("other data", other_data, &["the content of --data is another"])]);
}
