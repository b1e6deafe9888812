//! Test sets from elsewhere: images of one split and little else, and a network that has to be measured on them.

use medmerge::data::{Dataset, npz};
use serde_json::{Value, json};

use crate::support::{Folder, Run, assert_refused, case, scores};

const SHORT: &str = "--epochs 1 --batch-size 16 --architecture resnet8 --width 4";
const EVAL: &str = "eval --model texture.safetensors --data";
const PREDICT: &str = "predict --model texture.safetensors --data";

/// 24 images of 16×16 pixels, the test split of `data/texture.npz`, which has four classes.
struct TestSet {
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl TestSet {
    fn of(folder: &Folder) -> TestSet {
        let test = Dataset::load(&folder.path("data/texture.npz")).unwrap().test;
        TestSet { images: test.bytes().unwrap(), labels: test.labels.iter().map(|&label| label as u8).collect() }
    }

    /// Leaves the images of a class out.
    fn without(&self, class: u8) -> TestSet {
        let kept = || self.images.chunks(256).zip(&self.labels).filter(|(_, label)| **label != class);
        let images = kept().flat_map(|(image, _)| image.to_vec()).collect();
        TestSet { images, labels: kept().map(|(_, &label)| label).collect() }
    }

    fn images(&self) -> npz::Array<'static> {
        let (shape, elements) = (vec![self.images.len() / 256, 16, 16], self.images.clone().into());
        npz::Array { name: "test_images".into(), descr: "|u1", shape, elements }
    }

    fn labels(&self) -> npz::Array<'static> {
        let (shape, elements) = (vec![self.labels.len(), 1], self.labels.clone().into());
        npz::Array { name: "test_labels".into(), descr: "|u1", shape, elements }
    }

    /// Writes a file of these and nothing else.
    fn write(&self, folder: &Folder, to: &str) {
        npz::write(&folder.path(to), &[self.images(), self.labels()]).unwrap();
    }
}

/// Names of four classes, as an array of bytes.
fn names(of: [&str; 4]) -> npz::Array<'static> {
    let elements = of.iter().flat_map(|name| format!("{name:\0<16}").into_bytes()).collect::<Vec<u8>>().into();
    npz::Array { name: "class_names".into(), descr: "|S16", shape: vec![4], elements }
}

#[test]
fn a_test_set_by_itself_is_measured_as_part_of_a_whole_one() {
    let folder = Folder::with_sources();
    TestSet::of(&folder).write(&folder, "outside.npz");
    let of = |data: &str| {
        folder.done(&format!("{PREDICT} {data} --out scores.csv --force"));
        (folder.json(&format!("{EVAL} {data}"))["metrics"].clone(), folder.text("scores.csv"))
    };
    assert_eq!(of("outside.npz"), of("data/texture.npz"));
    // To learn, all of a data set is needed.
    let says = &["there is no train_images, but test_images, test_labels"];
    let two = "--models texture.safetensors shape.safetensors";
    assert_refused(
        &folder,
        &[
            case("train", format!("train --data outside.npz {SHORT} --out o"), says),
            case("learn", format!("learn {two} --data outside.npz --anchor 0 --out o"), says),
            case("merge", format!("merge {two} --coefficients 0.5,0.5 --data outside.npz --out o"), says),
            case("another split", format!("{EVAL} outside.npz --split val"), &["there is no val_images", "--split"]),
        ],
    );
}

#[test]
fn images_without_labels_are_predicted_and_not_measured() {
    let folder = Folder::with_sources();
    let set = TestSet::of(&folder);
    set.write(&folder, "labelled.npz");
    npz::write(&folder.path("images.npz"), &[set.images()]).unwrap();
    let predicted = |data: &str| {
        folder.done(&format!("{PREDICT} {data} --out scores.csv --force"));
        folder.text("scores.csv")
    };
    let (with, without) = (predicted("labelled.npz"), predicted("images.npz"));
    for ((with, without), label) in with.lines().skip(1).zip(without.lines().skip(1)).zip(&set.labels) {
        let [mut with, without] = [with, without].map(|line| line.split(',').collect::<Vec<_>>());
        assert_eq!(with[1], label.to_string());
        with[1] = "";
        assert_eq!(with, without);
    }
    assert_eq!((with.lines().count(), without.lines().count()), (25, 25));
    let says = &["there is no test_labels, but test_images", "predict needs none"];
    assert_refused(&folder, &[case("eval", format!("{EVAL} images.npz"), says)]);
    // On a device too.
    folder.done(&format!("{PREDICT} images.npz --out emulated.csv --device emulator"));
    assert_eq!(scores(&folder.text("emulated.csv")).len(), 24);
}

#[test]
fn inspect_shows_the_splits_that_are_there() {
    let folder = Folder::with_sources();
    let set = TestSet::of(&folder);
    set.write(&folder, "outside.npz");
    npz::write(&folder.path("images.npz"), &[set.images()]).unwrap();
    npz::write(&folder.path("named.npz"), &[set.images(), names(["a", "b", "c", "d"])]).unwrap();
    let split = |class_counts: Value| json!({"images": 24, "class_counts": class_counts});
    let summary = |file: &str| folder.json(&format!("inspect {file}"))["summary"].clone();

    let whole = summary("data/texture.npz");
    let counts: Vec<usize> = (0..4).map(|class| set.labels.iter().filter(|&&label| label == class).count()).collect();
    assert_eq!((&whole["test"], &whole["problem"]), (&split(json!(counts)), &Value::Null));
    let refused = "there is no train_images, but test_images";
    let lone = |classes: Value, test: Value, problem: &str| {
        json!({
            "height": 16, "width": 16, "channels": 1, "classes": classes, "train": null, "val": null, "test": test,
            "problem": problem,
        })
    };
    let labelled = lone(json!(4), split(json!(counts)), &format!("{refused}, test_labels"));
    assert_eq!(summary("outside.npz"), labelled);
    assert_eq!(summary("images.npz"), lone(Value::Null, split(Value::Null), refused));
    let named = summary("named.npz");
    assert_eq!((&named["classes"], &named["class_names"]), (&json!(4), &json!(["a", "b", "c", "d"])));

    let lines = |file: &str| folder.done(&format!("inspect {file}")).lines().map(String::from).collect::<Vec<_>>();
    let expected = [
        "outside.npz: data set, 16×16 pixels, 1 channels, 4 classes".to_string(),
        format!("  test       24 images, per class {counts:?}"),
        format!("  not to be trained on: {refused}, test_labels"),
    ];
    assert_eq!(lines("outside.npz"), expected);
    let unlabelled = lines("images.npz");
    assert_eq!(
        unlabelled[..2],
        ["images.npz: data set, 16×16 pixels, 1 channels", "  test       24 images, no labels"]
    );
    npz::write(&folder.path("labels.npz"), &[set.labels()]).unwrap();
    let says = &["there is no array of images, but test_labels"];
    assert_refused(&folder, &[case("labels", "inspect labels.npz", says)]);
}

/// The words of the line of `eval` that begins with `start`.
fn words(text: &str, start: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().map(String::from).collect()
}

#[test]
fn a_class_without_images_has_no_auc_and_the_mean_says_so() {
    let folder = Folder::with_sources();
    TestSet::of(&folder).without(2).write(&folder, "three.npz");
    let metrics = folder.json(&format!("{EVAL} three.npz"))["metrics"].clone();
    assert_eq!(metrics["auc_classes"], 3);
    let class = &metrics["per_class"][2];
    assert_eq!((&class["support"], &class["auc"], &class["recall"]), (&0.into(), &Value::Null, &Value::Null));
    let aucs = metrics["per_class"].as_array().unwrap().iter().filter_map(|class| class["auc"].as_f64());
    assert!((metrics["auc"].as_f64().unwrap() - aucs.sum::<f64>() / 3.0).abs() < 1e-12);
    let f1s: Vec<f64> =
        metrics["per_class"].as_array().unwrap().iter().filter_map(|class| class["f1"].as_f64()).collect();
    assert_eq!(metrics["macro_f1_classes"], f1s.len());
    assert!((metrics["macro_f1"].as_f64().unwrap() - f1s.iter().sum::<f64>() / f1s.len() as f64).abs() < 1e-12);

    let text = folder.done(&format!("{EVAL} three.npz"));
    let auc = format!("AUC {:.4} (of 3 of 4 classes)", metrics["auc"].as_f64().unwrap());
    assert!(text.contains(&auc) && !text.to_lowercase().contains("nan"), "{text}");
    let row = words(&text, "2 ");
    assert_eq!([1, 3, 6, 7].map(|at| row[at].as_str()), ["0", "-", "-", "-"], "{text}");
    assert!(!folder.done(&format!("{EVAL} data/texture.npz")).contains("classes)"));
}

#[test]
fn with_one_of_two_classes_the_auc_is_not_defined() {
    let folder = Folder::with_sources();
    let mut data = Dataset::load(&folder.path("data/texture.npz")).unwrap();
    for split in [&mut data.train, &mut data.val, &mut data.test] {
        split.labels.iter_mut().for_each(|label| *label %= 2);
    }
    data.classes = 2;
    data.save(&folder.path("two.npz")).unwrap();
    folder.done(&format!("train --data two.npz {SHORT} --out two.safetensors"));
    let set = TestSet::of(&folder);
    TestSet { labels: vec![1; 24], ..set }.write(&folder, "one.npz");
    let eval = "eval --model two.safetensors --data one.npz";
    let metrics = folder.json(eval)["metrics"].clone();
    assert_eq!((&metrics["auc"], &metrics["auc_classes"]), (&Value::Null, &0.into()));
    assert_eq!(metrics["accuracy"], metrics["per_class"][1]["recall"]);
    let text = folder.done(eval);
    assert!(text.lines().nth(1).unwrap().ends_with("AUC -"), "{text}");
    assert_eq!(folder.json("eval --model two.safetensors --data two.npz")["metrics"]["auc_classes"], 2);
}

#[test]
fn test_sets_that_do_not_fit_are_refused() {
    let folder = Folder::with_sources();
    let set = TestSet::of(&folder);
    let mut labels = set.labels.clone();
    labels[5] = 7;
    TestSet { images: set.images.clone(), labels }.write(&folder, "beyond.npz");
    TestSet { images: Vec::new(), labels: Vec::new() }.write(&folder, "empty.npz");
    let three = names(["a", "b", "c", "d"]);
    let three = npz::Array { shape: vec![3], elements: three.elements[..48].to_vec().into(), ..three };
    npz::write(&folder.path("names.npz"), &[set.images(), three]).unwrap();
    folder.data("rgb", "--channels 3");
    let colour = Dataset::load(&folder.path("rgb/texture.npz")).unwrap().test.bytes().unwrap();
    let colour = npz::Array { shape: vec![24, 16, 16, 3], elements: colour.into(), ..set.images() };
    npz::write(&folder.path("colour.npz"), &[colour, set.labels()]).unwrap();

    let beyond = &["test_labels has the label 7 at index 5, and the network tells 4 classes apart", "--from"];
    let cases: [(&str, &[&str]); 4] = [
        ("beyond.npz", beyond),
        ("empty.npz", &["its test split is empty", "--split"]),
        ("names.npz", &["class_names has the shape [3], and the network tells 4 classes apart"]),
        ("colour.npz", &["images of 3 channels cannot feed a network of 1"]),
    ];
    let all: Vec<_> = cases.iter().map(|(file, says)| case(file, format!("{PREDICT} {file} --out o"), says)).collect();
    assert_refused(&folder, &all);
    let measured: Vec<_> = cases.iter().filter(|(file, _)| *file != "names.npz").collect();
    let all: Vec<_> = measured.iter().map(|(file, says)| case(file, format!("{EVAL} {file}"), says)).collect();
    assert_refused(&folder, &all);
}

#[test]
fn a_colour_network_takes_grey_images() {
    let folder = Folder::with_sources();
    folder.source("colour", "texture", "--architecture resnet8 --width 4 --input-channels 3");
    TestSet::of(&folder).write(&folder, "grey.npz");
    let of = |data: &str| folder.json(&format!("eval --model colour.safetensors --data {data}"))["metrics"].clone();
    assert_eq!(of("grey.npz"), of("data/texture.npz"));
}

#[test]
fn a_prediction_is_the_class_that_figures_count() {
    let folder = Folder::with_sources();
    let confusion = folder.json(&format!("{EVAL} data/texture.npz"))["metrics"]["confusion"].clone();
    for more in ["", "--logits"] {
        folder.done(&format!("{PREDICT} data/texture.npz --out scores.csv --force {more}"));
        let mut counts = vec![vec![0u64; 4]; 4];
        for row in folder.text("scores.csv").lines().skip(1) {
            let classes: Vec<usize> = row.split(',').skip(1).take(2).map(|class| class.parse().unwrap()).collect();
            counts[classes[0]][classes[1]] += 1;
        }
        assert_eq!(confusion, serde_json::json!(counts), "{more}");
    }
}

#[test]
fn names_of_classes_stand_beside_their_numbers() {
    let folder = Folder::with_sources();
    let set = TestSet::of(&folder);
    let odd = ["ring", "a, b", "\"c\"", "d"];
    let header = |data: &str, model: &str| {
        folder.done(&format!("predict --model {model} --data {data} --out scores.csv --force"));
        let text = folder.text("scores.csv");
        (text.lines().next().unwrap().to_string(), text)
    };
    npz::write(&folder.path("named.npz"), &[set.images(), set.labels(), names(odd)]).unwrap();
    npz::write(&folder.path("images.npz"), &[set.images(), names(odd)]).unwrap();
    let scores = "score0,score1,score2,score3";
    let (columns, text) = header("named.npz", "texture.safetensors");
    assert_eq!(columns, format!("index,label,predicted,label_name,predicted_name,{scores}"));
    let quoted = ["ring", "\"a, b\"", "\"\"\"c\"\"\"", "d"];
    for (row, &label) in text.lines().skip(1).zip(&set.labels) {
        let predicted: usize = row.split(',').nth(2).unwrap().parse().unwrap();
        let expected = format!(",{label},{predicted},{},{},", quoted[label as usize], quoted[predicted]);
        assert!(row.contains(&expected), "{row}");
    }
    let (columns, _) = header("images.npz", "texture.safetensors");
    assert_eq!(columns, format!("index,label,predicted,predicted_name,{scores}"));

    // The network's own names, where the file has none; and they have to mean the same.
    let mut data = Dataset::load(&folder.path("data/texture.npz")).unwrap();
    data.class_names = Some(odd.map(String::from).to_vec());
    data.save(&folder.path("training.npz")).unwrap();
    folder.done(&format!("train --data training.npz {SHORT} --out named.safetensors"));
    set.write(&folder, "unnamed.npz");
    assert!(header("unnamed.npz", "named.safetensors").0.contains("label_name,predicted_name"));
    npz::write(&folder.path("swapped.npz"), &[set.images(), names(["a, b", "ring", "c", "d"])]).unwrap();
    let says = &["its class 0 is 'ring', and that of swapped.npz is 'a, b'"];
    let swapped = "predict --model named.safetensors --data swapped.npz --out o";
    assert_refused(&folder, &[case("swapped", swapped, says)]);
}

#[test]
fn scores_go_to_stdout_and_nothing_else_does() {
    let folder = Folder::with_sources();
    folder.done(&format!("{PREDICT} data/texture.npz --out scores.csv"));
    let before = folder.snapshot();
    let printed = folder.done(&format!("{PREDICT} data/texture.npz --out -"));
    assert!(folder.snapshot() == before && printed == folder.text("scores.csv"), "{printed}");
    let run: Run = folder.run(&format!("{PREDICT} data/texture.npz --out - --json"));
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("error: --out - writes CSV to stdout, and --json an object\nhint: "), "{}", run.stderr);
    let object: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(object["error"]["exit_code"], 2);
    // A file of that name has a longer one.
    folder.done(&format!("{PREDICT} data/texture.npz --out ./-"));
    assert_eq!(folder.text("-"), printed);
}

#[test]
fn medmnists_format_has_the_index_and_the_scores() {
    let folder = Folder::with_sources();
    let all = format!("{PREDICT} data/texture.npz --logits --out");
    let plain = folder.done(&format!("{all} - --format medmnist"));
    let table = scores(&folder.done(&format!("{all} -")));
    assert_eq!(plain.lines().count(), 24);
    for (index, (line, scores)) in plain.lines().zip(table).enumerate() {
        let fields: Vec<f32> = line.split(',').map(|field| field.parse().unwrap()).collect();
        assert_eq!((fields[0], &fields[1..]), (index as f32, &scores[..]));
    }
    let result = folder.json(&format!("{all} plain.csv --format medmnist"));
    assert_eq!((&result["format"], &result["images"]), (&"medmnist".into(), &24.into()));
    assert_eq!(folder.text("plain.csv"), plain);
    let says = &["invalid value 'pandas' for '--format <FORMAT>'", "medmnist"];
    assert_refused(&folder, &[case("format", format!("{all} o --format pandas"), says)]);
}
