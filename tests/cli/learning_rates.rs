//! `train --find-learning-rate`.

use crate::support::{Folder, assert_refused, case};

const FIND: &str = "train --from shape.safetensors --new-head --data data/target.npz --batch-size 16";

#[test]
fn a_learning_rate_is_found_by_any_number_of_threads() {
    let folder = Folder::with_sources();
    let before = folder.snapshot();
    let found = folder.json(&format!("{FIND} --find-learning-rate --threads 1"));
    assert!(folder.snapshot() == before, "nothing is written");
    let again = folder.json(&format!("{FIND} --find-learning-rate --threads 2"));
    assert_eq!(found["points"], again["points"]);
    let points = found["points"].as_array().unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    assert_eq!(number(&points[0]["learning_rate"]), 1e-7);
    // As many as were asked for, unless the loss bursts.
    assert!(points.len() == 100 || found["ended_early"] == true, "{}", points.len());
    let (steepest, least) = (number(&found["steepest"]), number(&found["least"]));
    assert!((1e-7..10.0).contains(&steepest) && (1e-7..=10.0).contains(&least), "{steepest} {least}");
    // A rate far below it learns nothing in as many updates, one near it does.
    let last_loss = |rate: f64| {
        let train = format!("{FIND} --steps 40 --schedule constant --learning-rate {rate} --out at --force");
        number(&folder.json(&train)["epochs"].as_array().unwrap().last().unwrap()["train_loss"])
    };
    let (small, good) = (last_loss(1e-7), last_loss(steepest.max(1e-4)));
    assert!(good < 0.9 * small, "{good} of {small} at {steepest}");
}

/// In a run that learns at the rates that were tried, the losses are the same.
#[test]
fn the_losses_are_those_of_training() {
    let folder = Folder::with_sources();
    // So narrow that all rates are nearly the same.
    let found = folder.json(&format!(
        "{FIND} --find-learning-rate=0.001,0.0010000001 --steps 24 --accumulate 2 --optimizer sgd --clip-norm 1"
    ));
    assert_eq!(found["points"].as_array().unwrap().len(), 24);
    let trained = folder.json(&format!(
        "{FIND} --steps 24 --schedule constant --learning-rate 0.001 --accumulate 2 --optimizer sgd --clip-norm 1 --out at"
    ));
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let losses: Vec<f64> = found["points"].as_array().unwrap().iter().map(|point| number(&point["loss"])).collect();
    let epochs: Vec<f64> =
        trained["epochs"].as_array().unwrap().iter().map(|epoch| number(&epoch["train_loss"])).collect();
    for (losses, epoch) in losses.chunks(24 / epochs.len()).zip(&epochs) {
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert!((mean / epoch - 1.0).abs() < 1e-4, "{losses:?} are not {epochs:?}");
    }
}

#[test]
fn a_picture_shows_the_loss() {
    let folder = Folder::with_sources();
    let said = folder.done(&format!("{FIND} --head-only --find-learning-rate=1e-4,1 --steps 30 --picture loss.svg"));
    assert!(said.contains("the loss falls fastest at") && said.contains("loss.svg"), "{said}");
    assert!(String::from_utf8(folder.bytes("loss.svg")).unwrap().contains("learning rate, as a power of ten"));
}

#[test]
fn searches_that_make_no_sense_are_refused() {
    let folder = Folder::with_sources();
    let find = format!("{FIND} --find-learning-rate");
    folder.write("there.svg", "x");
    assert_refused(
        &folder,
        &[
            case("rates that fall", format!("{find}=1,1e-3"), &["learning rates from 1 to 0.001", "1e-7,10"]),
            case("few updates", format!("{find} --steps 5"), &["5 updates", "--steps 20"]),
            case("a rate of 0", format!("{find} --learning-rate 0"), &["a learning rate of 0"]),
            case("a file there", format!("{find} --picture there.svg"), &["there.svg already exists"]),
        ],
    );
    for (arguments, says) in [
        (format!("{find} --epochs 3"), "--epochs"),
        (format!("{find} --out x"), "--out"),
        (format!("{FIND} --picture x.svg --out x"), "--find-learning-rate"),
        (FIND.to_string(), "--out"),
    ] {
        let run = folder.run(&arguments);
        assert!(run.code == Some(2) && run.stderr.contains(says), "{arguments}: {}", run.stderr);
    }
}
