//! The names and types that networks are written with.

use medmerge::checkpoint::{Numbers, TensorFile};

use crate::support::{Folder, assert_refused, case, scores};

const TRAIN: &str = "train --data data/texture.npz --epochs 1 --batch-size 16 --out";
const DEEP: &str = "--architecture resnet18 --stem 7x7 --width 4";

/// Types of the floats of a file.
fn types(folder: &Folder, file: &str) -> Vec<String> {
    let file = TensorFile::read(&folder.path(file)).unwrap();
    let is_float = |numbers: &Numbers| matches!(numbers, Numbers::Floats(_));
    let mut types: Vec<String> = file.tensors.into_values().filter(|t| is_float(&t.numbers)).map(|t| t.dtype).collect();
    types.sort();
    types.dedup();
    types
}

fn names(folder: &Folder, file: &str) -> Vec<String> {
    TensorFile::read(&folder.path(file)).unwrap().tensors.into_keys().collect()
}

#[test]
fn networks_go_from_one_exporter_to_another() {
    let folder = Folder::new();
    folder.data("data", "");
    folder.done(&format!("{TRAIN} own.safetensors {DEEP}"));
    folder.done(&format!("{TRAIN} a.safetensors {DEEP} --names transformers"));
    folder.done(&format!("{TRAIN} b.safetensors {DEEP} --seed 1"));
    let logits =
        |model: &str| folder.done(&format!("predict --model {model} --data data/texture.npz --logits --out -"));
    assert_eq!(logits("a.safetensors"), logits("own.safetensors"));
    let listed = folder.json("inspect a.safetensors");
    assert_eq!(
        (&listed["names"], &listed["metadata"]["medmerge.names"]),
        (&"transformers".into(), &"transformers".into())
    );
    assert!(
        names(&folder, "a.safetensors")
            .contains(&"resnet.encoder.stages.1.layers.0.shortcut.convolution.weight".into())
    );

    // The anchor's names; whatever the names and the order of writing, the same bytes.
    let models = "--models a.safetensors b.safetensors";
    let learn = format!("learn {models} --data data/target.npz --epochs 1 --batch-size 16 --anchor 0");
    folder.done(&format!("{learn} --out learned.safetensors --names source --dtype bf16"));
    let again = "--weights learned.weights.safetensors --out again.safetensors --names source --dtype bf16";
    folder.done(&format!("merge {models} {again}"));
    assert_eq!(folder.bytes("learned.safetensors"), folder.bytes("again.safetensors"));
    assert_eq!(names(&folder, "learned.safetensors"), names(&folder, "a.safetensors"));
    assert_eq!(types(&folder, "learned.safetensors"), ["BF16"]);
    let fixed = format!("merge {models} --coefficients 0.5,0.5 --names source --out");
    folder.done(&format!("{fixed} zero.safetensors"));
    folder.done(&format!("{fixed} one.safetensors --anchor 1"));
    assert_eq!(names(&folder, "zero.safetensors"), names(&folder, "a.safetensors"));
    assert_eq!(names(&folder, "one.safetensors"), names(&folder, "b.safetensors"));

    // Fine-tuned, and back under its own names.
    folder.done(&format!("{TRAIN} tuned.safetensors --from learned.safetensors --names source --dtype source"));
    assert_eq!(types(&folder, "tuned.safetensors"), ["BF16"]);
    folder.done(&format!("{TRAIN} back.safetensors --from tuned.safetensors --dtype f16"));
    assert_eq!(names(&folder, "back.safetensors"), names(&folder, "own.safetensors"));
    assert_eq!(types(&folder, "back.safetensors"), ["F16"]);
    assert_eq!(scores(&logits("back.safetensors")).len(), 24);
}

#[test]
fn what_cannot_be_written_is_refused_before_any_work() {
    let folder = Folder::with_sources();
    folder.done(&format!("{TRAIN} dense.safetensors --architecture densenet121 --width 4 --stem 3x3"));
    let merge = "merge --models texture.safetensors shape.safetensors --coefficients 0.5,0.5 --out o";
    let learn = "learn --models texture.safetensors shape.safetensors --data data/target.npz --out o";
    let stem = &["transformers has no names for resnet8 (stem 3x3, width 4): its stem is 7x7", "leave --names out"];
    let own = &["transformers has no names for densenet121", "it has ResNets alone"];
    assert_refused(
        &folder,
        &[
            case("merge", format!("{merge} --names transformers"), stem),
            case("learn", format!("{learn} --names transformers"), stem),
            case("train", format!("{TRAIN} o --architecture resnet8 --width 4 --names transformers"), stem),
            case("a DenseNet", format!("{TRAIN} o --architecture densenet121 --width 4 --names transformers"), own),
            case("a DenseNet's file", format!("{TRAIN} o --from dense.safetensors --names transformers"), own),
            case(
                "option A",
                format!("{TRAIN} o --architecture resnet20-option-a --names timm"),
                &["timm has no names for resnet20-option-a", "its shortcuts have parameters"],
            ),
            case(
                "new names",
                format!("{TRAIN} o --names source"),
                &["--names source asks for what a file has", "--from"],
            ),
            case("a new type", format!("{TRAIN} o --dtype source"), &["--dtype source asks for what a file has"]),
            case("unknown names", format!("{merge} --names timn"), &["unknown set of names 'timn'", "'timm'"]),
            case("an unknown type", format!("{merge} --dtype f64"), &["unknown type of numbers 'f64'"]),
        ],
    );
    let odd = |name: &str, value: &str| {
        folder.rewrite("texture.safetensors", name, |file| {
            drop(file.metadata.insert("medmerge.names".into(), value.into()))
        });
    };
    odd("odd.safetensors", "keras");
    // The network's own names are among those that are translated.
    odd("own.safetensors", "timm");
    let says = &["its header's medmerge.names makes no sense", "the header was altered"];
    assert_refused(&folder, &[case("header", "eval --model odd.safetensors --data data/texture.npz", says)]);
    folder.done("eval --model own.safetensors --data data/texture.npz");
}

#[test]
fn a_number_beyond_f16_is_an_error_and_no_file() {
    let folder = Folder::with_sources();
    folder.rewrite("texture.safetensors", "large.safetensors", |file| {
        let Numbers::Floats(values) = &mut file.tensors.get_mut("fc.weight").unwrap().numbers else { panic!() };
        values[1] = 2e5;
    });
    let merge = "merge --models large.safetensors shape.safetensors --coefficients 0.5,0.5 --out";
    let run = folder.run(&format!("{merge} half.safetensors --dtype f16"));
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("half.safetensors was not written: fc.weight holds "), "{}", run.stderr);
    assert!(run.stderr.contains("f16 ends at 65504\nhint: use --dtype f32"), "{}", run.stderr);
    assert!(!folder.path("half.safetensors").exists());
    folder.done(&format!("{merge} half.safetensors --dtype bf16"));
}

#[test]
fn a_card_tells_where_a_network_comes_from() {
    let folder = Folder::with_sources();
    let models = "--models texture.safetensors shape.safetensors";
    let learn = format!("learn {models} --data data/target.npz --epochs 1 --batch-size 16 --anchor 0 --card --out");
    // No library has so narrow a network.
    let run = folder.run(&format!("{learn} merged.safetensors"));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stderr.contains("merged.config.json was not written: timm and transformers have no resnet8"),
        "{}",
        run.stderr
    );
    assert!(!folder.path("merged.config.json").exists());
    let card = folder.text("merged.md");
    let sha256 = |file: &str| folder.json(&format!("inspect {file}"))["sha256"].as_str().unwrap().to_string();
    for text in [
        "base_model:\n- \"texture.safetensors\"\n- \"shape.safetensors\"\n---\n",
        &format!("| texture.safetensors | `{}` |", sha256("texture.safetensors")),
        &format!("| shape.safetensors | `{}` |", sha256("shape.safetensors")),
        "| granularity | kernel |",
        "| file | target.npz |",
        "| macro F1 | 0.",
        "| pixels | 16×16 |",
        &format!("    medmerge {learn} merged.safetensors\n"),
    ] {
        assert!(card.contains(text), "'{text}' is not in\n{card}");
    }
    // The folder of a `model.safetensors` is one that libraries load.
    std::fs::create_dir(folder.path("hub")).unwrap();
    let train = "train --data data/texture.npz --epochs 1 --batch-size 16 --architecture resnet18 --card --out";
    folder.done(&format!("{train} hub/model.safetensors --names transformers --width 4"));
    let config: serde_json::Value = serde_json::from_str(&folder.text("hub/config.json")).unwrap();
    assert_eq!((&config["model_type"], &config["layer_type"]), (&"resnet".into(), &"basic".into()));
    assert_eq!(config["hidden_sizes"], serde_json::json!([4, 8, 16, 32]));
    assert_eq!(config["id2label"].as_object().unwrap().len(), 4);
    assert!(folder.text("hub/README.md").starts_with("---\nlibrary_name: transformers\n"));
    folder.done(&format!("{train} x.safetensors"));
    let config: serde_json::Value = serde_json::from_str(&folder.text("x.config.json")).unwrap();
    assert_eq!((&config["architecture"], &config["num_classes"]), (&"resnet18".into(), &4.into()));
    assert_eq!(config["model_args"], serde_json::json!({"in_chans": 1}));
    assert_eq!(config["pretrained_cfg"]["input_size"], serde_json::json!([1, 16, 16]));

    let tune = "train --data data/texture.npz --epochs 1 --batch-size 16 --card --from merged.safetensors --out";
    folder.done(&format!("{tune} tuned.safetensors --quiet"));
    assert!(folder.text("tuned.md").contains(&format!("| merged.safetensors | `{}` |", sha256("merged.safetensors"))));
}

#[test]
fn a_card_is_an_output_like_others() {
    let folder = Folder::with_sources();
    std::fs::create_dir(folder.path("old")).unwrap();
    for file in ["old/x.md", "old/y.config.json", "old/README.md"] {
        folder.write(file, "theirs");
    }
    let merge = "merge --models texture.safetensors shape.safetensors --coefficients 0.5,0.5 --card --out";
    let learn = "learn --models texture.safetensors shape.safetensors --data data/target.npz --card --out";
    let train = "train --data data/texture.npz --architecture resnet8 --width 4 --card --out";
    let (exists, same) = (&["already exists", "--force"], &["name the same file"]);
    assert_refused(
        &folder,
        &[
            case("merge's card", format!("{merge} old/x.safetensors"), exists),
            case("learn's configuration", format!("{learn} old/y.safetensors"), exists),
            case("train's readme", format!("{train} old/model.safetensors"), exists),
            case("the network is its card", format!("{merge} z.md"), same),
            case("the weights are the card", format!("{learn} z.safetensors --weights z.md"), same),
        ],
    );
    folder.done(&format!("{merge} old/x.safetensors --force"));
    assert_ne!(folder.text("old/x.md"), "theirs");
    assert_eq!(folder.leftovers(), Vec::<std::path::PathBuf>::new());
}
