//! A family of networks of one's own: a description, its layers, and everything else follows. Files that are written
//! carry the description, and are read as those of the built-in families are.
//!
//! ```text
//! cargo run --release --example custom_network
//! ```

use std::fmt;

use medmerge::checkpoint::{self, Checkpoint};
use medmerge::data::Normalisation;
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::error::{Error, Result};
use medmerge::merge::training_metadata;
use medmerge::nn::{Architecture, Family, Model, NetworkBuilder, Operation};
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::pool::Pool;
use medmerge::output::OutputPath;
use medmerge::train::{Place, Silent, Subject, Target, TrainOptions, train};
use serde::{Deserialize, Serialize};

/// Convolutions one after the other, the image halved behind each.
#[derive(Debug, Serialize, Deserialize)]
struct Plain {
    widths: Vec<usize>,
}

impl Family for Plain {
    const NAME: &'static str = "plain";

    fn check(&self, _input_channels: usize) -> std::result::Result<(), String> {
        match self.widths.iter().find(|width| !(1..=1024).contains(*width)) {
            Some(width) => Err(format!("a convolution of {width} filters")),
            None => Ok(()),
        }
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        let mut x = b.input();
        for (index, &width) in self.widths.iter().enumerate() {
            x = b.conv2d(&format!("conv{index}"), x, width, 3, Conv2d::new(1, 1));
            x = b.batch_norm(&format!("bn{index}"), x);
            x = b.plain(&format!("relu{index}"), Operation::Relu, &[x]);
            x = b.plain(&format!("pool{index}"), Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
        }
        x = b.plain("avgpool", Operation::GlobalAveragePool, &[x]);
        b.linear("fc", x, classes);
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} convolutions", self.widths.len())
    }
}

pub fn main() -> Result<()> {
    Architecture::register::<Plain>();
    let architecture = Architecture::from(Plain { widths: vec![8, 16] });
    let options = SyntheticOptions { size: 16, train: 160, val: 32, test: 16, ..SyntheticOptions::default() };
    let data = generate(Task::Shape, &options);
    let mut model = Model::initialized(architecture.build(data.channels, data.classes), 0);
    let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
    let options = TrainOptions { epochs: 3, batch_size: 16, learning_rate: 3e-3, ..TrainOptions::default() };
    let history = train(&mut model, &mut Subject::Everything, target, &options, &mut Silent)?;
    for epoch in &history {
        println!(
            "epoch {}: loss {:.3}, macro F1 {:.3}",
            epoch.epoch,
            epoch.train_loss,
            epoch.val_macro_f1.unwrap_or(0.0)
        );
    }

    let folder = tempfile::tempdir().map_err(Error::io("make", "a temporary folder"))?;
    let path = folder.path().join("plain.safetensors");
    let metadata = training_metadata(&architecture, 0, None);
    checkpoint::save(&mut OutputPath::check(&path, false, 0)?, &model, &metadata)?;
    let read = Checkpoint::load(&path)?;
    println!("{}: {} parameters", read.architecture, read.model.network.parameter_count());
    assert_eq!(read.architecture, architecture);
    Ok(())
}
