//! Jobs as data: what is written and read back is the same job, and a caller of the library can watch, and stop, one.

use std::path::{Path, PathBuf};

use medmerge::checkpoint::{Reading, Writing};
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::data::{Augmentation, SplitName};
use medmerge::error::Error;
use medmerge::jobs::{
    By, Compare, CompareObserver, Compute, Evaluate, Export, ImageSize, Images, Learn, Merge, Normalise, Predict,
    PredictionFormat, Record, StageRecord, Start, Train,
};
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Heads};
use medmerge::nn::Architecture;
use medmerge::train::{Observer, Protocol, Silent, TrainOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        let options = SyntheticOptions { size: 16, train: 24, val: 8, test: 8, ..SyntheticOptions::default() };
        generate(Task::Shape, &options).save(&folder.path("data.npz")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn images(&self) -> Images {
        Images { data: self.path("data.npz"), normalise: Normalise::default(), collecting: Default::default() }
    }

    fn train(&self, name: &str, seed: u64) -> Train {
        Train {
            images: self.images(),
            start: Start::New {
                architecture: Architecture::named("resnet8", None, Some(4)).unwrap(),
                input_channels: None,
            },
            options: TrainOptions { seed, ..options() },
            compute: compute(),
            out: self.path(name),
            writing: Writing::default(),
            card: None,
            keep_state: false,
            metrics: None,
            tensorboard: None,
            resume: false,
            force: false,
        }
    }

    fn sources(&self) -> Vec<PathBuf> {
        let trained = |(seed, name): (u64, &str)| {
            self.train(name, seed).run(&mut Silent).unwrap();
            self.path(name)
        };
        [(1, "a.safetensors"), (2, "b.safetensors")].map(trained).to_vec()
    }

    fn learn(&self) -> Learn {
        Learn {
            models: vec![self.path("a.safetensors"), self.path("b.safetensors")],
            reading: Reading::default(),
            images: self.images(),
            anchor: "a".into(),
            granularity: Granularity::Filter,
            constraint: Constraint::Affine,
            starts: vec![medmerge::merge::Start::Weight(0.25)],
            batch_norm: BatchNormPolicy::Merge,
            keep_statistics: false,
            align: Default::default(),
            probe_statistics: Default::default(),
            options: options(),
            compute: compute(),
            out: self.path("learned.safetensors"),
            writing: Writing::default(),
            card: None,
            weights: None,
            picture: None,
            resume: false,
            force: false,
        }
    }
}

fn options() -> TrainOptions {
    let augmentation = Some(Augmentation { flip: true, shift: 1, ..Default::default() });
    TrainOptions { epochs: 2, batch_size: 8, augmentation, ..TrainOptions::default() }
}

fn compute() -> Compute {
    Compute { device: "cpu".into(), ..Compute::default() }
}

fn through_json<J: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(job: &J) -> J {
    let json = serde_json::to_string(job).unwrap();
    let again = serde_json::from_str(&json).unwrap();
    assert_eq!(&again, job, "{json}");
    again
}

#[test]
fn a_job_that_was_written_and_read_comes_to_the_same_bytes() {
    let folder = Folder::new();
    let paths = folder.sources();
    let again = Train { force: true, ..through_json(&folder.train("a.safetensors", 1)) };
    let before = std::fs::read(&paths[0]).unwrap();
    again.run(&mut Silent).unwrap();
    assert!(std::fs::read(&paths[0]).unwrap() == before);

    let files = through_json(&folder.learn()).run(&mut Silent).unwrap();
    assert_eq!((files.learned.method.anchor, files.history.len()), (0, 2));
    let merge = Merge {
        models: paths.clone(),
        reading: Reading::default(),
        by: By::Weights { path: files.weights },
        compute: compute(),
        out: folder.path("again.safetensors"),
        writing: Writing::default(),
        card: None,
        force: false,
    };
    let merged = through_json(&merge).run(&mut Silent).unwrap();
    assert_eq!(merged.classes, Some(files.learned.model.network.classes));
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&merge.out) == bytes(&folder.path("learned.safetensors")));

    let evaluate = Evaluate {
        model: merge.out.clone(),
        others: Vec::new(),
        reading: Reading::default(),
        head: None,
        images: folder.images(),
        split: SplitName::Test,
        batch_size: 3,
        test_flips: Default::default(),
        compute: compute(),
    };
    assert_eq!(through_json(&evaluate).run(&mut Silent).unwrap().images, 8);
    let (format, out) = (PredictionFormat::Medmnist, folder.path("scores.csv"));
    let predict = through_json(&Predict { evaluate, logits: true, format, out, force: false });
    assert_eq!(predict.run(&mut Silent).unwrap(), 8);
    let predictions = predict.evaluate.predictions(true, predict.format, &mut Silent).unwrap();
    let mut written = Vec::new();
    predictions.write(predict.format, &mut written).unwrap();
    assert!(written == bytes(&predict.out));
}

#[test]
fn an_export_is_a_job_like_others() {
    let folder = Folder::new();
    folder.train("a.safetensors", 1).run(&mut Silent).unwrap();
    let export = Export {
        model: folder.path("a.safetensors"),
        reading: Reading::default(),
        opset: 18,
        image_size: ImageSize::Trained,
        normalise: Some(Normalise::default()),
        out: folder.path("network.onnx"),
        force: false,
    };
    let exported = through_json(&export).run(&mut Silent).unwrap();
    assert_eq!(exported.bytes, std::fs::metadata(&export.out).unwrap().len());
    for size in [ImageSize::Any, ImageSize::Pixels([8, 9])] {
        through_json(&Export { image_size: size, ..export.clone() });
    }
}

#[test]
fn a_comparison_continues_from_the_runs_that_are_there() {
    let folder = Folder::new();
    let recipes = ["scratch", "fine-tune:source=1", "medmerge:granularity=layer,start=uniform,anchor=1", "ensemble"];
    let compare = Compare {
        models: folder.sources(),
        reading: Reading::default(),
        images: folder.images(),
        protocol: Protocol {
            probe: TrainOptions { epochs: 1, ..options() },
            fine_tuning: TrainOptions { epochs: 1, ..options() },
            learning_rates: vec![1e-2, 1e-3],
        },
        recipes: recipes.map(|text| text.parse().unwrap()).to_vec(),
        seeds: vec![3, 4],
        train_images: None,
        jobs: 1,
        compute: compute(),
        out: folder.path("compared"),
    };
    let summary = through_json(&compare).run(&mut Quiet).unwrap();
    assert_eq!((summary.seeds.as_slice(), summary.rows.len()), (&[3, 4][..], 4));
    assert_eq!(summary.best, [None, Some("fine-tune:b".to_string())]);
    let runs = |name: &str| {
        let of = |seed: u64| std::fs::read_to_string(compare.out.join(format!("runs/{name}/{seed}.json"))).unwrap();
        [3, 4].map(|seed| serde_json::from_str::<Record>(&of(seed)).unwrap())
    };
    let timeless = |record: Record| {
        let stages = record.stages.into_iter().map(|stage| StageRecord { seconds: 0.0, ..stage }).collect();
        Record { stages, ..record }
    };
    let names = ["scratch", "fine-tune_source-1", "medmerge_granularity-layer_start-uniform_anchor-1", "ensemble"];
    let first: Vec<Record> = names.iter().flat_map(|name| runs(name)).map(timeless).collect();
    // Without some of them, with seeds side by side, and with more threads, they are made again, to the bit.
    std::fs::remove_dir_all(compare.out.join("runs/ensemble")).unwrap();
    std::fs::remove_file(compare.out.join(format!("runs/{}/3.json", names[2]))).unwrap();
    let again = Compare { jobs: 2, ..compare.clone() };
    again.run(&mut Quiet).unwrap();
    assert_eq!(names.iter().flat_map(|name| runs(name)).map(timeless).collect::<Vec<_>>(), first);
    // What is there is another comparison.
    let other =
        Compare { protocol: Protocol { learning_rates: vec![1e-2], ..compare.protocol.clone() }, ..compare.clone() };
    assert!(other.run(&mut Quiet).err().unwrap().to_string().contains("another list of --learning-rates"));
    let cost = compare.cost(&mut Silent).unwrap();
    assert_eq!((cost.done, cost.seeds, cost.seconds), (8, 2, 0.0));
    let beyond = Compare { recipes: vec!["lp-ft:source=2".parse().unwrap()], ..compare.clone() };
    assert!(beyond.check().unwrap_err().to_string().contains("there is no source 2 of 2"));
    assert!(Compare { seeds: vec![], ..compare }.check().is_err());
}

/// Sees nothing of a comparison.
struct Quiet;

impl Observer for Quiet {}

impl CompareObserver for Quiet {}

#[test]
fn what_is_wrong_in_itself_is_refused_before_anything_is_read() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let job = folder.train("out.safetensors", 1);
    job.check().unwrap();
    let refused = |job: Train, says: &str| {
        let error = job.check().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(Train { options: TrainOptions { epochs: 0, ..options() }, ..job.clone() }, "0 epochs");
    refused(Train { compute: Compute { device: "gpu".into(), ..compute() }, ..job.clone() }, "unknown device 'gpu'");
    refused(Train { compute: Compute { precision: "bf16".into(), ..compute() }, ..job.clone() }, "bf16");
    refused(Train { out: folder.path("data.npz"), ..job }, "data.npz");
    // Jobs that were written before heads could be chosen.
    let by = r#"{"coefficients": {"values": [1.0, 0.0], "anchor": "0", "batch_norm": "merge", "data": null, "normalise": {}}}"#;
    let By::Coefficients(by_method) = serde_json::from_str(by).unwrap() else { panic!("{by}") };
    let heads = by_method.heads;
    assert_eq!(heads, Heads::Merge);
    let evaluate = r#"{"model": "a", "images": {"data": "b"}, "split": "test", "batch_size": 1, "compute": COMPUTE}"#;
    let evaluate = evaluate.replace("COMPUTE", &serde_json::to_string(&compute()).unwrap());
    assert_eq!(serde_json::from_str::<Evaluate>(&evaluate).unwrap().head, None);
    // A misspelt option is no option that is silently as usual.
    let mut json = serde_json::to_value(folder.train("out.safetensors", 1)).unwrap();
    json["resum"] = true.into();
    let error = serde_json::from_value::<Train>(json).unwrap_err().to_string();
    assert!(error.contains("unknown field `resum`"), "{error}");
    let error = serde_json::from_str::<TrainOptions>(r#"{"epoch": 3}"#).unwrap_err().to_string();
    assert!(error.contains("unknown field `epoch`"), "{error}");
}

/// Stops before a certain step, and counts those that were.
struct Stopping {
    before: usize,
    steps: usize,
    remarks: Vec<String>,
}

impl Observer for Stopping {
    fn step(&mut self, _: usize, _: usize, _: f32) {
        self.steps += 1;
    }

    fn stops(&mut self) -> bool {
        self.steps >= self.before
    }

    fn remark(&mut self, text: &str) {
        self.remarks.push(text.to_string());
    }
}

/// What a stopped run kept is continued to the bytes of one that was never stopped.
#[test]
fn a_caller_can_stop_between_two_steps() {
    let folder = Folder::new();
    let whole = folder.train("whole.safetensors", 1);
    whole.run(&mut Silent).unwrap();
    let job = Train { out: folder.path("stopped.safetensors"), resume: true, ..whole.clone() };
    // Three steps an epoch.
    let mut observer = Stopping { before: 4, steps: 0, remarks: Vec::new() };
    let error = job.run(&mut observer).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Interrupted { last_checkpoint: Some(path) } if *path == job.out), "{error:?}");
    assert_eq!(observer.steps, 4);
    let mut observer = Stopping { before: usize::MAX, steps: 0, remarks: Vec::new() };
    job.run(&mut observer).unwrap();
    assert_eq!(observer.steps, 3);
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&job.out) == bytes(&whole.out));

    let learn = folder.learn();
    folder.sources();
    let mut observer = Stopping { before: 2, steps: 0, remarks: Vec::new() };
    assert!(matches!(learn.run(&mut observer).map(drop), Err(Error::Interrupted { .. })));
    assert!(!learn.out.exists());
}

/// Learning continues like training, and does not probe again.
#[test]
fn learning_that_was_stopped_is_continued() {
    let folder = Folder::new();
    folder.sources();
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    // Two probes of two epochs of three steps, then an epoch, and on the CPU a step: a GPU tells of steps at the end.
    let mut runs = vec![(Granularity::Filter, compute(), 16), (Granularity::Kernel, compute(), 16)];
    if cfg!(feature = "emulator") {
        let on_emulator = Compute { device: "emulator".into(), precision: "f16".into(), ..compute() };
        runs.push((Granularity::Filter, on_emulator, 15));
    }
    for (granularity, compute, before) in runs {
        let named = |name: &str, resume: bool| Learn {
            out: folder.path(&format!("{granularity}-{}-{name}.safetensors", compute.device)),
            anchor: "auto".into(),
            granularity,
            compute: compute.clone(),
            resume,
            ..folder.learn()
        };
        let whole = named("whole", false);
        let expected = whole.run(&mut Silent).unwrap();
        let job = named("stopped", true);
        let mut observer = Stopping { before, steps: 0, remarks: Vec::new() };
        assert!(matches!(job.run(&mut observer).map(drop), Err(Error::Interrupted { .. })));
        // Another run's state is refused, by the name of what differs.
        let other = Learn { constraint: Constraint::Free, ..job.clone() };
        let error = other.run(&mut Silent).map(drop).unwrap_err().to_string();
        assert!(error.contains("--constraint was \"affine\" and is \"free\""), "{error}");
        let mut observer = Stopping { before: usize::MAX, steps: 0, remarks: Vec::new() };
        let files = job.run(&mut observer).unwrap();
        assert_eq!(observer.steps, 3, "only the second epoch is left");
        assert_eq!(files.anchor.index, expected.anchor.index);
        assert!(bytes(&job.out) == bytes(&whole.out) && bytes(&files.weights) == bytes(&expected.weights));
        let rows = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap();
            // But for the seconds.
            text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(rows(&files.log), rows(&expected.log));
        assert!(!job.out.with_extension("resume.safetensors").exists());
    }
}

/// Of several starts and anchors the best is kept, with the bits that it has alone, also after a stop.
#[test]
fn the_best_of_several_starts_is_kept() {
    use medmerge::merge::Start::{Uniform, Weight};
    let folder = Folder::new();
    folder.sources();
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let mut alone = Vec::new();
    for (index, anchor) in ["a", "b"].into_iter().enumerate() {
        for start in [Weight(0.0), Uniform] {
            let out = folder.path(&format!("{anchor}-{start}.safetensors"));
            let job = Learn { out, anchor: anchor.into(), starts: vec![start], ..folder.learn() };
            let files = job.run(&mut Silent).unwrap();
            assert!(files.tried.is_empty());
            let scores: Vec<f64> = files.history.iter().map(|record| record.val_macro_f1.unwrap()).collect();
            let score = scores.into_iter().fold(0.0, f64::max);
            alone.push((
                medmerge::train::Tried { anchor: index, start, score },
                bytes(&job.out),
                bytes(&files.weights),
            ));
        }
    }
    let (anchor, starts) = ("each".to_string(), vec![Weight(0.0), Uniform]);
    let job = Learn { out: folder.path("best.safetensors"), anchor, starts, resume: true, ..folder.learn() };
    // Two epochs of three steps each: in the second of the third.
    let mut observer = Stopping { before: 16, steps: 0, remarks: Vec::new() };
    assert!(matches!(job.run(&mut observer).map(drop), Err(Error::Interrupted { .. })));
    let mut observer = Stopping { before: usize::MAX, steps: 0, remarks: Vec::new() };
    let files = job.run(&mut observer).unwrap();
    assert_eq!(observer.steps, 9, "of the third an epoch, and all of the fourth");
    let tried: Vec<_> = alone.iter().map(|(tried, ..)| tried.clone()).collect();
    assert_eq!(files.tried, tried);
    let best = tried.iter().map(|tried| tried.score).fold(0.0, f64::max);
    assert!(tried.iter().any(|tried| tried.score < best), "{tried:?}");
    let (_, out, weights) = alone.into_iter().find(|(tried, ..)| tried.score == best).unwrap();
    assert!(bytes(&job.out) == out && bytes(&files.weights) == weights);
    let left: Vec<_> =
        std::fs::read_dir(job.out.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("resume")), "{left:?}");
}

/// Steps are epochs, rounded up.
#[test]
fn steps_are_counted_in_epochs() {
    let folder = Folder::new();
    let mut job = folder.train("steps.safetensors", 1);
    // Three of them are an epoch.
    job.options.steps = Some(4);
    let by_steps = job.run(&mut Silent).unwrap();
    job.options.epochs = 2;
    job.options.steps = None;
    job.out = folder.path("epochs.safetensors");
    let by_epochs = job.run(&mut Silent).unwrap();
    assert_eq!(by_steps.history.len(), 2);
    assert!(std::fs::read(folder.path("steps.safetensors")).unwrap() == std::fs::read(&job.out).unwrap());
    assert_eq!(by_epochs.history.len(), 2);
}
