//! `compare`: what it leaves, how it continues, what it refuses.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case, program};

const COMPARE: &str = "compare --models texture.safetensors shape.safetensors --data data/target.npz --batch-size 8 \
                       --epochs 1 --probe-epochs 1 --learning-rates 1e-2,1e-3 --seeds 2";

fn run_of(folder: &Folder, name: &str, seed: u64) -> Value {
    let mut run: Value = serde_json::from_str(&folder.text(&format!("compared/runs/{name}/{seed}.json"))).unwrap();
    for stage in run["stages"].as_array_mut().unwrap() {
        stage["seconds"] = Value::Null;
    }
    run
}

#[test]
fn recipes_are_run_and_compared_and_more_are_added() {
    let folder = Folder::with_sources();
    let recipes = "--recipes lp-ft:source=0 lp-ft:source=1 linear greedy-soup";
    let plan = folder.json(&format!("{COMPARE} {recipes} --out compared --dry-run"));
    assert_eq!((plan["seeds"].as_u64(), plan["done"].as_u64()), (Some(2), Some(0)));
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);
    assert!(!folder.path("compared").exists());
    let result = folder.json(&format!("{COMPARE} {recipes} --out compared"));
    let rows = result["summary"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    let best = &result["summary"]["best"];
    assert!(best[0].as_str().unwrap().starts_with("lp-ft:") && best[1].as_str().unwrap().starts_with("lp-ft:"));
    for row in rows {
        let (label, tuned) = (row["label"].as_str().unwrap(), &row["tuned"]);
        assert_eq!(tuned["macro_f1"]["count"], 2, "{label}");
        assert_eq!(tuned["difference"].is_null(), label == best[1], "{label}");
        assert_eq!(row["frozen"].is_null(), label == "greedy-soup", "{label}");
    }
    // What one run says is what the same steps by hand say: the linear probe of a source, by train and eval.
    let probe =
        "train --from shape.safetensors --new-head --head-only --data data/target.npz --batch-size 8 --epochs 1";
    folder.done(&format!("{probe} --seed 1 --out probe.safetensors"));
    let by_hand = folder.json("eval --model probe.safetensors --data data/target.npz")["metrics"]["macro_f1"].clone();
    assert_eq!(run_of(&folder, "lp-ft_source-1", 1)["stages"][0]["test"]["macro_f1"], by_hand);
    let tune = "train --from probe.safetensors --data data/target.npz --batch-size 8 --epochs 1 --learning-rate 1e-2";
    folder.done(&format!("{tune} --seed 1 --out tuned.safetensors"));
    let by_hand = folder.json("eval --model tuned.safetensors --data data/target.npz")["metrics"]["macro_f1"].clone();
    assert_eq!(run_of(&folder, "lp-ft_source-1", 1)["stages"][1]["test"]["macro_f1"], by_hand);

    // One more recipe and seed: what is there stays; beside each other they give the same figures.
    let before = folder.bytes("compared/runs/linear/0.json");
    let more = "--recipes usual --seeds 3 --jobs 2 --threads 2";
    let run = folder.run(&format!("{} {more} --out compared", COMPARE.replace("--seeds 2", "")));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(folder.bytes("compared/runs/linear/0.json"), before);
    let runs = ["medmerge", "ensemble", "greedy-soup", "medmerge_granularity-kernel_start-0.5"]
        .map(|name| run_of(&folder, name, 2));
    std::fs::remove_dir_all(folder.path("compared/runs")).unwrap();
    folder.done(&format!(
        "{} --recipes usual --seeds 1 --seed 2 --threads 1 --out compared",
        COMPARE.replace("--seeds 2", "")
    ));
    let again = ["medmerge", "ensemble", "greedy-soup", "medmerge_granularity-kernel_start-0.5"]
        .map(|name| run_of(&folder, name, 2));
    assert_eq!(runs, again);
    assert!(folder.text("compared/table.md").contains("| ensemble"));
    assert!(folder.text("compared/table.csv").contains("\"linear\",fine-tuned,"));
}

#[test]
fn recipes_with_options_are_what_the_same_options_of_other_verbs_make() {
    let folder = Folder::with_sources();
    let recipes = "lp-ft:source=1 medmerge:start=0,anchor=0 medmerge:start=0.5,anchor=0 medmerge:start=0/0.5,anchor=0 \
                   medmerge:start=0.5,anchor=0,learn-on=0.02 lp-ft:source=1,l2-sp=20,ema=0.5 lp-ft:source=1,distill=2 medmerge:start=0.5,anchor=0,distill=2 \
                   medmerge:start=0.5,anchor=0,ema=0.5 rescale:source=1 rescale:source=1,granularity=filter";
    let compare =
        COMPARE.replace("--epochs 1 --probe-epochs 1", "--epochs 3 --probe-epochs 3").replace("--seeds 2", "");
    folder.done(&format!("{compare} --seeds 1 --seed 1 --recipes {recipes} --out compared"));
    let of = |name: &str| run_of(&folder, name, 1);
    let score = |run: &Value| {
        let curve = run["stages"][0]["val_macro_f1"].as_array().unwrap().clone();
        curve.iter().filter_map(Value::as_f64).fold(0.0, f64::max)
    };
    let (zero, half, both) =
        (of("medmerge_anchor-0"), of("medmerge_start-0.5_anchor-0"), of("medmerge_start-0_0.5_anchor-0"));
    assert_ne!(zero["stages"], half["stages"]);
    let better = if score(&half) > score(&zero) { &half } else { &zero };
    assert_eq!(both["stages"], better["stages"]);
    // One source by itself, with numbers of its own for each kernel or filter, which lets it learn more than its probe does.
    let [kernels, filters] = ["", "_granularity-filter"].map(|more| of(&format!("rescale_source-1{more}")));
    let losses = |run: &Value| run["stages"][0]["train_loss"].as_array().unwrap().clone();
    assert_ne!(losses(&kernels), losses(&filters));
    assert_ne!(losses(&kernels), losses(&of("lp-ft_source-1_l2-sp-20_ema-0.5")));
    // The same options by hand.
    let options = "--data data/target.npz --batch-size 8 --epochs 3 --seed 1";
    let sources = "--models texture.safetensors shape.safetensors";
    // Accuracy, macro F1 and AUC: ranks tell networks apart that answer alike.
    let figures = |metrics: &Value| ["accuracy", "macro_f1", "auc"].map(|name| metrics[name].clone());
    let by_hand = |file: &str| figures(&folder.json(&format!("eval --model {file} --data data/target.npz"))["metrics"]);
    let tested = |run: &Value, stage: usize| figures(&run["stages"][stage]["test"]);
    folder.done(&format!("learn {sources} {options} --granularity filter --anchor 0 --start 0.5 --out w"));
    assert_eq!(by_hand("w"), tested(&half, 0));
    let tune = format!("train {options} --learning-rate 1e-2");
    folder.done(&format!("{tune} --weights w.weights.safetensors {sources} --merge-learning-rate 0.02 --out on"));
    let on = of("medmerge_start-0.5_anchor-0_learn-on-0.02");
    assert_eq!(by_hand("on"), tested(&on, 1));
    folder.done(&format!("{tune} --from w --ema 0.5 --out averaged"));
    let averaged = of("medmerge_start-0.5_anchor-0_ema-0.5");
    assert_eq!(by_hand("averaged"), tested(&averaged, 1));
    folder.done(&format!("train {options} --from shape.safetensors --new-head --head-only --out probe"));
    folder.done(&format!("{tune} --from probe --l2-sp 20 --ema 0.5 --out pulled"));
    let pulled = of("lp-ft_source-1_l2-sp-20_ema-0.5");
    assert_eq!(by_hand("pulled"), tested(&pulled, 1));
    let teachers = "--distill 2 --teachers";
    folder.done(&format!("{tune} --from probe {teachers} shape.safetensors --out distilled"));
    assert_eq!(by_hand("distilled"), tested(&of("lp-ft_source-1_distill-2"), 1));
    folder.done(&format!("{tune} --from w {teachers} texture.safetensors shape.safetensors --out of-both"));
    assert_eq!(by_hand("of-both"), tested(&of("medmerge_start-0.5_anchor-0_distill-2"), 1));
    assert_ne!(
        of("lp-ft_source-1_distill-2")["stages"][1]["train_loss"],
        of("lp-ft_source-1")["stages"][1]["train_loss"]
    );
    // And each does something.
    assert!(tested(&half, 1) != tested(&averaged, 1) && tested(&half, 1) != tested(&on, 1));
    assert_ne!(pulled["stages"][1]["train_loss"], of("lp-ft_source-1")["stages"][1]["train_loss"]);
    let too_much = format!("{compare} --seeds 1 --recipes lp-ft:source=1,l2-sp=1000 --out x");
    assert_refused(&folder, &[case("too much", too_much, &["--l2-sp 1000 with --learning-rate 0.01"])]);
}

#[test]
fn a_comparison_that_was_stopped_continues() {
    let folder = Folder::with_sources();
    let compare = COMPARE.replace("--epochs 1 ", "--epochs 40 ");
    let compare = format!("{compare} --recipes scratch fine-tune:source=0 --out compared");
    let stopped = folder.start_until(&compare, "seed 0  scratch").interrupt();
    assert_eq!(stopped.code, Some(1), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("the same command continues"), "{}", stopped.stderr);
    assert!(folder.path("compared/runs/scratch/0.json").exists());
    let kept = folder.bytes("compared/runs/scratch/0.json");
    let result = folder.json(&compare);
    assert_eq!(result["summary"]["rows"].as_array().unwrap().len(), 2);
    assert_eq!(folder.bytes("compared/runs/scratch/0.json"), kept);
}

/// The script that repeats the paper's comparison, with drawn images in the place of its data.
#[test]
fn the_papers_comparison_can_be_rehearsed() {
    let folder = Folder::new();
    folder.data("data", "--image-size 32 --channels 3");
    for (name, file) in [("texture", "eyepacs_32.npz"), ("target", "aptos2019_32.npz")] {
        std::fs::copy(folder.path(&format!("data/{name}.npz")), folder.path(file)).unwrap();
    }
    folder.source("imagenet_resnet8", "shape", "--architecture resnet8");
    std::fs::rename(folder.path("imagenet_resnet8.safetensors"), folder.path("imagenet_resnet8.pth")).unwrap();
    let rehearse = |pair: &str| {
        let mut command = std::process::Command::new("bash");
        command.arg("docs/paper.sh").arg(program()).arg(folder.path("")).args([pair, "--dry-run"]);
        command.env("WORK", folder.path("work")).envs([("SIZE", "32"), ("ARCHITECTURE", "resnet8"), ("DEVICE", "cpu")]);
        command.env("SOURCE_EPOCHS", "1").output().unwrap()
    };
    let output = rehearse("aptos");
    let [told, noted] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{noted}");
    assert!(told.contains("medmerge:granularity=kernel,start=0.5,align=activations"), "{told}");
    assert!(told.contains("13 recipes × 3 seeds: 39 runs, 0 of them done"), "{told}");
    assert!(folder.path("work/eyepacs_resnet8.safetensors").exists());
    assert_eq!(rehearse("isics").status.code(), Some(2));
}

#[test]
fn training_images_are_drawn_by_the_seed() {
    let folder = Folder::with_sources();
    // With all 32 drawn, they are as they were; with 20 they are others, for the same seed.
    let losses = |more: &str, out: &str| -> Vec<Value> {
        folder.done(&format!("{COMPARE} --recipes scratch {more} --out {out}"));
        [0, 1]
            .map(|seed| {
                let text = folder.text(&format!("{out}/runs/scratch/{seed}.json"));
                serde_json::from_str::<Value>(&text).unwrap()["stages"][0]["train_loss"].clone()
            })
            .to_vec()
    };
    let all = losses("", "whole");
    assert_eq!(losses("--train-images 32", "drawn"), all);
    assert_ne!(losses("--train-images 20", "few"), all);
    assert_refused(
        &folder,
        &[
            case(
                "another",
                format!("{COMPARE} --recipes scratch --train-images 21 --out few"),
                &["another number of --train-images"],
            ),
            case("too many", format!("{COMPARE} --train-images 4000 --out x"), &["--train-images 4000 of"]),
            case(
                "misspelt",
                format!("{COMPARE} --recipes medmrge --out x"),
                &["unknown recipe 'medmrge'", "'medmerge'"],
            ),
            case(
                "a corner, before anything runs",
                format!("{COMPARE} --recipes scratch medmerge:constraint=simplex,start=0.5/0 --out x"),
                &["--start 0 with --constraint simplex"],
            ),
            case(
                "layers first",
                format!("{COMPARE} --recipes scratch medmerge:granularity=layer,start=layer,probe-epochs=2 --out x"),
                &["--start layer with --granularity layer"],
            ),
            case("no value", format!("{COMPARE} --recipes lp-ft --out x"), &["of which source?"]),
            case("beyond", format!("{COMPARE} --recipes lp-ft:source=2 --out x"), &["there is no source 2 of 2"]),
            case(
                "a base",
                format!("{COMPARE} --recipes ties --out x"),
                &["needs the network that the sources were trained from"],
            ),
            case("no seeds", format!("{} --seeds 0 --out x", COMPARE.replace("--seeds 2", "")), &["without seeds"]),
            case("a folder of others", format!("{COMPARE} --out data"), &["data already exists"]),
        ],
    );
}

/// By the GPU's kernels; a single source is merged too.
#[cfg(feature = "emulator")]
#[test]
fn a_single_source_is_rescaled_by_the_kernels_as_on_the_cpu() {
    let folder = Folder::with_sources();
    let compare = "compare --models texture.safetensors shape.safetensors --data data/target.npz --batch-size 8 --epochs 1 \
                   --probe-epochs 1 --learning-rates 1e-4 --seeds 1 --recipes rescale:source=1";
    let [cpu, ours] = ["cpu", "emulator"].map(|device| {
        folder.done(&format!("{compare} --device {device} --out {device}"));
        let text = folder.text(&format!("{device}/runs/rescale_source-1/0.json"));
        let losses = serde_json::from_str::<Value>(&text).unwrap()["stages"][1]["train_loss"].clone();
        losses.as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(cpu.len(), 2);
    assert!(cpu.iter().zip(&ours).all(|(cpu, ours)| (cpu - ours).abs() < 1e-3), "{cpu:?} {ours:?}");
}

#[test]
fn recipes_may_stand_in_a_file() {
    let folder = Folder::with_sources();
    std::fs::write(folder.path("recipes.txt"), "# of one source\nlp-ft:source=0   # the first\n\nscratch\n").unwrap();
    std::fs::write(folder.path("none.txt"), "# nothing\n").unwrap();
    let recipes = |asked: &str| {
        let plan = folder.json(&format!("{COMPARE} --out compared --dry-run --recipes {asked}"));
        plan["passes"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(recipes("linear @recipes.txt scratch"), ["linear", "lp-ft:source=0", "scratch"]);
    let of = |file: &str| format!("{COMPARE} --out x --recipes @{file}");
    assert_refused(
        &folder,
        &[case("empty", of("none.txt"), &["no recipe in none.txt"]), case("nowhere", of("away.txt"), &["away.txt"])],
    );
}

/// Fewer seeds side by side, the same figures.
#[test]
fn seeds_run_side_by_side_where_there_is_memory() {
    let folder = Folder::with_sources();
    folder.data("large", "--image-size 128");
    let compare = COMPARE.replace("data/target.npz --batch-size 8", "large/target.npz --batch-size 32");
    let compare = format!("{compare} --recipes fine-tune:source=0 --threads 1 --out compared");
    let files = || {
        [0, 1].map(|seed| {
            let mut run = run_of(&folder, "fine-tune_source-0", seed);
            run["seconds"] = Value::Null;
            run
        })
    };
    folder.done(&format!("{compare} --jobs 2"));
    let expected = files();
    // Where memory is enough for one, not for two; with less it ends in a line, with more there is nothing to say.
    let told = (360..700).step_by(20).find(|megabytes| {
        std::fs::remove_dir_all(folder.path("compared")).ok();
        let run = folder.run_within(1000 * megabytes, &format!("{compare} --jobs 2"));
        run.code == Some(0) && run.stderr.contains("1 of 2 seeds side by side")
    });
    assert!(told.is_some(), "no limit at which one of two runs");
    assert_eq!(files(), expected);
}
