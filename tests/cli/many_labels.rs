//! Images with several labels at once, from the data to the table of predictions.

use std::fs;

use image::GrayImage;
use medmerge::data::{Collecting, Dataset, Split, SplitName, Task};

use crate::support::{Folder, assert_refused, case, floats};

const TRAIN: &str = "train --architecture resnet8 --width 4 --batch-size 8 --learning-rate 1e-2 --seed 3";

/// Bright on the left, on the right, below: any of them, or none.
fn image(index: usize) -> (Vec<u8>, u32) {
    let set = (index * 5 + index / 8) as u32 % 8;
    let noise = |at: usize| ((index * 31 + at * 17) % 23) as u8;
    let pixel = |at: usize| {
        let (y, x) = (at / 16, at % 16);
        let is_lit =
            (set & 1 == 1 && x < 4) || (set & 2 == 2 && x >= 12) || (set & 4 == 4 && y >= 12 && x > 4 && x < 11);
        if is_lit { 180 + noise(at) } else { 40 + noise(at) }
    };
    ((0..256).map(pixel).collect(), set)
}

/// `set.npz` of 96, 32 and 48 images, and the same as a folder with a table, `set/labels.csv`.
fn written(folder: &Folder) -> Dataset {
    let mut table = "image,left,right,below,split\n".to_string();
    let mut first = 0;
    fs::create_dir_all(folder.path("set")).unwrap();
    let splits = [("train", 96), ("val", 32), ("test", 48)].map(|(split, count)| {
        let (mut bytes, mut labels) = (Vec::new(), Vec::new());
        for index in first..first + count {
            let (pixels, set) = image(index);
            GrayImage::from_raw(16, 16, pixels.clone())
                .unwrap()
                .save(folder.path(&format!("set/{index:03}.png")))
                .unwrap();
            table += &format!("{index:03},{},{},{},{split}\n", set & 1, set >> 1 & 1, set >> 2);
            bytes.extend(pixels);
            labels.push(set);
        }
        first += count;
        Split::in_memory(bytes, [16, 16, 1], labels)
    });
    folder.write("set/labels.csv", table.as_bytes());
    let [train, val, test] = splits;
    let data = Dataset {
        path: "set".into(),
        train,
        val,
        test,
        height: 16,
        width: 16,
        channels: 1,
        classes: 3,
        task: Task::MultiLabel,
        class_names: Some(["left", "right", "below"].map(String::from).to_vec()),
        drawn: None,
    };
    data.save(&folder.path("set.npz")).unwrap();
    data
}

#[test]
fn labels_that_go_together_are_learned() {
    let folder = Folder::new();
    let data = written(&folder);
    let as_folder =
        Dataset::open(&folder.path("set"), &Collecting { image_size: Some(16), ..Collecting::default() }).unwrap();
    assert_eq!(as_folder.data.sha256().unwrap(), data.sha256().unwrap());
    let said = folder.json("inspect set.npz");
    assert_eq!((&said["summary"]["task"], &said["summary"]["classes"]), (&"multi-label".into(), &3.into()));

    assert!(folder.done("inspect set.npz").contains("3 labels, several at once"));

    folder.done(&format!("{TRAIN} --data set.npz --epochs 6 --out a --threads 1"));
    folder.done(&format!("{TRAIN} --data set --image-size 16 --epochs 6 --out b --threads 2"));
    assert!(floats(&folder, "a") == floats(&folder, "b"));
    let found = folder.json("eval --model a --data set.npz");
    let metrics = &found["metrics"];
    // By chance .5; the three places are far apart.
    assert!(metrics["auc"].as_f64().unwrap() > 0.95, "{metrics}");
    let [tn, fp, fneg, tp] = [0, 1, 2, 3].map(|at| metrics["confusion"][1][at].as_u64().unwrap());
    let expected = data.class_counts(SplitName::Test)[1] as u64;
    assert_eq!((tn + fp, fneg + tp), (48 - expected, expected));

    folder.done("predict --model a --data set.npz --out scores.csv");
    let table = folder.text("scores.csv");
    let header = "index,label,predicted,label_name,predicted_name,score0,score1,score2";
    assert_eq!(table.lines().next(), Some(header));
    let mut agree = 0;
    for (index, line) in table.lines().skip(1).enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        let scores: Vec<f64> = fields[5..].iter().map(|score| score.parse().unwrap()).collect();
        let likely: Vec<String> =
            (0..3).filter(|&label| scores[label] > 0.5).map(|label: usize| label.to_string()).collect();
        assert_eq!(fields[2], likely.join("|"), "{line}");
        let set = data.test.labels[index];
        let names: Vec<&str> =
            (0..3).filter(|label| set >> label & 1 == 1).map(|l| ["left", "right", "below"][l]).collect();
        assert_eq!(fields[3], names.join("|"), "{line}");
        agree += (0..3).filter(|&label| (scores[label] > 0.5) == (set >> label & 1 == 1)).count();
    }
    assert_eq!(metrics["accuracy"].as_f64().unwrap(), agree as f64 / (3.0 * 48.0));

    // Thresholds are chosen on validation and measured on test.
    let by = |by: &str| folder.json(&format!("eval --model a --data set.npz --threshold-by {by} --bootstrap 0"));
    let thresholds = by("f1")["thresholds"].clone();
    assert_eq!(thresholds.as_array().unwrap().len(), 3);
    assert!(thresholds[0]["f1"].as_f64().unwrap() > 0.8, "{thresholds}");
    assert!(thresholds[0]["threshold"].as_f64().is_some_and(|t| t > 0.0 && t < 1.0));
    assert_eq!(by("youden")["metrics"]["auc"], metrics["auc"]);
    let said = folder.done("eval --model a --data set.npz --threshold-by youden --bootstrap 0");
    assert!(said.contains("by thresholds that are best on the val split"), "{said}");

    // Weights of labels, smoothing, a merge, and an ensemble.
    folder.done(&format!("{TRAIN} --data set.npz --epochs 1 --class-weights balanced --label-smoothing 0.1 --out c"));
    assert!(floats(&folder, "c") != floats(&folder, "a"));
    folder.done(
        "learn --models a c --anchor 0 --data set.npz --epochs 6 --batch-size 8 --learning-rate 1e-2 --out merged",
    );
    for model in ["merged", "a a"] {
        let found = folder.json(&format!("eval --model {model} --data set.npz"));
        assert!(found["metrics"]["auc"].as_f64().unwrap() > 0.7, "{model}: {found}");
    }
    folder.done("merge --models a c --method fisher --data set.npz --out weighed");
    assert_eq!(folder.json("eval --model weighed --data set.npz")["images"], 48);

    // A network of one kind of labels says nothing of the other.
    folder.data("data", "");
    folder.done(&format!("{TRAIN} --data data/target.npz --epochs 1 --out classes"));
    assert_refused(
        &folder,
        &[
            case("classes", "eval --model a --data data/target.npz", &["test_labels has one label per image"]),
            case(
                "of a folder",
                "eval --model a --data set --label-column left",
                &["multi-class labels, and the network has multi-label ones"],
            ),
            case(
                "thresholds",
                "eval --model classes --data data/target.npz --threshold-by f1 --bootstrap 0",
                &["a threshold of 16 classes"],
            ),
            case("of itself", "eval --model a --data set.npz --split val --threshold-by f1", &["which is measured"]),
            case(
                "merged",
                "merge --models a classes --coefficients 0.5,0.5 --heads concat --out x",
                &["tells classes apart, the other findings"],
            ),
        ],
    );
}

/// Who measures draws the same splits again, or says that they are others.
#[test]
fn splits_are_those_of_training() {
    let folder = Folder::new();
    written(&folder);
    let table = folder.text("set/labels.csv");
    let without = table.lines().map(|line| line.rsplit_once(',').unwrap().0.to_string() + "\n");
    folder.write("set/labels.csv", without.collect::<String>().as_bytes());
    let other = folder.text("set/labels.csv").replace(",1,1,", ",1,0,");
    folder.write("other.csv", other.as_bytes());
    folder.done(&format!("{TRAIN} --data set --label-column left,below --image-size 16 --epochs 1 --out a"));
    assert_eq!(folder.json("eval --model a --data set")["metrics"]["per_class"].as_array().unwrap().len(), 2);
    fs::remove_file(folder.path("set/000.png")).unwrap();
    let said = ["the splits that are drawn are not those of training", "--write-splits"];
    assert_refused(&folder, &[case("fewer", "eval --model a --data set --skip-broken", &said)]);
    folder.done("eval --model a --data set --skip-broken --split-seed 0");
    folder.done("predict --model a --data set --skip-broken --split-seed 4 --out scores.csv");
    folder.done(&format!("{TRAIN} --data set --labels other.csv --skip-broken --image-size 16 --epochs 1 --out b"));
    let said = ["not those of training", "--labels …/other.csv"];
    assert_refused(&folder, &[case("labels", "eval --model b --data set --skip-broken", &said)]);
    folder.done("eval --model b --data set --skip-broken --labels other.csv");
}

/// `soft.npz` and the same as a folder with a table: two annotators of four classes, who do not always agree.
fn soft(folder: &Folder) -> Dataset {
    let mut table = "image,none,left,right,both,split\n".to_string();
    let mut first = 0;
    fs::create_dir_all(folder.path("soft")).unwrap();
    let splits = [("train", 64), ("val", 32), ("test", 32)].map(|(split, count)| {
        let (mut bytes, mut labels, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for index in first..first + count {
            let (pixels, set) = image(index);
            let name = folder.path(&format!("soft/{index:03}.png"));
            GrayImage::from_raw(16, 16, pixels.clone()).unwrap().save(name).unwrap();
            let (class, other) = (set as usize & 3, index % 4);
            let mut row = [0f32; 4];
            row[class] += 0.75;
            row[other] += 0.25;
            table += &format!("{index:03},{},{},{},{},{split}\n", row[0], row[1], row[2], row[3]);
            bytes.extend(pixels);
            labels.push(class as u32);
            shares.extend(row);
        }
        first += count;
        Split::in_memory(bytes, [16, 16, 1], labels).with_shares(Some(shares.into()))
    });
    folder.write("soft/labels.csv", table.as_bytes());
    let [train, val, test] = splits;
    let class_names = Some(["none", "left", "right", "both"].map(String::from).to_vec());
    let (path, task) = ("soft".into(), Task::MultiClass);
    let data = Dataset {
        path,
        train,
        val,
        test,
        height: 16,
        width: 16,
        channels: 1,
        classes: 4,
        task,
        class_names,
        drawn: None,
    };
    data.save(&folder.path("soft.npz")).unwrap();
    data
}

#[test]
fn soft_labels_are_learned_from() {
    let folder = Folder::new();
    let data = soft(&folder);
    let collecting = Collecting { image_size: Some(16), ..Collecting::default() };
    let as_folder = Dataset::open(&folder.path("soft"), &collecting).unwrap();
    let as_file = Dataset::open(&folder.path("soft.npz"), &Collecting::default()).unwrap();
    for found in [&as_folder.data, &as_file.data] {
        assert_eq!(found.sha256().unwrap(), data.sha256().unwrap());
        assert!(found.train.is_soft() && found.task == Task::MultiClass);
    }
    assert!(as_folder.remarks.iter().any(|remark| remark.contains("shares of classes")), "{:?}", as_folder.remarks);

    folder.done(&format!("{TRAIN} --data soft.npz --epochs 3 --out a --threads 1"));
    folder.done(&format!("{TRAIN} --data soft --image-size 16 --epochs 3 --out b --threads 2"));
    assert!(floats(&folder, "a") == floats(&folder, "b"));
    // The same labels without doubt teach something else.
    let [train, val, test] = SplitName::ALL.map(|name| data.split(name).clone().with_shares(None));
    let hard = Dataset { train, val, test, ..data };
    hard.save(&folder.path("hard.npz")).unwrap();
    folder.done(&format!("{TRAIN} --data hard.npz --epochs 3 --out c"));
    assert!(floats(&folder, "a") != floats(&folder, "c"));
    // Figures count the class of the largest share.
    assert_eq!(
        folder.json("eval --model a --data soft.npz")["metrics"],
        folder.json("eval --model a --data hard.npz")["metrics"]
    );
    // Splits that are written keep shares.
    folder.done("inspect soft --image-size 16 --write-splits again.csv");
    let again = Collecting { labels: Some(folder.path("again.csv")), ..collecting };
    let again = Dataset::open(&folder.path("soft"), &again).unwrap().data;
    assert_eq!(again.sha256().unwrap(), as_folder.data.sha256().unwrap());
    folder.done(&format!("{TRAIN} --data soft.npz --epochs 1 --mixup 0.5 --sampling balanced --out d"));
}
