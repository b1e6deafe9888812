//! Units of one network in the order of another's: what `align` writes, and what `--align` does before a merge.

use medmerge::checkpoint::{self, Checkpoint, Numbers};
use medmerge::nn::{Architecture, Model, Permutation, Units};
use medmerge::output::OutputPath;
use serde_json::Value;

use crate::support::{Folder, assert_refused, case, floats, scores};

/// `from` with its units in another order, in `to`: every group turned around.
fn turned(folder: &Folder, from: &str, to: &str) {
    let Checkpoint { model, metadata, .. } = Checkpoint::load(&folder.path(from)).unwrap();
    let units = Units::of(&model.network);
    let permutation = Permutation::drawn(&units, |count| (0..count).rev().collect());
    assert!(permutation.moved() > units.count() / 2);
    let turned: Model = units.permuted(&model, &permutation);
    checkpoint::save(&mut OutputPath::check(&folder.path(to), false, 0).unwrap(), &turned, &metadata).unwrap();
}

/// A network that nothing has been trained yet, of images of one channel and five classes.
fn initialised(folder: &Folder, architecture: &str, width: usize) {
    let model = Model::initialized(Architecture::named(architecture, None, Some(width)).unwrap().build(1, 5), 3);
    let mut output = OutputPath::check(&folder.path(&format!("{architecture}.safetensors")), false, 0).unwrap();
    checkpoint::save(&mut output, &model, &Default::default()).unwrap();
}

/// Sources of two origins.
fn with_origins() -> Folder {
    let folder = Folder::new();
    folder.data("data", "");
    for (seed, name) in [(1, "texture"), (2, "shape")] {
        folder.source(name, name, &format!("--architecture resnet8 --width 4 --seed {seed}"));
    }
    folder
}

fn logits(folder: &Folder, model: &str) -> Vec<f32> {
    let csv = folder.done(&format!("predict --model {model} --data data/shape.npz --logits --out -"));
    scores(&csv).concat()
}

#[test]
fn an_aligned_network_computes_what_it_did_and_says_where_it_comes_from() {
    let folder = with_origins();
    let before = logits(&folder, "shape.safetensors");
    for (by, data) in [("weights", ""), ("activations", "--data data/target.npz")] {
        let out = format!("{by}.safetensors");
        let align = "align --model shape.safetensors --to texture.safetensors";
        let result = folder.json(&format!("{align} --by {by} {data} --out {out}"));
        let sum =
            |key: &str| result["groups"].as_array().unwrap().iter().map(|g| g[key].as_u64().unwrap()).sum::<u64>();
        assert!(sum("moved") > 0 && sum("moved") <= sum("channels") && sum("channels") == 56);
        if by == "weights" {
            assert!(result["cosine"].as_f64() > result["cosine_before"].as_f64());
        }
        let after = logits(&folder, &out);
        let largest = before.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(before.iter().zip(&after).all(|(x, y)| (x - y).abs() <= 1e-5 * largest), "{by}");
        let header = folder.json(&format!("inspect {out}"))["metadata"].clone();
        assert_eq!(header["medmerge.align"], by);
        let record = |key: &str| serde_json::from_str::<Value>(header[key].as_str().unwrap()).unwrap();
        assert_eq!(record("medmerge.aligned_to")["name"], "texture.safetensors");
        assert_eq!(record("medmerge.aligned_from")["name"], "shape.safetensors");
        // And back again: no number has changed.
        folder.done(&format!("align --model {out} --to shape.safetensors --out {by}-back.safetensors"));
        assert_eq!(floats(&folder, &format!("{by}-back.safetensors")), floats(&folder, "shape.safetensors"));
    }
}

#[test]
fn a_network_merged_with_its_own_permuted_copy_is_itself() {
    let folder = with_origins();
    for (name, width) in [("densenet121", 4), ("vgg16", 2), ("resnet20", 4), ("resnet20-option-a", 4)] {
        initialised(&folder, name, width);
        turned(&folder, &format!("{name}.safetensors"), "turned.safetensors");
        let merge = format!("merge --models {name}.safetensors turned.safetensors --coefficients 0.5,0.5 --force");
        folder.done(&format!("{merge} --out plain.safetensors"));
        assert_ne!(floats(&folder, "plain.safetensors"), floats(&folder, &format!("{name}.safetensors")), "{name}");
        folder.done(&format!("{merge} --align weights --out merged.safetensors"));
        assert_eq!(floats(&folder, "merged.safetensors"), floats(&folder, &format!("{name}.safetensors")), "{name}");
        std::fs::remove_file(folder.path("turned.safetensors")).unwrap();
    }
    assert_eq!(folder.json("inspect merged.safetensors")["metadata"]["medmerge.align"], "weights");
}

#[test]
fn merge_weights_remember_the_order_in_which_they_were_learned() {
    let folder = with_origins();
    for align in ["weights", "activations"] {
        let learn =
            "learn --models texture.safetensors shape.safetensors --data data/target.npz --epochs 1 --batch-size 16";
        folder.done(&format!("{learn} --align {align} --start 0.3 --out {align}.safetensors"));
        let merge = "merge --models texture.safetensors shape.safetensors";
        folder.done(&format!("{merge} --weights {align}.weights.safetensors --out again.safetensors --force"));
        assert_eq!(folder.bytes("again.safetensors"), folder.bytes(&format!("{align}.safetensors")));
        assert_eq!(folder.json("inspect again.safetensors")["metadata"]["medmerge.align"], align);
    }
    assert_ne!(floats(&folder, "weights.safetensors"), floats(&folder, "activations.safetensors"));
    // Two units in one place.
    folder.rewrite("weights.weights.safetensors", "altered.safetensors", |file| {
        let order = file.tensors.get_mut("order.1.0.0").unwrap();
        let Numbers::Integers(order) = &mut order.numbers else { panic!("an order holds integers") };
        order[0] = order[1];
    });
    folder.rewrite("weights.weights.safetensors", "lost.safetensors", |file| {
        file.tensors.remove("order.1.2.0");
    });
    let merge = "merge --models texture.safetensors shape.safetensors --out x.safetensors --weights";
    assert_refused(
        &folder,
        &[
            case("altered", format!("{merge} altered.safetensors"), &["the order of source 1 is none of its units"]),
            case("lost", format!("{merge} lost.safetensors"), &["no tensor 'order.1.2.0'"]),
        ],
    );
}

#[test]
fn what_cannot_be_aligned_is_refused() {
    let folder = with_origins();
    folder.source("wide", "shape", "--architecture resnet8 --width 8");
    initialised(&folder, "vgg11", 2);
    let align = "align --model shape.safetensors --to texture.safetensors --out x.safetensors";
    let merge = "merge --models texture.safetensors shape.safetensors --out x.safetensors";
    assert_refused(
        &folder,
        &[
            case("no images", format!("{align} --by activations"), &["there are none", "--data"]),
            case("images for nothing", format!("{align} --by weights --data data/target.npz"), &["look at images"]),
            case("a mean of nothing", format!("{align} --mean 0.5 --std 0.5"), &["--mean and --std are of images"]),
            case("nothing", format!("{align} --by none"), &["--by none aligns nothing"]),
            case("misspelt", format!("{align} --by weight"), &["unknown alignment 'weight'", "weights"]),
            case("merge: no images", format!("{merge} --coefficients 1,0 --align activations"), &["there are none"]),
            case("merge: learned", format!("{merge} --weights w --align weights"), &["cannot be used with"]),
            case(
                "other widths",
                "align --model wide.safetensors --to texture.safetensors --out x.safetensors",
                &["it differs from texture.safetensors", "conv1.weight"],
            ),
            case(
                "other families",
                "align --model vgg11.safetensors --to texture.safetensors --out x.safetensors",
                &["it differs from texture.safetensors", "sources have one architecture"],
            ),
            case(
                "onto an input",
                "align --model shape.safetensors --to texture.safetensors --out shape.safetensors --force",
                &["--model and --out name the same file"],
            ),
        ],
    );
    // An infinity in the images' normalisation would be the activations' too.
    let huge = folder.run(&format!("{align} --by activations --data data/target.npz --mean 0 --std 1e-38"));
    assert_eq!(huge.code, Some(1), "{}", huge.stderr);
    assert!(huge.stderr.contains("is NaN or infinite"), "{}", huge.stderr);
    assert!(!folder.path("x.safetensors").exists());
}

#[test]
fn units_are_listed_and_few_images_are_told() {
    let folder = with_origins();
    let text = folder.done("inspect --units shape.safetensors");
    assert!(text.contains("conv1: 4 units\n  rows of conv1, bn1, layer1.0.conv2, layer1.0.bn2\n"), "{text}");
    let units = folder.json("inspect --units resnext50_32x4d");
    let grouped = units["groups"].as_array().unwrap().iter().find(|group| group["name"] == "layer1.0.conv1").unwrap();
    assert_eq!((grouped["units"].as_u64(), grouped["strands"].as_array().unwrap().len()), (Some(32), 2));
    assert_eq!(grouped["strands"][1]["columns"][0], "layer1.0.conv3");
    folder.source("wide", "shape", "--architecture resnet8 --width 16");
    folder.source("wider", "texture", "--architecture resnet8 --width 16");
    let align = "align --model wide.safetensors --to wider.safetensors --by activations --data data/target.npz";
    let run = folder.run(&format!("{align} --out x.safetensors"));
    assert!(run.stderr.contains("32 training images for 64 units of layer3.0.conv"), "{}", run.stderr);
    assert!(run.stderr.contains("rank-deficient"), "{}", run.stderr);
}

/// What is found by images on the CPU is found by the GPU kernels too.
#[cfg(feature = "emulator")]
#[test]
fn every_device_finds_the_same_units() {
    let folder = with_origins();
    for device in ["cpu", "emulator"] {
        let more = format!("--data data/target.npz --device {device}");
        let align = "align --model shape.safetensors --to texture.safetensors --by activations";
        folder.done(&format!("{align} {more} --out align-{device}.safetensors"));
        let merge = "merge --models texture.safetensors shape.safetensors --align activations";
        for method in ["zipit", "regmean", "pleas"] {
            folder.done(&format!("{merge} --method {method} {more} --out {method}-{device}.safetensors"));
        }
    }
    let of = |name: &str| ["cpu", "emulator"].map(|device| floats(&folder, &format!("{name}-{device}.safetensors")));
    let [cpu, emulator] = of("align");
    assert_eq!(cpu, emulator);
    for method in ["zipit", "regmean", "pleas"] {
        let [cpu, emulator] = of(method);
        for (name, values) in &cpu {
            let scale = values.iter().fold(0f32, |most, x| most.max(x.abs()));
            let worst = values.iter().zip(&emulator[name]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= 1e-3 * scale, "{method}, {name}: {worst} of {scale}");
        }
    }
}
