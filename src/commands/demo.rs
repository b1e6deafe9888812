//! `demo`: the whole job on generated data, and the table.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use medmerge::checkpoint;
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::data::{Augmentation, Normalisation};
use medmerge::error::Result;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Sources, Start, training_metadata};
use medmerge::nn::{Architecture, Model};
use medmerge::output::{OutputPath, make_folder, shown};
use medmerge::report::{Curve, Table, curves, mean_and_spread, save};
use medmerge::train::{
    AnchorChoice, Baseline, LearnOptions, Outcome, Place, Protocol, Subject, Target, TrainOptions, train,
};

use super::progress::Progress;
use super::synth::FILES;
use super::{learn, note, report};
use crate::cli::{Demo, Global};

/// Names of the two sources: what each was trained to see.
const SOURCES: [(&str, Task); 2] = [("texture", Task::Texture), ("shape", Task::Shape)];
const SEEDS: u64 = 3;
const SOURCE_IMAGES: usize = 2000;
const TARGET_IMAGES: usize = 600;
const VALIDATION_IMAGES: usize = 256;
const TEST_IMAGES: usize = 2000;
const SOURCE_EPOCHS: usize = 8;
const PROBE_EPOCHS: usize = 4;
const FINE_TUNING_EPOCHS: usize = 10;
const ARCHITECTURE: &str = "resnet8";

pub fn run(options: &Demo, global: &Global) -> Result<()> {
    let place = super::place::open(global)?;
    make_folder(&options.out, options.force)?;
    let seeds: Vec<u64> = (0..if options.quick { 1 } else { SEEDS }).map(|seed| global.seed + seed).collect();
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for &seed in &seeds {
        let folder = options.out.join(format!("seed{seed}"));
        make_folder(&folder, options.force)?;
        note(global, format_args!("seed {seed}: files in {}", folder.display()));
        outcomes.push(one_seed(seed, &folder, place, global)?);
    }
    let table = table(&outcomes);
    let text = format!("{}\n", table.to_markdown());
    OutputPath::check(&options.out.join("table.md"), options.force, 0)?
        .write(|file| file.write_all(text.as_bytes()))?;
    let seconds = start.elapsed().as_secs_f64();
    let result =
        json!({"seeds": seeds, "seconds": seconds, "out": shown(&options.out), "runs": runs(&seeds, &outcomes)});
    write(
        &options.out.join("results.json"),
        &format!(
            "{result:#}
"
        ),
    )?;
    report(global, &result, |out| {
        writeln!(out, "\nTest split, {} seeds, mean ± standard deviation:\n", seeds.len())?;
        writeln!(out, "{}", table.to_text())?;
        writeln!(out, "{seconds:.0} s in all; everything is in {}", options.out.display())
    })
}

fn protocol(seed: u64) -> Protocol {
    let probe = TrainOptions {
        epochs: PROBE_EPOCHS,
        batch_size: 64,
        learning_rate: 3e-3,
        merge_learning_rate: 3e-2,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        seed,
        ..TrainOptions::default()
    };
    Protocol {
        fine_tuning: TrainOptions { epochs: FINE_TUNING_EPOCHS, learning_rate: 2e-3, ..probe.clone() },
        learn: LearnOptions {
            granularity: Granularity::Filter,
            constraint: Constraint::Affine,
            start: Start::Weight(0.0),
            anchor: AnchorChoice::Auto,
            batch_norm: BatchNormPolicy::Merge,
            keep_statistics: false,
            probe,
        },
    }
}

/// Makes the tasks and the sources, runs every method, and leaves all files in `folder`.
fn one_seed(seed: u64, folder: &Path, place: Place, global: &Global) -> Result<Vec<Outcome>> {
    let data = FILES.map(|(task, name)| {
        let train = if task == Task::Both { TARGET_IMAGES } else { SOURCE_IMAGES };
        let options =
            SyntheticOptions { train, val: VALIDATION_IMAGES, test: TEST_IMAGES, seed, ..SyntheticOptions::default() };
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
        train_source(target, seed * SOURCES.len() as u64 + index as u64, path, global)?;
    }
    let sources = Sources::load(&paths)?;
    let target = Target { data: target, normalisation: &normalisation, place };
    let protocol = protocol(seed);
    let names = SOURCES.map(|(name, _)| name);
    let mut outcomes = Vec::new();
    for baseline in Baseline::all(sources.len()) {
        let label = baseline.label(&names);
        let mut progress = Progress::new(label.clone(), global);
        let outcome = protocol.run(baseline, &sources, target, &mut progress)?;
        progress.finish();
        save_outcome(&outcome, &label, &sources, seed, folder)?;
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

fn train_source(target: Target, seed: u64, path: &Path, global: &Global) -> Result<()> {
    let architecture = Architecture::named(ARCHITECTURE, None, None)?;
    let mut model = Model::initialized(architecture.build(target.data.channels, target.data.classes), seed);
    let options = TrainOptions {
        epochs: SOURCE_EPOCHS,
        batch_size: 64,
        learning_rate: 4e-3,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        seed,
        ..TrainOptions::default()
    };
    let mut progress = Progress::new(format!("source {}", path.file_stem().unwrap_or_default().display()), global);
    train(&mut model, &mut Subject::Everything, target, &options, &mut progress)?;
    progress.finish();
    let mut output = OutputPath::check(path, true, 0)?;
    checkpoint::save(&mut output, &model, &training_metadata(&architecture, seed, None))
}

/// The network of one method, and its merge weights with their picture where it learned some.
fn save_outcome(outcome: &Outcome, label: &str, sources: &Sources, seed: u64, folder: &Path) -> Result<()> {
    let name = label.replace(": ", "-").replace(", ", "-").replace(' ', "-").to_lowercase();
    let mut metadata = match &outcome.learned {
        Some(learned) => learned.metadata(),
        None => training_metadata(sources.architecture(), seed, None),
    };
    metadata.insert("medmerge.demo".into(), label.into());
    let mut output = OutputPath::check(&folder.join(format!("{name}.safetensors")), true, 0)?;
    checkpoint::save(&mut output, &outcome.model, &metadata)?;
    if let Some(learned) = &outcome.learned {
        learned.save(&mut OutputPath::check(&folder.join(format!("{name}.weights.safetensors")), true, 0)?)?;
        write(&folder.join(format!("{name}.weights.svg")), &learn::picture(learned, sources))?;
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
