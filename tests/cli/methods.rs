//! Merging by methods that learn no merge weights: what they write, and what they refuse.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, scores};

const MERGE: &str = "merge --models texture.safetensors shape.safetensors";

/// Sources of two origins, and a network that was the origin of none.
fn with_origins() -> Folder {
    let folder = Folder::new();
    folder.data("data", "");
    for (seed, name) in [(1, "texture"), (2, "shape"), (3, "base")] {
        let task = if name == "base" { "shape" } else { name };
        folder.source(name, task, &format!("--architecture resnet8 --width 4 --seed {seed}"));
    }
    folder
}

fn header(folder: &Folder, file: &str) -> Value {
    folder.json(&format!("inspect {file}"))["metadata"].clone()
}

#[test]
fn a_list_tells_of_every_method() {
    let folder = Folder::new();
    let text = folder.done("merge --method list");
    let list = folder.json("merge --method list");
    let methods = list["methods"].as_array().unwrap();
    for name in [
        "linear",
        "task-arithmetic",
        "ties",
        "dare-linear",
        "dare-ties",
        "slerp",
        "greedy-soup",
        "fisher",
        "regmean",
        "zipit",
        "pleas",
        "ensemble",
    ] {
        let method = methods.iter().find(|method| method["name"] == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(method["about"].as_array().unwrap().len(), 2, "{name}");
        assert!(text.contains(method["citation"].as_str().unwrap()), "{name}");
    }
    assert!(text.contains("learned on the target"));
}

#[test]
fn without_a_method_coefficients_are_a_linear_merge() {
    let folder = with_origins();
    folder.done(&format!("{MERGE} --coefficients 0.5,0.5 --out plain.safetensors"));
    folder.done(&format!("{MERGE} --method linear --out named.safetensors"));
    assert_eq!(folder.bytes("plain.safetensors"), folder.bytes("named.safetensors"));
    assert_eq!(header(&folder, "plain.safetensors")["medmerge.method"], "coefficients");
    let by_layer = "--coefficients-for layer3=0:1,1:0 --coefficients-for layer1=0,1";
    folder.done(&format!("{MERGE} --coefficients 0.5,0.5 {by_layer} --out layers.safetensors --card"));
    let [merged, shape] = ["layers.safetensors", "shape.safetensors"].map(|file| floats(&folder, file));
    assert_eq!(merged["layer1.0.conv2.weight"], shape["layer1.0.conv2.weight"]);
    assert_ne!(merged["layer2.0.conv2.weight"], shape["layer2.0.conv2.weight"]);
    let record = r#"[{"filter":"layer3","values":[[0.0,1.0],[1.0,0.0]]},{"filter":"layer1","values":[[0.0],[1.0]]}]"#;
    assert_eq!(header(&folder, "layers.safetensors")["medmerge.coefficients_for"], record);
    assert!(folder.text("layers.md").contains("coefficients"));
}

#[test]
fn a_header_says_by_which_method_and_numbers() {
    let folder = with_origins();
    let ties =
        format!("{MERGE} --method ties --base base.safetensors --density 0.3 --scale 0.8 --out ties.safetensors");
    folder.done(&ties);
    let of_ties = header(&folder, "ties.safetensors");
    let heads = ["texture", "shape", "ties"].map(|file| floats(&folder, &format!("{file}.safetensors")));
    for name in heads[0].keys().filter(|name| name.starts_with("fc.")) {
        // Heads have no base: they are averaged, not summed.
        let [a, b, merged] = heads.each_ref().map(|floats| &floats[name]);
        assert!((0..a.len()).all(|at| ((a[at] + b[at]) / 2.0 - merged[at]).abs() < 1e-6), "{name}");
    }
    for (key, value) in [("method", "ties"), ("density", "0.3"), ("scale", "0.8"), ("coefficients", "[1.0,1.0]")] {
        assert_eq!(of_ties[format!("medmerge.{key}")], value, "{key}");
    }
    let dare = format!("{MERGE} --method dare-linear --base base.safetensors");
    let drawn = |seed: usize, out: &str, threads: usize| {
        folder.done(&format!("{dare} --seed {seed} --threads {threads} --out {out}.safetensors"));
        folder.bytes(&format!("{out}.safetensors"))
    };
    let first = drawn(1, "one", 1);
    assert!(first == drawn(1, "two", 2) && first != drawn(2, "three", 1));
    let seed = u64::MAX - 1;
    folder.done(&format!("{dare} --seed {seed} --out long.safetensors"));
    assert_eq!(header(&folder, "long.safetensors")["medmerge.seed"], seed.to_string());
    folder.done(&format!("{MERGE} --method slerp --t 0 --out slerp.safetensors"));
    assert_eq!(header(&folder, "slerp.safetensors").get("medmerge.coefficients"), None);
    assert_eq!(
        floats(&folder, "slerp.safetensors")["conv1.weight"],
        floats(&folder, "texture.safetensors")["conv1.weight"]
    );
}

#[test]
fn a_header_says_where_statistics_come_from() {
    let folder = with_origins();
    let merge = format!("{MERGE} --coefficients 0.5,0.5");
    for (name, more) in [
        ("anchor", ""),
        ("rescale", "--statistics rescale"),
        ("reestimate", "--data data/target.npz"),
        ("kept", "--data data/target.npz --statistics anchor --align activations"),
    ] {
        folder.done(&format!("{merge} {more} --out {name}.safetensors"));
        let expected = if name == "kept" { "anchor" } else { name };
        assert_eq!(header(&folder, &format!("{name}.safetensors"))["medmerge.statistics"], expected);
    }
    let variances = |name: &str| floats(&folder, &format!("{name}.safetensors"))["layer1.0.bn1.running_var"].clone();
    assert_eq!(variances("anchor"), variances("texture"));
    assert_eq!(variances("kept"), variances("texture"));
    // Filters of two origins: their average varies less than either.
    let [rescaled, texture, shape] = ["rescale", "texture", "shape"].map(variances);
    let largest = texture.iter().zip(&shape).map(|(a, b)| a.max(*b));
    assert!(rescaled.iter().zip(largest).all(|(rescaled, largest)| *rescaled > 0.0 && *rescaled < largest));
    folder.data("larger", "--image-size 32");
    for seed in [1, 2] {
        let train = "train --data larger/shape.npz --architecture vgg11 --width 2 --epochs 1 --batch-size 16";
        folder.done(&format!("{train} --seed {seed} --out vgg{seed}.safetensors"));
    }
    assert_refused(
        &folder,
        &[
            case(
                "no norms",
                "merge --models vgg1.safetensors vgg2.safetensors --method linear --statistics rescale --out x.safetensors",
                &["vgg11 (width 2) has no batch norms"],
            ),
            case("no images", format!("{merge} --statistics reestimate --out x.safetensors"), &["needs images"]),
            case(
                "not linear",
                format!("{MERGE} --method slerp --statistics rescale --out x.safetensors"),
                &["knows what a linear merge does, not slerp"],
            ),
        ],
    );
}

/// Two sources that are one network: whatever units are paired by, and weights fitted to, on the images that decide it is what
/// their average is. (ZipIt pairs units of one source too where they say the same; elsewhere they may differ.)
#[test]
fn a_network_merged_with_itself_by_images_is_itself() {
    let folder = with_origins();
    folder.write("copy.safetensors", folder.bytes("texture.safetensors"));
    let logits = |method: &str| {
        let merge = format!("merge --models texture.safetensors copy.safetensors --method {method}");
        folder.done(&format!("{merge} --data data/texture.npz --out {method}.safetensors"));
        let predict = format!("predict --model {method}.safetensors --data data/texture.npz --split train");
        scores(&folder.done(&format!("{predict} --logits --out -"))).concat()
    };
    let expected = logits("linear");
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for method in ["regmean", "zipit", "pleas"] {
        let worst = logits(method).iter().zip(&expected).map(|(a, e)| (a - e).abs()).fold(0f32, f32::max);
        assert!(worst <= 2e-2 * largest, "{method}: {worst} of {largest}");
    }
}

/// Sources of one origin, fine-tuned on the target with other seeds: what soups are made of.
#[test]
fn soups_and_ensembles_are_of_networks_with_the_targets_classes() {
    let folder = with_origins();
    for seed in [5, 6, 7] {
        let train = format!("train --from texture.safetensors --data data/target.npz --epochs 1 --seed {seed}");
        folder.done(&format!("{train} --batch-size 16 --out {seed}.safetensors"));
    }
    let soup = "merge --models 5.safetensors 6.safetensors 7.safetensors --method greedy-soup --data data/target.npz";
    let run = folder.run(&format!("{soup} --out soup.safetensors"));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    // What it says of each source is what a merge of that source alone is worth.
    let score = |file: &str| {
        let metrics =
            folder.json(&format!("eval --model {file} --data data/target.npz --split val"))["metrics"].clone();
        metrics["macro_f1"].as_f64().unwrap()
    };
    for (index, seed) in [5, 6, 7].into_iter().enumerate() {
        let shares: Vec<&str> = (0..3).map(|source| if source == index { "1" } else { "0" }).collect();
        let merge = "merge --models 5.safetensors 6.safetensors 7.safetensors --data data/target.npz --coefficients";
        folder.done(&format!("{merge} {} --out alone{seed}.safetensors", shares.join(",")));
        let says = format!("{seed}.safetensors: macro F1 {:.4}", score(&format!("alone{seed}.safetensors")));
        assert!(run.stderr.contains(&says), "{says}: {}", run.stderr);
    }
    assert!(run.stderr.contains(&format!(": macro F1 {:.4} on the validation split", score("soup.safetensors"))));
    // The shares that it chose make the same network.
    let shares = header(&folder, "soup.safetensors")["medmerge.coefficients"].as_str().unwrap().to_string();
    let shares = shares.trim_matches(['[', ']']).to_string();
    let linear = "merge --models 5.safetensors 6.safetensors 7.safetensors --data data/target.npz --coefficients";
    folder.done(&format!("{linear} {shares} --out linear.safetensors"));
    assert_eq!(floats(&folder, "soup.safetensors"), floats(&folder, "linear.safetensors"));

    // An ensemble: the mean of probabilities.
    let probabilities = |models: &str| {
        let csv = folder.done(&format!("predict --model {models} --data data/target.npz --out -"));
        scores(&csv).concat()
    };
    let alone = ["5.safetensors", "6.safetensors"].map(probabilities);
    let both = probabilities("5.safetensors 6.safetensors");
    let worst = (0..both.len()).map(|i| ((alone[0][i] + alone[1][i]) / 2.0 - both[i]).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-6 && both != alone[0], "{worst}");
    let eval = folder.done("eval --model 5.safetensors 6.safetensors --data data/target.npz");
    assert!(eval.starts_with("5.safetensors + 6.safetensors on data/target.npz"), "{eval}");
    assert_refused(
        &folder,
        &[
            case(
                "an ensemble of other classes",
                "eval --model 5.safetensors texture.safetensors --data data/target.npz",
                &["5.safetensors tells ", "classes apart, and texture.safetensors 4"],
            ),
            case(
                "a soup of other classes",
                format!("{MERGE} --method greedy-soup --data data/target.npz --out x.safetensors"),
                &["data/target.npz", "classes"],
            ),
            case(
                "a soup by other statistics",
                format!("{soup} --statistics anchor --out x.safetensors"),
                &["greedy-soup measures networks whose statistics are re-estimated"],
            ),
        ],
    );
}

/// One pass over the images for each source, image by image; the same for any number of threads.
#[test]
fn fisher_weighs_each_number_by_the_sources_own_heads() {
    let folder = with_origins();
    let merge = format!("{MERGE} --method fisher --data data/target.npz --statistics anchor");
    for (threads, out) in [(1, "one"), (2, "two")] {
        folder.done(&format!("{merge} --threads {threads} --out {out}.safetensors"));
    }
    assert_eq!(folder.bytes("one.safetensors"), folder.bytes("two.safetensors"));
    folder.done(&format!("{merge} --seed 9 --out other.safetensors"));
    let [merged, a, b, other] = ["one", "texture", "shape", "other"]
        .map(|name| floats(&folder, &format!("{name}.safetensors"))["layer1.0.conv1.weight"].clone());
    assert_ne!(merged, other);
    // Each number lies between its sources', and nearer to one here, to the other there.
    let shares = (0..a.len()).filter(|&i| (a[i] - b[i]).abs() > 1e-2).map(|i| (merged[i] - b[i]) / (a[i] - b[i]));
    let shares: Vec<f32> = shares.collect();
    assert!(shares.len() > 20 && shares.iter().all(|share| (-1e-3..1.001).contains(share)), "{shares:?}");
    assert!(shares.iter().any(|&share| share < 0.3) && shares.iter().any(|&share| share > 0.7), "{shares:?}");
    folder.done(
        "merge --models texture.safetensors shape.safetensors --heads new --coefficients 1,0 --out bare.safetensors",
    );
    assert_refused(
        &folder,
        &[case(
            "no head",
            "merge --models texture.safetensors bare.safetensors --method fisher --data data/target.npz --out x.safetensors",
            &["bare.safetensors has no classifier"],
        )],
    );
}

#[test]
fn a_network_that_keeps_units_of_both_is_one_like_others() {
    let folder = with_origins();
    let pleas = format!("{MERGE} --method pleas --align activations --data data/target.npz --heads merge");
    let run = folder.run(&format!("{pleas} --budget 1.5 --out wide.safetensors"));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("units stay two"), "{}", run.stderr);
    let inspected = folder.json("inspect wide.safetensors");
    assert_eq!(inspected["architecture"]["family"], "widened");
    let (plain, wide) = (folder.json("inspect shape.safetensors"), inspected["parameters"].as_u64().unwrap());
    let ratio = wide as f64 / plain["parameters"].as_u64().unwrap() as f64;
    assert!(ratio > 1.2 && ratio <= 1.5, "{ratio}");
    assert_eq!(inspected["metadata"]["medmerge.budget"], "1.5");
    // It is read, evaluated, predicted with, fine-tuned, exported, merged, aligned and asked for its units.
    folder.done("eval --model wide.safetensors --data data/shape.npz");
    let csv = folder.done("predict --model wide.safetensors --data data/shape.npz --logits --out -");
    assert!(scores(&csv).iter().flatten().all(|score| score.is_finite()));
    folder.done(
        "train --from wide.safetensors --data data/target.npz --epochs 1 --batch-size 16 --out tuned.safetensors",
    );
    assert_eq!(folder.json("inspect tuned.safetensors")["architecture"], inspected["architecture"]);
    folder.done("export tuned.safetensors --onnx tuned.onnx");
    folder.done("merge --models wide.safetensors tuned.safetensors --coefficients 0.5,0.5 --out both.safetensors");
    folder.done("align --model tuned.safetensors --to wide.safetensors --out aligned.safetensors");
    folder.done("inspect --units wide.safetensors");
    // A header that claims other widths than the tensors have.
    folder.rewrite("wide.safetensors", "altered.safetensors", |file| {
        let architecture = file.metadata.get_mut("medmerge.architecture").unwrap();
        *architecture = architecture.replace("\"layer3.0.conv1\":", "\"layer3.0.conv9\":");
    });
    assert_refused(&folder, &[case("altered", "inspect --units altered.safetensors", &["layer3.0.conv9"])]);
    // The same bytes for any number of threads.
    folder.done(&format!("{pleas} --budget 1.5 --threads 1 --out again.safetensors"));
    assert_eq!(folder.bytes("again.safetensors"), folder.bytes("wide.safetensors"));
}

#[test]
fn what_a_method_cannot_work_with_is_refused() {
    let folder = with_origins();
    folder.source("narrow", "shape", "--architecture resnet8 --width 2");
    let out = "--out x.safetensors";
    let three = "merge --models texture.safetensors shape.safetensors base.safetensors";
    assert_refused(
        &folder,
        &[
            case("misspelt", format!("{MERGE} --method tise {out}"), &["unknown merging method 'tise'", "'ties'"]),
            case("no sources", format!("merge --method linear {out}"), &["without --models"]),
            case("no output", format!("{MERGE} --method linear"), &["without --out"]),
            case("slerp of three", format!("{three} --method slerp {out}"), &["takes 2 sources, not 3"]),
            case(
                "no base",
                format!("{MERGE} --method ties {out}"),
                &["needs the network that the sources were trained from"],
            ),
            case(
                "another base",
                format!("{MERGE} --method ties --base narrow.safetensors {out}"),
                &["narrow.safetensors: it differs from texture.safetensors"],
            ),
            case(
                "useless base",
                format!("{MERGE} --method slerp --base base.safetensors {out}"),
                &["no use for --base"],
            ),
            case(
                "coefficients",
                format!("{MERGE} --method slerp --coefficients 1,0 {out}"),
                &["not go by coefficients"],
            ),
            case(
                "a norm",
                format!("{MERGE} --coefficients 1,0 --coefficients-for layer1.0.bn1=0,1 {out}"),
                &["--coefficients-for layer1.0.bn1 names no filters"],
            ),
            case(
                "images for nothing",
                format!("{MERGE} --method linear --data data/target.npz --statistics anchor {out}"),
                &["do not look at images"],
            ),
            case(
                "names that no wide network has",
                format!("{MERGE} --method pleas --budget 2 --data data/target.npz --names timm {out}"),
                &["widened"],
            ),
            case("no images", format!("{MERGE} --method pleas {out}"), &["needs images of the target"]),
            case(
                "density 0",
                format!("{MERGE} --method ties --base base.safetensors --density 0 {out}"),
                &["--density 0"],
            ),
            case(
                "density NaN",
                format!("{MERGE} --method ties --base base.safetensors --density NaN {out}"),
                &["--density NaN"],
            ),
            case("t of linear", format!("{MERGE} --method linear --t 0.5 {out}"), &["does not read --t"]),
            case("seed of slerp", format!("{MERGE} --method slerp --seed 3 {out}"), &["has no use for --seed"]),
            case(
                "no such layer",
                format!("{MERGE} --coefficients 1,0 --coefficients-for layer9=1,0 {out}"),
                &["unknown part of a parameter's name 'layer9'"],
            ),
            case(
                "one number of two",
                format!("{MERGE} --coefficients 1,0 --coefficients-for layer1=1 {out}"),
                &["1 coefficients of layer1 for 2 sources"],
            ),
            case(
                "no numbers",
                format!("{MERGE} --coefficients-for layer1 --coefficients 1,0 {out}"),
                &["FILTER=NUMBERS"],
            ),
            case("with weights", format!("{MERGE} --weights w --method linear {out}"), &["cannot be used with"]),
        ],
    );
}
