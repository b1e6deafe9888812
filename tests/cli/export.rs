//! ONNX models: what the program says of them and refuses. That they compute the same is `tests/onnx_check.py`'s matter.

use medmerge::checkpoint::{self, Metadata};
use medmerge::nn::{Architecture, Model};
use medmerge::output::OutputPath;
use serde_json::{Value, json};

use crate::support::{Folder, assert_refused, case};

const EXPORT: &str = "export texture.safetensors --onnx";

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn an_export_says_what_it_takes_and_carries_the_header() {
    let folder = Folder::with_sources();
    let said = folder.done(&format!("{EXPORT} a.onnx"));
    assert_eq!(
        said,
        "a.onnx: resnet8 (stem 3x3, width 4), 4 classes, opset 17\nimages N×1×16×16 in f32, normalised; logits N×4\n"
    );
    let bytes = folder.bytes("a.onnx");
    let sha256 = folder.json("inspect texture.safetensors")["sha256"].as_str().unwrap().to_string();
    for text in ["medmerge.exported_from", &sha256, "medmerge.architecture", "medmerge.training", r#""mean":[0.5]"#] {
        assert!(contains(&bytes, text), "{text}");
    }
    folder.done(&format!("{EXPORT} a.onnx --force"));
    assert!(folder.bytes("a.onnx") == bytes);

    let asked = "--normalise --mean -0.25 --std 0.75 --image-size any --opset 21";
    let result = folder.json(&format!("{EXPORT} b.onnx {asked}"));
    assert_eq!(result["architecture"]["family"], "resnet");
    for (key, value) in [
        ("onnx", json!("b.onnx")),
        ("input_channels", json!(1)),
        ("classes", json!(4)),
        ("image_size", Value::Null),
        ("normalises", json!(true)),
        ("opset", json!(21)),
        ("bytes", json!(folder.bytes("b.onnx").len())),
    ] {
        assert_eq!(result[key], value, "{key}");
    }
    assert!(contains(&folder.bytes("b.onnx"), r#""mean":[-0.25]"#));
    let said = folder.done(&format!("{EXPORT} c.onnx --image-size 24x20 --normalise"));
    assert!(said.ends_with("images N×1×24×20 in f32, from 0 to 255; logits N×4\n"), "{said}");
}

#[test]
fn what_a_file_leaves_open_is_told() {
    let folder = Folder::with_sources();
    folder.rewrite("texture.safetensors", "foreign.safetensors", |file| file.metadata.clear());
    let run = folder.run("export foreign.safetensors --onnx a.onnx --normalise");
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for note in ["does not say its stem; 3x3 is taken", "how its images were normalised; --mean 0.5 --std 0.5 is taken"]
    {
        assert!(run.stderr.contains(note), "{}", run.stderr);
    }
    assert!(run.stdout.contains("images N×1×H×W in f32, from 0 to 255"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let folder = Folder::with_sources();
    let network = Architecture::named("vgg11", None, Some(2)).unwrap().build(3, 2);
    let mut output = OutputPath::check(&folder.path("vgg.safetensors"), false, 0).unwrap();
    checkpoint::save(&mut output, &Model::initialized(network, 1), &Metadata::new()).unwrap();
    folder.rewrite("texture.safetensors", "headless.safetensors", |file| {
        file.tensors.remove("fc.weight");
        file.tensors.remove("fc.bias");
    });
    folder.done(&format!("{EXPORT} there.onnx"));
    let size = "an image size of";
    assert_refused(
        &folder,
        &[
            case("exists", format!("{EXPORT} there.onnx"), &["there.onnx already exists", "--force"]),
            case("itself", format!("{EXPORT} texture.safetensors --force"), &["the network and --onnx name the same"]),
            case("no output", "export texture.safetensors", &["--onnx <FILE.onnx>"]),
            case("not there", "export none --onnx x", &["cannot read none"]),
            case("a data set", "export data/texture.npz --onnx x", &["data set", "not a network"]),
            case("a model", "export there.onnx --onnx x", &["an ONNX model", "not a network"]),
            case("no head", "export headless.safetensors --onnx x", &["it has no classifier (fc.weight)"]),
            case("old opset", format!("{EXPORT} x --opset 16"), &["opset 16", "give between 17 and 23"]),
            case("new opset", format!("{EXPORT} x --opset 99"), &["opset 99"]),
            case("mean alone", format!("{EXPORT} x --mean 0.5"), &["no effect without --normalise"]),
            case("two means", format!("{EXPORT} x --normalise --mean 1,2"), &["2 values for the mean of 1 channels"]),
            case("no size", format!("{EXPORT} x --image-size 0"), &[size, "give 224, 224x192"]),
            case("half a size", format!("{EXPORT} x --image-size 28x"), &[size]),
            case("too large a size", format!("{EXPORT} x --image-size 99999999999999999999"), &[size]),
            case("no stem", format!("{EXPORT} x --stem 7x7"), &["conv1.weight is 3×3"]),
            case(
                "a VGG of no size",
                "export vgg.safetensors --onnx x",
                &["avgpool pools to 7×7 pixels", "--image-size"],
            ),
            case("any for a VGG", "export vgg.safetensors --onnx x --image-size any", &["avgpool pools to 7×7 pixels"]),
            case(
                "too small",
                "export vgg.safetensors --onnx x --image-size 8",
                &["too small", "a larger --image-size"],
            ),
        ],
    );
}
