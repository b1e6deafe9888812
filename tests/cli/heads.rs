//! One network of sources that tell different classes apart: what becomes of their heads, and who uses which of them.

use medmerge::checkpoint::{self, Metadata};
use medmerge::data::{Dataset, SplitName};
use medmerge::nn::{Architecture, Model};
use medmerge::output::OutputPath;
use serde_json::{Value, json};

use crate::support::{Folder, Run, assert_refused, case, floats};

const SHORT: &str = "--epochs 1 --batch-size 16";
const TWO: &str = "merge --models three.safetensors five.safetensors";
const THREE: [&str; 3] = ["ring", "disc", "star"];
const FIVE: [&str; 5] = ["v", "w", "x,y", "y", "z"];

/// `from` as a data set of other classes: its labels are counted again from 0 after each name.
fn renamed(folder: &Folder, from: &str, to: &str, classes: usize, names: Option<&[&str]>) {
    let mut data = Dataset::load(&folder.path(from)).unwrap();
    for split in [&mut data.train, &mut data.val, &mut data.test] {
        split.labels.iter_mut().for_each(|label| *label %= classes as u32);
    }
    data.classes = classes;
    data.class_names = names.map(|names| names.iter().map(|name| name.to_string()).collect());
    data.save(&folder.path(to)).unwrap();
}

/// Sources of three and of five named classes, with their data sets.
fn with_two_kinds() -> Folder {
    let folder = Folder::new();
    folder.data("data", "");
    renamed(&folder, "data/texture.npz", "data/three.npz", 3, Some(&THREE));
    renamed(&folder, "data/target.npz", "data/five.npz", 5, Some(&FIVE));
    for name in ["three", "five"] {
        folder.source(name, name, "--architecture resnet8 --width 4");
    }
    folder
}

/// Runs what has to succeed, and returns what it says on stderr too.
#[track_caller]
fn done(folder: &Folder, arguments: &str) -> Run {
    let run = folder.run(arguments);
    assert_eq!(run.code, Some(0), "medmerge {arguments}\n{}", run.stderr);
    run
}

#[track_caller]
fn predicted(folder: &Folder, arguments: &str) -> String {
    folder.done(&format!("predict --split test --out - {arguments}"))
}

fn headless(folder: &Folder, from: &str, to: &str) {
    folder.rewrite(from, to, |file| {
        file.tensors.remove("fc.weight");
        file.tensors.remove("fc.bias");
    });
}

#[test]
fn each_head_gives_what_its_source_gave_bit_for_bit() {
    let folder = with_two_kinds();
    for (index, (name, how)) in
        [("three", "--coefficients 1,0"), ("five", "--coefficients 0,1 --anchor 1")].into_iter().enumerate()
    {
        let run = done(&folder, &format!("{TWO} {how} --heads concat --out both --force"));
        assert!(run.stdout.contains("8 classes"), "{}", run.stdout);
        let told =
            "its heads, column by column: three (3 classes: ring, disc, star), five (5 classes: v, w, x,y, y, z)";
        assert!(run.stderr.contains(told), "{}", run.stderr);
        let data = format!("--data data/{name}.npz");
        for more in ["--logits", "", "--format medmnist", "--batch-size 5 --logits"] {
            let alone = predicted(&folder, &format!("--model {name}.safetensors {data} {more}"));
            for head in [name.to_string(), index.to_string()] {
                assert_eq!(predicted(&folder, &format!("--model both --head {head} {data} {more}")), alone, "{more}");
            }
        }
        let metrics = |more: &str| folder.json(&format!("eval {data} {more}"));
        let alone = metrics(&format!("--model {name}.safetensors"));
        assert_eq!(alone["head"], Value::Null);
        // By name, by number, and by the data set's names of classes.
        for head in [format!("--head {name}"), format!("--head {index}"), String::new()] {
            let found = metrics(&format!("--model both {head}"));
            assert_eq!((&found["metrics"], &found["head"]), (&alone["metrics"], &json!(name)), "{head}");
        }
        let text = folder.done(&format!("eval --model both {data}"));
        assert!(text.contains(&format!("both on data/{name}.npz (head {name}, test split")), "{text}");
    }
}

#[test]
fn the_trunk_is_merged_whatever_becomes_of_the_heads() {
    let folder = with_two_kinds();
    let merge = |heads: &str, out: &str| done(&folder, &format!("{TWO} --coefficients 0.25,0.75 {heads} --out {out}"));
    let usual = merge("", "usual");
    assert!(usual.stderr.contains("the anchor's classifier is kept: three.safetensors tells 3"), "{}", usual.stderr);
    merge("--heads merge", "merge");
    assert!(folder.bytes("usual") == folder.bytes("merge"));
    let anchor = merge("--heads anchor --anchor five", "anchor");
    assert!(!anchor.stderr.contains("classifier"), "{}", anchor.stderr);
    let new = merge("--heads new", "new");
    assert!(new.stderr.contains("no classifier: medmerge train --from makes a new one"), "{}", new.stderr);
    assert!(new.stdout.contains("no classifier"), "{}", new.stdout);
    merge("--heads concat", "concat");

    let [three, five] = ["three", "five"].map(|name| floats(&folder, &format!("{name}.safetensors")));
    let usual = floats(&folder, "usual");
    for (name, fc) in [
        ("usual", Some(three["fc.weight"].clone())),
        ("anchor", Some(five["fc.weight"].clone())),
        ("new", None),
        ("concat", Some([three["fc.weight"].clone(), five["fc.weight"].clone()].concat())),
    ] {
        let written = floats(&folder, name);
        assert_eq!(written.get("fc.weight"), fc.as_ref(), "{name}");
        assert_eq!(written["layer1.0.conv1.weight"], usual["layer1.0.conv1.weight"], "{name}");
    }
    assert_eq!(floats(&folder, "concat")["fc.bias"], [&three["fc.bias"][..], &five["fc.bias"]].concat());
    let header = |file: &str, key: &str| folder.json(&format!("inspect {file}"))["metadata"][key].clone();
    for (file, names) in [("usual", json!(THREE)), ("anchor", json!(FIVE))] {
        assert_eq!(header(file, "medmerge.class_names"), json!(names.to_string()), "{file}");
        assert_eq!(header(file, "medmerge.heads"), Value::Null, "{file}");
    }
    assert_eq!(header("new", "medmerge.class_names"), Value::Null);
    // It goes on as any headless network does.
    done(&folder, &format!("train --from new --data data/five.npz {SHORT} --out tuned"));
}

#[test]
fn a_file_lists_its_heads() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 0.5,0.5 --heads concat --card --out both.safetensors"));
    let heads = json!([
        {"name": "three", "classes": 3, "class_names": THREE},
        {"name": "five", "classes": 5, "class_names": FIVE},
    ]);
    let inspected = folder.json("inspect both.safetensors");
    assert_eq!(inspected["heads"], heads);
    assert_eq!(folder.json("inspect three.safetensors")["heads"], json!([]));
    let in_header = |key: &str| -> Value {
        serde_json::from_str(inspected["metadata"][format!("medmerge.{key}")].as_str().unwrap()).unwrap()
    };
    assert_eq!(in_header("heads"), heads);
    assert_eq!(in_header("class_names"), json!([&THREE[..], &FIVE].concat()));
    let text = folder.done("inspect both.safetensors");
    for line in ["  head three (3 classes: ring, disc, star)\n", "  head five (5 classes: v, w, x,y, y, z)\n"] {
        assert!(text.contains(line), "{text}");
    }
    let card = folder.text("both.md");
    assert!(card.contains("## Heads\n\n| | |\n|---|---|\n| three | 3 classes: ring, disc, star |\n"), "{card}");
    assert!(folder.done("export both.safetensors --onnx both.onnx").contains("8 classes"));
    let onnx = folder.bytes("both.onnx");
    let entry = br#"[{"name":"three","classes":3,"#;
    assert!(onnx.windows(entry.len()).any(|window| window == entry));

    // One head without names leaves the network without, and its own head named.
    renamed(&folder, "data/five.npz", "data/unnamed.npz", 5, None);
    folder.done(&format!("train --data data/unnamed.npz --architecture resnet8 --width 4 {SHORT} --out unnamed.pt"));
    folder.done("merge --models three.safetensors unnamed.pt --coefficients 1,0 --heads concat --out half");
    let half = folder.json("inspect half");
    assert_eq!(half["heads"], json!([heads[0], {"name": "unnamed", "classes": 5}]));
    assert_eq!(half["metadata"]["medmerge.class_names"], Value::Null);
    assert_eq!(folder.json("eval --model half --data data/three.npz")["head"], "three");

    // Two files of one name.
    std::fs::create_dir(folder.path("other")).unwrap();
    folder.write("other/three.pth", folder.bytes("five.safetensors"));
    folder.done("merge --models three.safetensors other/three.pth --coefficients 1,0 --heads concat --out alike");
    let names: Vec<Value> =
        folder.json("inspect alike")["heads"].as_array().unwrap().iter().map(|head| head["name"].clone()).collect();
    assert_eq!(names, ["three", "three-2"]);
}

#[test]
fn predictions_of_all_heads_lie_side_by_side() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 0.5,0.5 --heads concat --out both"));
    let data = "--data data/five.npz";
    let rows = |arguments: &str| -> Vec<Vec<String>> {
        // A comma in a name.
        let text = predicted(&folder, &format!("{data} {arguments}")).replace("\"x,y\"", "x.y");
        text.lines().map(|line| line.split(',').map(String::from).collect()).collect()
    };
    for more in ["", "--logits"] {
        let all = rows(&format!("--model both {more}"));
        let columns = "index,label,predicted_three,predicted_name_three,score_three_0,score_three_1,score_three_2,\
                       predicted_five,predicted_name_five,score_five_0,score_five_1,score_five_2,score_five_3,score_five_4";
        assert_eq!(all[0].join(","), columns);
        let five = rows(&format!("--model both --head five {more}"));
        assert_eq!(
            five[0].join(","),
            "index,label,predicted,label_name,predicted_name,score0,score1,score2,score3,score4"
        );
        for (all, five) in all.iter().zip(&five).skip(1) {
            assert_eq!((&all[..2], &all[7], &all[8..]), (&five[..2], &five[2], &five[4..]));
        }
        let test = Dataset::load(&folder.path("data/five.npz")).unwrap().split(SplitName::Test).len();
        assert_eq!((all.len(), five.len()), (test + 1, test + 1));
        // Probabilities are those of a head.
        for row in all.iter().skip(1).filter(|_| more.is_empty()) {
            let sum = |columns: &[String]| columns.iter().map(|p| p.parse::<f32>().unwrap()).sum::<f32>();
            assert!((sum(&row[4..7]) - 1.0).abs() < 1e-5 && (sum(&row[9..]) - 1.0).abs() < 1e-5, "{row:?}");
        }
    }
    // Labels of no head at all.
    folder.done("predict --model both --data data/target.npz --out labels.csv");
    let labels = Dataset::load(&folder.path("data/target.npz")).unwrap().test.labels;
    let text = folder.text("labels.csv");
    let written = text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse::<u32>().unwrap());
    assert_eq!(written.collect::<Vec<_>>(), labels);
}

#[test]
fn a_head_that_is_not_clear_is_asked_for() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 1,0 --heads concat --out both"));
    folder.done("merge --models three.safetensors three.safetensors --coefficients 1,0 --heads concat --out twice");
    renamed(&folder, "data/three.npz", "data/unnamed.npz", 3, None);
    renamed(&folder, "data/three.npz", "data/swapped.npz", 3, Some(&["disc", "ring", "star"]));
    let list = "both has the heads three (3 classes: ring, disc, star), five (5 classes: v, w, x,y, y, z)";
    let ask = "--head 0";
    let one = &["three.safetensors has one head", "leave --head out"];
    assert_refused(
        &folder,
        &[
            case("no names", "eval --model both --data data/unnamed.npz", &[list, "does not name its classes", ask]),
            case("other names", "eval --model both --data data/swapped.npz", &[list, "none of them names", ask]),
            case("two of them", "eval --model twice --data data/three.npz", &["several of them name", ask]),
            case(
                "medmnist",
                "predict --model both --data data/three.npz --format medmnist --out o",
                &[list, "MedMNIST's format", ask],
            ),
            case("one head", "eval --model three.safetensors --head 0 --data data/three.npz", one),
            case("predict of one", "predict --model three.safetensors --head x --data data/three.npz --out o", one),
            case(
                "no such name",
                "eval --model both --head thre --data data/three.npz",
                &["unknown head 'thre'", "did you mean 'three'?"],
            ),
            case("no such number", "eval --model both --head 2 --data data/three.npz", &["unknown head '2' of 2"]),
            case(
                "labels",
                "eval --model both --head three --data data/target.npz",
                &["test_labels has the label", "head three tells 3 classes apart"],
            ),
            case("names", "eval --model both --head 0 --data data/swapped.npz", &["its class 0 is 'ring'"]),
            case(
                "names of more classes",
                "predict --model both --head three --data data/five.npz --out o",
                &["head three tells 3 classes apart"],
            ),
        ],
    );
    folder.done("eval --model both --head three --data data/unnamed.npz");
    folder.done("eval --model twice --head three-2 --data data/three.npz");
}

#[test]
fn heads_that_cannot_be_put_together_are_refused() {
    let folder = with_two_kinds();
    headless(&folder, "five.safetensors", "headless.safetensors");
    let vgg = Architecture::named("vgg11", None, Some(2)).unwrap();
    let with_own_hidden = vgg.with_new_hidden().unwrap();
    for (name, seed, architecture) in [("a", 1, &vgg), ("b", 2, &vgg), ("c", 3, &with_own_hidden)] {
        let mut output = OutputPath::check(&folder.path(&format!("{name}.safetensors")), false, 0).unwrap();
        let metadata = Metadata::from([("medmerge.architecture".to_string(), architecture.to_json())]);
        let model = Model::initialized(architecture.build(3, 2), seed);
        checkpoint::save(&mut output, &model, &metadata).unwrap();
    }
    let vggs = "merge --models a.safetensors b.safetensors --coefficients 0.5,0.5 --heads";
    let merge = format!("{TWO} --coefficients 0.5,0.5");
    assert_refused(
        &folder,
        &[
            case(
                "no classifier",
                "merge --models three.safetensors headless.safetensors --coefficients 1,0 --heads concat --out o",
                &["headless.safetensors has no classifier", "--heads concat"],
            ),
            case(
                "hidden layers",
                format!("{vggs} concat --hidden new --out o"),
                &["a.safetensors: classifier.0.weight belongs to a hidden layer of its head", "--hidden new"],
            ),
            case(
                "hidden layers by what the file says",
                "merge --models c.safetensors c.safetensors --coefficients 1,0 --heads concat --out o",
                &["c.safetensors: classifier.0.weight belongs to a hidden layer of its head"],
            ),
            case("misspelt", format!("{merge} --heads concta --out o"), &["concta", "did you mean 'concat'?"]),
            case(
                "with weights",
                format!("{TWO} --weights w --heads concat --out o"),
                &["--heads", "cannot be used with", "--weights"],
            ),
        ],
    );
    // Hidden layers that are merged are no part of a head.
    folder.done(&format!("{vggs} concat --out vgg"));
    assert_eq!(folder.json("inspect vgg")["classes"], 4);
    folder.done(&format!("{vggs} new --hidden new --out vgg-new"));
}

#[test]
fn training_makes_a_head_of_its_own_and_says_why() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 0.5,0.5 --heads concat --out both"));
    renamed(&folder, "data/target.npz", "data/eight.npz", 8, None);
    let train = format!("train --from both --data data/eight.npz {SHORT} --out tuned");
    let run = done(&folder, &train);
    let told = "the head is new: 8 classes, because both tells several sets of classes apart";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    let inspected = folder.json("inspect tuned");
    assert_eq!((&inspected["heads"], &inspected["classes"]), (&json!([]), &json!(8)));
    assert_eq!(inspected["metadata"]["medmerge.heads"], Value::Null);
    let asked = done(&folder, &train.replace("--out tuned", "--new-head --out asked"));
    assert!(asked.stderr.contains("the head is new: 8 classes\n"), "{}", asked.stderr);
    let learn = format!("learn --models both three.safetensors --data data/eight.npz {SHORT} --anchor 0 --out learned");
    folder.done(&learn);
    assert_eq!(folder.json("inspect learned")["heads"], json!([]));
}

#[test]
fn networks_of_several_heads_are_merged_again() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 1,0 --heads concat --out a.safetensors"));
    folder.done(&format!("{TWO} --coefficients 0,1 --anchor 1 --heads concat --out b.safetensors"));
    folder.done(
        "merge --models five.safetensors three.safetensors --coefficients 1,0 --heads concat --out c.safetensors",
    );
    let merge = |models: &str, how: &str| {
        done(&folder, &format!("merge --models {models} --coefficients 0.5,0.5 {how} --out out --force"))
    };
    let heads = |file: &str| folder.json(&format!("inspect {file}"))["heads"].clone();
    // The same heads: each is averaged with its own.
    let run = merge("a.safetensors b.safetensors", "");
    assert!(!run.stderr.contains("classifier is kept"), "{}", run.stderr);
    assert_eq!(heads("out"), heads("a.safetensors"));
    assert_eq!(folder.json("eval --model out --data data/five.npz")["head"], "five");
    // As many classes, in other heads.
    let run = merge("a.safetensors c.safetensors", "");
    let told = "the anchor's classifier is kept: a.safetensors has the heads three (3 classes: ring, disc, star), five";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    assert_eq!(heads("out"), heads("a.safetensors"));
    assert_eq!(floats(&folder, "out")["fc.weight"], floats(&folder, "a.safetensors")["fc.weight"]);
    merge("a.safetensors c.safetensors", "--heads anchor --anchor 1");
    assert_eq!(heads("out"), heads("c.safetensors"));
    merge("a.safetensors three.safetensors", "--heads new");
    assert_eq!(heads("out"), json!([]));
    merge("a.safetensors three.safetensors", "--heads concat");
    let names: Vec<Value> = heads("out").as_array().unwrap().iter().map(|head| head["name"].clone()).collect();
    assert_eq!(names, ["a.three", "a.five", "three"]);
    assert_eq!(folder.json("inspect out")["classes"], 11);
    folder.done("eval --model out --data data/five.npz");
}

#[test]
fn a_list_of_heads_that_was_altered_is_refused() {
    let folder = with_two_kinds();
    folder.done(&format!("{TWO} --coefficients 1,0 --heads concat --out both"));
    let altered = |to: &str, heads: &str| {
        folder.rewrite("both", to, |file| drop(file.metadata.insert("medmerge.heads".into(), heads.into())));
    };
    altered("sum", r#"[{"name":"a","classes":3},{"name":"b","classes":6}]"#);
    altered("one", r#"[{"name":"a","classes":8}]"#);
    altered("text", "three, five");
    altered("swapped", r#"[{"name":"a","classes":5},{"name":"b","classes":3}]"#);
    let no_sense = "its header's medmerge.heads makes no sense";
    let eval = |model: &str| format!("eval --model {model} --head 0 --data data/three.npz");
    assert_refused(
        &folder,
        &[
            case("sum", eval("sum"), &[no_sense, "heads of 9 classes for a network of 8", "the header was altered"]),
            case("one", eval("one"), &[no_sense, "1 heads"]),
            case("text", eval("text"), &[no_sense]),
            case("swapped", eval("swapped"), &[no_sense, "name other classes than the network"]),
            case("train", "train --from sum --data data/three.npz --out o", &[no_sense]),
            case("export", "export sum --onnx o", &[no_sense]),
        ],
    );
    assert!(folder.done("inspect sum").contains(no_sense));
    // Without the entry it is a network of eight classes; without its classifier, one of none.
    folder.rewrite("both", "plain", |file| drop(file.metadata.remove("medmerge.heads")));
    let table = predicted(&folder, "--model plain --data data/texture.npz");
    assert!(table.starts_with("index,label,predicted,label_name,predicted_name,score0,"), "{table}");
    headless(&folder, "both", "trunk");
    assert_eq!(folder.json("inspect trunk")["heads"], json!([]));
    done(&folder, &format!("train --from trunk --data data/three.npz {SHORT} --out tuned"));
}
