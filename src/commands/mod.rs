//! One file per verb: options in, library call, printing.

mod align;
mod bench;
mod bench_data;
mod compare;
mod demo;
mod devices;
mod evaluate;
mod export;
mod find_rate;
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

use clap::ArgMatches;

use medmerge::data::{Augmentation, Collecting};
use medmerge::error::{Error, Result};
use medmerge::jobs::{Images, Normalise};
use medmerge::ops::simd::Isa;
use medmerge::train::{DecayOf, EpochRecord, OptimizerKind, Schedule, SelectBy, TrainOptions, best_epoch_by};

use crate::cli::{self, Cli, Global, Verb};
use crate::terminal;

/// The environment's name of an instruction set, where --isa names none.
const ISA: &str = "MEDMERGE_ISA";

/// Does what the command line, `matches`, asks for.
pub fn run(cli: Cli, matches: &ArgMatches) -> Result<()> {
    let Cli { verb, global } = cli;
    flags::check(&verb, &global, matches)?;
    place::check(&global)?;
    if let Some(threads) = global.threads.filter(|threads| !(1..=1024).contains(threads)) {
        return Err(Error::usage(format!("--threads {threads}"), "give between 1 and 1024"));
    }
    if let Some(isa) = global.isa.clone().or_else(|| std::env::var(ISA).ok()) {
        isa.parse::<Isa>()?.choose()?;
    }
    start_threads(global.threads)?;
    match verb {
        Verb::Demo(options) => demo::run(&options, &global),
        Verb::Train(options) => train::run(&options, &global),
        Verb::Learn(options) => learn::run(&options, &global),
        Verb::Compare(options) => compare::run(&options, &global),
        Verb::Merge(options) => merge::run(&options, &global),
        Verb::Align(options) => align::run(&options, &global),
        Verb::Eval(options) => evaluate::eval(&options, &global),
        Verb::Predict(options) => evaluate::predict(&options, &global),
        Verb::Export(options) => export::run(&options, &global),
        Verb::Inspect(options) => inspect::run(&options, &global),
        Verb::Synth(options) => synth::run(&options, &global),
        Verb::Bench(options) => bench::run(&options, &global),
        Verb::Selftest(options) => selftest::run(&options, &global),
        Verb::Kernels(options) => kernels::run(&options, &global),
        Verb::Devices => devices::run(&global),
    }
}

/// Starts the threads of the whole program, one a core unless told otherwise: where the system refuses one, the first use
/// of the pool would panic.
fn start_threads(threads: Option<usize>) -> Result<()> {
    // rayon takes 0 for its own choice.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    pool.build_global().map_err(|error| {
        let hint = "give fewer --threads, or allow more processes (ulimit -u) and memory (ulimit -v)";
        Error::usage(format!("the threads cannot be started: {error}"), hint)
    })
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

fn images(data: &cli::Data) -> Images {
    Images { data: data.data.clone(), normalise: normalise(&data.normalise), collecting: data.collecting.given() }
}

/// How images are read, where there are some.
fn collecting(asked: &cli::Collecting, has_data: bool) -> Result<Collecting> {
    let collecting = asked.given();
    match has_data || collecting == Collecting::default() {
        true => Ok(collecting),
        false => {
            Err(Error::usage("--image-size, --labels and the like are of images, and there are none", "give --data"))
        }
    }
}

/// The command line, for the card that it asks for.
fn card(writing: &cli::Writing) -> Option<String> {
    let words = std::env::args_os().skip(1).map(|word| terminal::quoted(word.as_ref()));
    writing.card.then(|| ["medmerge".to_string()].into_iter().chain(words).collect::<Vec<_>>().join(" "))
}

fn normalise(asked: &cli::Normalise) -> Normalise {
    Normalise { mean: asked.mean.clone(), std: asked.std.clone() }
}

/// The result of the kept epoch on the validation split, if there is one.
fn best(history: &[EpochRecord], by: SelectBy) -> String {
    match best_epoch_by(by, history).and_then(|record| Some((record.epoch, by.figure(record)?))) {
        Some((epoch, figure)) => format!("best validation {} {figure:.4} (epoch {epoch})", by.name()),
        None => "no validation split: the last epoch".into(),
    }
}

fn augmentation(asked: &cli::Augment) -> Augmentation {
    let cli::Augment { flip, shift, flip_vertical, quarter_turns, rotate, crop, jitter, blur, erase, mixup, cutmix } =
        asked.clone();
    let jitter = jitter.unwrap_or_default();
    let (crop, rotate) = (crop.unwrap_or(0.0), rotate.unwrap_or(0.0));
    let [blur, erase, mixup, cutmix] = [blur, erase, mixup, cutmix].map(|number| number.unwrap_or(0.0));
    Augmentation { flip, shift, flip_vertical, quarter_turns, rotate, crop, jitter, blur, erase, mixup, cutmix }
}

fn train_options(schedule: &cli::Schedule, merge_learning_rate: f64, global: &Global) -> TrainOptions {
    let augmentation = augmentation(&schedule.augmentation);
    TrainOptions {
        epochs: schedule.epochs,
        steps: schedule.steps,
        batch_size: schedule.batch_size,
        learning_rate: schedule.learning_rate,
        accumulate: schedule.accumulate,
        merge_learning_rate,
        nesterov: schedule.nesterov,
        clip_norm: schedule.clip_norm,
        optimizer: match schedule.optimizer {
            cli::OptimizerName::Adamw => OptimizerKind::AdamW,
            cli::OptimizerName::Sgd => OptimizerKind::Sgd,
        },
        schedule: match schedule.schedule {
            cli::ScheduleName::Cosine => Schedule::Cosine,
            cli::ScheduleName::Constant => Schedule::Constant,
            cli::ScheduleName::Step => Schedule::Step,
            cli::ScheduleName::Plateau => Schedule::Plateau,
        },
        plateau_patience: schedule.plateau_patience,
        warmup: schedule.warmup,
        weight_decay: schedule.weight_decay,
        decay_of: match schedule.decay_of {
            cli::DecayOfName::All => DecayOf::All,
            cli::DecayOfName::Weights => DecayOf::Weights,
        },
        label_smoothing: schedule.label_smoothing,
        balance_classes: schedule.class_weights == cli::ClassWeights::Balanced,
        balance_sampling: schedule.sampling == cli::Sampling::Balanced,
        augmentation: (!augmentation.is_none()).then_some(augmentation),
        patience: schedule.patience,
        seed: global.seed,
        ..TrainOptions::default()
    }
}
