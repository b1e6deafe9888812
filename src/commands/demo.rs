//! `demo`: the whole job on generated data, and the table.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use medmerge::checkpoint::{self, Provenance};
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::data::{Augmentation, Normalisation};
use medmerge::error::Result;
use medmerge::jobs::picture;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Sources, Start, training_metadata};
use medmerge::nn::{Architecture, Model};
use medmerge::output::{OutputPath, make_folder, shown};
use medmerge::report::{Curve, Table, curves, mean_and_spread, save};
use medmerge::train::{
    AnchorChoice, Baseline, LearnOptions, Outcome, Place, Protocol, Subject, TRAIN, Target, TrainOptions, train,
};

use super::progress::Progress;
use super::synth::FILES;
use super::{note, report};
use crate::cli::{Demo, Global};

/// Names of the two sources: what each was trained to see.
const SOURCES: [(&str, Task); 2] = [("texture", Task::Texture), ("shape", Task::Shape)];
const ARCHITECTURE: &str = "resnet8";

/// How much of everything there is, and how large it is.
#[derive(Clone, Copy)]
struct Size {
    seeds: u64,
    /// Filters of the first stage.
    width: usize,
    /// Height and width of the images.
    pixels: usize,
    batch_size: usize,
    source_images: usize,
    target_images: usize,
    validation_images: usize,
    test_images: usize,
    source_epochs: usize,
    probe_epochs: usize,
    fine_tuning_epochs: usize,
}

/// Ends within a minute on two slow cores.
const QUICK: Size = Size {
    seeds: 1,
    width: 8,
    pixels: 20,
    batch_size: 16,
    source_images: 1600,
    target_images: 400,
    validation_images: 128,
    test_images: 500,
    source_epochs: 4,
    probe_epochs: 3,
    fine_tuning_epochs: 6,
};

const FULL: Size = Size {
    seeds: 3,
    width: 16,
    pixels: 28,
    batch_size: 64,
    source_images: 2000,
    target_images: 600,
    validation_images: 256,
    test_images: 2000,
    source_epochs: 8,
    probe_epochs: 4,
    fine_tuning_epochs: 10,
};

impl Size {
    /// Passes over images, forward and backward, that training a source takes.
    fn of_source(&self) -> f64 {
        (self.source_images * self.source_epochs) as f64
    }

    fn of_method(&self, protocol: &Protocol, baseline: Baseline) -> f64 {
        let evaluated = (self.test_images + self.validation_images) as f64 / 3.0;
        protocol.passes(baseline, SOURCES.len()) * self.target_images as f64 + evaluated
    }
}

/// What there is to do, in passes over images, and how much of it is done.
struct Work {
    start: Instant,
    all: f64,
    done: f64,
}

impl Work {
    fn new(size: &Size) -> Work {
        // Each method of each seed is asked for when none has run.
        let of_methods = |seed| {
            let protocol = protocol(size, seed);
            Baseline::all(SOURCES.len()).into_iter().map(|b| size.of_method(&protocol, b)).sum::<f64>()
        };
        let all = (0..size.seeds).map(|seed| SOURCES.len() as f64 * size.of_source() + of_methods(seed)).sum();
        Work { start: Instant::now(), all, done: 0.0 }
    }

    /// `part` has been done; what is left takes so long if it goes on like this.
    fn finish(&mut self, part: f64) -> String {
        self.done += part;
        seconds_left(self.start.elapsed().as_secs_f64(), self.done, self.all)
    }
}

fn seconds_left(elapsed: f64, done: f64, all: f64) -> String {
    let left = elapsed * (all - done).max(0.0) / done;
    if left < 1.0 { "nearly done".into() } else { format!("about {left:.0} s left") }
}

pub fn run(options: &Demo, global: &Global) -> Result<()> {
    let place = super::place::open(global)?;
    make_folder(&options.out, options.force)?;
    let size = if options.full { FULL } else { QUICK };
    let seeds: Vec<u64> = (0..size.seeds).map(|seed| global.seed + seed).collect();
    let mut work = Work::new(&size);
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for &seed in &seeds {
        let folder = options.out.join(format!("seed{seed}"));
        make_folder(&folder, options.force)?;
        note(global, format_args!("seed {seed}: files in {}", folder.display()));
        outcomes.push(one_seed(&size, seed, &folder, place, &mut work, global)?);
    }
    let table = table(&outcomes);
    let text = format!("{}\n", table.to_markdown());
    OutputPath::check(&options.out.join("table.md"), options.force, 0)?
        .write(|file| file.write_all(text.as_bytes()))?;
    let seconds = start.elapsed().as_secs_f64();
    let result =
        json!({"seeds": seeds, "seconds": seconds, "out": shown(&options.out), "runs": runs(&seeds, &outcomes)});
    write(&options.out.join("results.json"), &format!("{result:#}\n"))?;
    report(global, &result, |out| {
        let over = if seeds.len() == 1 { "one seed" } else { "mean ± standard deviation over the seeds" };
        writeln!(out, "\nTest split, {} images of the target, {over}:\n", size.test_images)?;
        writeln!(out, "{}", table.to_text())?;
        writeln!(out, "{seconds:.0} s in all; everything is in {}", options.out.display())?;
        if !options.full {
            writeln!(out, "These runs are too short to compare methods by; `medmerge demo --full` is longer.")?;
        }
        Ok(())
    })
}

fn protocol(size: &Size, seed: u64) -> Protocol {
    let probe = TrainOptions {
        epochs: size.probe_epochs,
        batch_size: size.batch_size,
        learning_rate: 3e-3,
        merge_learning_rate: 3e-2,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        seed,
        ..TrainOptions::default()
    };
    let fine_tuning = TrainOptions { epochs: size.fine_tuning_epochs, learning_rate: 2e-3, ..probe.clone() };
    let learn = LearnOptions {
        granularity: Granularity::Filter,
        constraint: Constraint::Affine,
        start: Start::Weight(0.0),
        anchor: AnchorChoice::Auto,
        batch_norm: BatchNormPolicy::Merge,
        keep_statistics: false,
        probe,
    };
    Protocol::new(learn, fine_tuning)
}

/// Makes the tasks and the sources, runs every method, and leaves all files in `folder`.
fn one_seed(
    size: &Size,
    seed: u64,
    folder: &Path,
    place: Place,
    work: &mut Work,
    global: &Global,
) -> Result<Vec<Outcome>> {
    let data = FILES.map(|(task, name)| {
        let train = if task == Task::Both { size.target_images } else { size.source_images };
        let (val, test) = (size.validation_images, size.test_images);
        let options = SyntheticOptions { size: size.pixels, train, val, test, seed, ..SyntheticOptions::default() };
        (generate(task, &options), name)
    });
    for (dataset, name) in &data {
        dataset.save(&folder.join(name))?;
    }
    let [(texture, _), (shape, _), (target, _)] = &data;
    let normalisation = Normalisation::default();
    let paths: Vec<_> = SOURCES.iter().map(|(name, _)| folder.join(format!("{name}.safetensors"))).collect();
    for (index, (dataset, path)) in [texture, shape].into_iter().zip(&paths).enumerate() {
        // Different initialisations: the case in which averaging destroys what both know.
        let target = Target { data: dataset, normalisation: &normalisation, place };
        train_source(size, target, seed * SOURCES.len() as u64 + index as u64, path, global)?;
        let left = work.finish(size.of_source());
        note(global, format_args!("  {:33}  trained{:35}({left})", format!("source: {}", SOURCES[index].0), ""));
    }
    let sources = Sources::load(&paths)?;
    let target = Target { data: target, normalisation: &normalisation, place };
    let protocol = protocol(size, seed);
    let names = SOURCES.map(|(name, _)| name);
    let mut outcomes = Vec::new();
    for baseline in Baseline::all(sources.len()) {
        let label = baseline.label(&names);
        let mut progress = Progress::new(label.clone(), global);
        let planned = size.of_method(&protocol, baseline);
        let outcome = protocol.run(baseline, &sources, target, &mut progress)?;
        progress.finish();
        save_outcome(&outcome, &label, &sources, target, folder)?;
        let (metrics, left) = (&outcome.metrics, work.finish(planned));
        note(
            global,
            format_args!(
                "  {label:33}  accuracy {:.3}  macro F1 {:.3}  AUC {:.3}  ({left})",
                metrics.accuracy, metrics.macro_f1, metrics.auc
            ),
        );
        outcomes.push(outcome);
    }
    let shown: Vec<Curve> = outcomes
        .iter()
        .map(|outcome| Curve {
            name: outcome.baseline.label(&names),
            points: outcome.history.iter().map(|r| (r.epoch as f64, r.val_macro_f1.unwrap_or(f64::NAN))).collect(),
        })
        .collect();
    write(&folder.join("curves.svg"), &curves("Target, validation split", "epoch", "macro F1", &shown))?;
    Ok(outcomes)
}

fn train_source(size: &Size, target: Target, seed: u64, path: &Path, global: &Global) -> Result<()> {
    let architecture = Architecture::named(ARCHITECTURE, None, Some(size.width))?;
    let mut model = Model::initialized(architecture.build(target.data.channels, target.data.classes), seed);
    let options = TrainOptions {
        epochs: size.source_epochs,
        batch_size: size.batch_size,
        learning_rate: 4e-3,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        seed,
        ..TrainOptions::default()
    };
    let mut progress = Progress::new(format!("source {}", path.file_stem().unwrap_or_default().display()), global);
    let history = train(&mut model, &mut Subject::Everything, target, &options, &mut progress)?;
    progress.finish();
    let mut metadata = training_metadata(&architecture, seed, None);
    let phase = options.phase(TRAIN, &history);
    Provenance::of(target.data, target.normalisation, &[], phase)?.write(&mut metadata);
    checkpoint::save(&mut OutputPath::check(path, true, 0)?, &model, &metadata)
}

/// The network of one method, and its merge weights with their picture where it learned some.
fn save_outcome(outcome: &Outcome, label: &str, sources: &Sources, target: Target, folder: &Path) -> Result<()> {
    let name = label.replace(": ", "-").replace(", ", "-").replace(' ', "-").to_lowercase();
    let mut metadata = match &outcome.learned {
        Some(learned) => learned.metadata(),
        None => training_metadata(sources.architecture(), outcome.seed, None),
    };
    metadata.insert("medmerge.demo".into(), label.into());
    Provenance { training: outcome.phases.clone(), ..Provenance::of_data(target.data, target.normalisation)? }
        .write(&mut metadata);
    let mut output = OutputPath::check(&folder.join(format!("{name}.safetensors")), true, 0)?;
    checkpoint::save(&mut output, &outcome.model, &metadata)?;
    if let Some(learned) = &outcome.learned {
        learned.save(&mut OutputPath::check(&folder.join(format!("{name}.weights.safetensors")), true, 0)?)?;
        write(&folder.join(format!("{name}.weights.svg")), &picture(learned, sources)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    save(text, &mut OutputPath::check(path, true, 0)?)
}

/// One row per method: test accuracy, macro F1, AUC and seconds over the seeds.
fn table(outcomes: &[Vec<Outcome>]) -> Table {
    let names = SOURCES.map(|(name, _)| name);
    let mut table = Table::new(["method", "accuracy", "macro F1", "AUC", "seconds"]);
    for (row, of_first) in outcomes[0].iter().enumerate() {
        let over_seeds = |value: fn(&Outcome) -> f64| {
            mean_and_spread(&outcomes.iter().map(|of_seed| value(&of_seed[row])).collect::<Vec<_>>())
        };
        table.row([
            of_first.baseline.label(&names),
            over_seeds(|outcome| outcome.metrics.accuracy),
            over_seeds(|outcome| outcome.metrics.macro_f1),
            over_seeds(|outcome| outcome.metrics.auc),
            over_seeds(|outcome| outcome.seconds),
        ]);
    }
    table
}

fn runs(seeds: &[u64], outcomes: &[Vec<Outcome>]) -> Vec<Value> {
    let names = SOURCES.map(|(name, _)| name);
    let pairs = seeds.iter().zip(outcomes).flat_map(|(seed, of_seed)| of_seed.iter().map(move |o| (seed, o)));
    pairs
        .map(|(seed, outcome)| {
            json!({
                "seed": seed, "method": outcome.baseline.label(&names), "seconds": outcome.seconds,
                "accuracy": outcome.metrics.accuracy, "macro_f1": outcome.metrics.macro_f1, "auc": outcome.metrics.auc,
                "anchor": outcome.learned.as_ref().map(|learned| names[learned.method.anchor]),
                "epochs": outcome.history,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_from_the_work_done() {
        assert_eq!(seconds_left(10.0, 1.0, 4.0), "about 30 s left");
        assert_eq!(seconds_left(10.0, 4.0, 4.0), "nearly done");
    }

    /// On two slow cores the full one took eleven minutes, of which a minute is a tenth. An image costs at least its pixels
    /// times the filters.
    #[test]
    fn the_quick_one_is_far_less_than_a_tenth_of_the_full_one() {
        let [quick, full] = [QUICK, FULL].map(|size| Work::new(&size).all * (size.width * size.pixels.pow(2)) as f64);
        assert!(quick < 0.07 * full, "{quick:.0} and {full:.0}");
    }
}
