//! Two networks to one, from Rust: train two sources on generated data, learn merge weights on a third data set, fold,
//! fine-tune, evaluate.
//!
//! ```text
//! cargo run --release --example merge_two
//! ```

use std::path::Path;

use medmerge::checkpoint::{Reading, Writing};
use medmerge::data::Collecting;
use medmerge::data::SplitName;
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::error::{Error, Result};
use medmerge::jobs::{Compute, Evaluate, Images, Learn, Normalise, Start, Train};
use medmerge::merge::{Align, BatchNormPolicy, Constraint, Granularity};
use medmerge::nn::Architecture;
use medmerge::train::{Silent, TrainOptions};

pub fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io("make", "a temporary folder"))?;
    let path = |name: &str| folder.path().join(name);
    for (name, task) in [("texture", Task::Texture), ("shape", Task::Shape), ("target", Task::Both)] {
        let options = SyntheticOptions { size: 16, train: 160, val: 32, test: 64, ..SyntheticOptions::default() };
        generate(task, &options).save(&path(&format!("{name}.npz")))?;
    }
    let images = |name: &str| Images {
        data: path(&format!("{name}.npz")),
        normalise: Normalise::default(),
        collecting: Collecting::default(),
    };
    let options = TrainOptions { epochs: 2, batch_size: 16, learning_rate: 3e-3, ..TrainOptions::default() };

    // Two sources, each from an initialisation of its own.
    for (seed, name) in [(1, "texture"), (2, "shape")] {
        let architecture = Architecture::named("resnet8", None, Some(8))?;
        let job = Train {
            images: images(name),
            start: Start::New { architecture, input_channels: None },
            options: TrainOptions { seed, ..options.clone() },
            compute: Compute::default(),
            out: path(&format!("{name}.safetensors")),
            writing: Writing::default(),
            card: None,
            keep_state: false,
            metrics: None,
            tensorboard: None,
            resume: false,
            force: false,
        };
        job.run(&mut Silent)?;
    }

    // One number per filter says how much of each is kept.
    let learn = Learn {
        models: vec![path("texture.safetensors"), path("shape.safetensors")],
        reading: Reading::default(),
        images: images("target"),
        anchor: "texture".into(),
        granularity: Granularity::Kernel,
        constraint: Constraint::Affine,
        starts: vec![medmerge::merge::Start::Weight(0.0)],
        batch_norm: BatchNormPolicy::Merge,
        keep_statistics: false,
        align: Align::None,
        probe_statistics: Default::default(),
        options: options.clone(),
        compute: Compute::default(),
        out: path("merged.safetensors"),
        writing: Writing::default(),
        card: None,
        weights: None,
        picture: None,
        resume: false,
        force: false,
    };
    let learned = learn.run(&mut Silent)?.learned;
    println!("{} merge weights", learned.merge_weights.shape().len());

    let tune = Train {
        images: images("target"),
        start: Start::From {
            path: learn.out.clone(),
            reading: Reading::default(),
            new_head: false,
            head_only: false,
            teachers: Vec::new(),
        },
        options,
        compute: Compute::default(),
        out: path("tuned.safetensors"),
        writing: Writing::default(),
        card: None,
        keep_state: false,
        metrics: None,
        tensorboard: None,
        resume: false,
        force: false,
    };
    tune.run(&mut Silent)?;
    for model in [&learn.out, &tune.out] {
        println!("{}: macro F1 {:.3}", shown(model), macro_f1(model, images("target"))?);
    }
    Ok(())
}

fn macro_f1(model: &Path, images: Images) -> Result<f64> {
    let evaluate = Evaluate {
        model: model.to_path_buf(),
        others: Vec::new(),
        reading: Reading::default(),
        head: None,
        images,
        split: SplitName::Test,
        batch_size: 64,
        test_flips: Default::default(),
        compute: Compute::default(),
    };
    Ok(evaluate.run(&mut Silent)?.metrics.macro_f1)
}

fn shown(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
