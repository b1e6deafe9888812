//! One file per verb: options in, library call, printing.

mod bench;
mod demo;
mod devices;
mod evaluate;
mod flags;
mod inspect;
mod kernels;
mod learn;
mod merge;
mod place;
mod progress;
mod selftest;
mod synth;
mod train;

use std::io::Write;
use std::path::Path;

use clap::ArgMatches;

use medmerge::data::{Augmentation, Dataset, Normalisation, check_channels};
use medmerge::error::{Error, Result};
use medmerge::nn::Network;
use medmerge::train::{OptimizerKind, Schedule, TrainOptions};

use crate::cli::{self, Cli, Global, Verb};
use crate::terminal;

/// Does what the command line, `matches`, asks for.
pub fn run(cli: Cli, matches: &ArgMatches) -> Result<()> {
    let Cli { verb, global } = cli;
    flags::check(&verb, &global, matches)?;
    place::check(&global)?;
    if let Some(threads) = global.threads {
        if threads == 0 || threads > 1024 {
            return Err(Error::usage(format!("--threads {threads}"), "give between 1 and 1024"));
        }
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first use of the thread pool");
    }
    match verb {
        Verb::Demo(options) => demo::run(&options, &global),
        Verb::Train(options) => train::run(&options, &global),
        Verb::Learn(options) => learn::run(&options, &global),
        Verb::Merge(options) => merge::run(&options, &global),
        Verb::Eval(options) => evaluate::eval(&options, &global),
        Verb::Predict(options) => evaluate::predict(&options, &global),
        Verb::Inspect(options) => inspect::run(&options, &global),
        Verb::Synth(options) => synth::run(&options, &global),
        Verb::Bench(options) => bench::run(&options, &global),
        Verb::Selftest(options) => selftest::run(&options, &global),
        Verb::Kernels(options) => kernels::run(&options, &global),
        Verb::Devices => devices::run(&global),
    }
}

/// Prints a result for machines, or what `print` writes for people.
fn report(
    global: &Global,
    result: &serde_json::Value,
    print: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    if global.json { terminal::print_object(result) } else { terminal::print(print) }
}

/// A line for people on stderr that is not the result.
fn note(global: &Global, text: std::fmt::Arguments) {
    if !global.quiet {
        terminal::say(text);
    }
}

fn load_data(options: &cli::Data) -> Result<(Dataset, Normalisation)> {
    let normalisation = Normalisation { mean: options.mean.clone(), std: options.std.clone() };
    Ok((Dataset::load(&options.data)?, normalisation))
}

/// Refuses images that do not fit a network, before either is used.
fn check_fit(data: &Dataset, normalisation: &Normalisation, network: &Network, model: Option<&Path>) -> Result<()> {
    check_channels(data.channels, network.input_channels)?;
    normalisation.check(network.input_channels)?;
    if !network.accepts(data.height, data.width) {
        let message = format!("images of {}×{} are too small for the network", data.height, data.width);
        return Err(Error::data(&data.path, message, "use larger images, or a network with the 3x3 stem"));
    }
    match model {
        Some(model) if network.classes != data.classes => {
            let message =
                format!("it tells {} classes apart, and {} has {}", network.classes, data.path.display(), data.classes);
            Err(Error::checkpoint(model, message, "train a new head on this data set: medmerge train --from"))
        }
        _ => Ok(()),
    }
}

fn train_options(schedule: &cli::Schedule, merge_learning_rate: f64, global: &Global) -> Result<TrainOptions> {
    let augmentation = Augmentation { flip: schedule.flip, shift: schedule.shift };
    let options = TrainOptions {
        epochs: schedule.epochs,
        batch_size: schedule.batch_size,
        learning_rate: schedule.learning_rate,
        merge_learning_rate,
        optimizer: match schedule.optimizer {
            cli::OptimizerName::Adamw => OptimizerKind::AdamW,
            cli::OptimizerName::Sgd => OptimizerKind::Sgd,
        },
        schedule: match schedule.schedule {
            cli::ScheduleName::Cosine => Schedule::Cosine,
            cli::ScheduleName::Constant => Schedule::Constant,
        },
        weight_decay: schedule.weight_decay,
        label_smoothing: schedule.label_smoothing,
        balance_classes: schedule.class_weights == cli::ClassWeights::Balanced,
        augmentation: (schedule.flip || schedule.shift > 0).then_some(augmentation),
        patience: schedule.patience,
        seed: global.seed,
    };
    options.check()?;
    Ok(options)
}
