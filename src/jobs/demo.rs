//! The whole job on data that is drawn for it: two sources, every method, a table.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Compute, Record, Summary, picture};
use crate::checkpoint::{self, Provenance};
use crate::data::synthetic::{FILES, SyntheticOptions, Task, generate};
use crate::data::{Augmentation, Normalisation};
use crate::error::Result;
use crate::merge::{Sources, training_metadata};
use crate::nn::{Architecture, Model, Stem};
use crate::output::{OutputPath, make_folder, shown};
use crate::report::{Curve, curves, save};
use crate::train::{Observer, Outcome, Place, Protocol, Recipe, Seeded, Subject, TRAIN, Target, TrainOptions, train};

/// Names of the two sources: what each was trained to see.
const SOURCES: [(&str, Task); 2] = [("texture", Task::Texture), ("shape", Task::Shape)];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demo {
    /// Three seeds, larger networks and images: long enough to compare methods by.
    #[serde(default)]
    pub full: bool,
    /// The networks, by the name of their architecture.
    #[serde(default = "usual_architecture")]
    pub architecture: String,
    /// Filters of their first stage; few, if left out.
    #[serde(default)]
    pub width: Option<usize>,
    /// The first of the seeds.
    pub seed: u64,
    pub compute: Compute,
    /// A folder, new or empty.
    pub out: PathBuf,
    /// Writes into a folder that is not empty.
    #[serde(default)]
    pub force: bool,
}

fn usual_architecture() -> String {
    "resnet8".into()
}

/// Images of so many pixels a side reach the last layer of every network.
const LARGE_ENOUGH: usize = 32;

/// Sees each part of a [`Demo`] as it is finished, with the seconds that the rest will take if it goes on like this.
pub trait DemoObserver: Observer {
    fn seed(&mut self, _seed: u64, _folder: &Path) {}

    fn source(&mut self, _name: &str, _seconds_left: f64) {}

    fn recipe(&mut self, _label: &str, _record: &Record, _seconds_left: f64) {}
}

/// The result of a run of [`Demo`].
pub struct Demonstration {
    /// A row per recipe: figures on the test split, over the seeds.
    pub summary: Summary,
    /// Images that were drawn to test on.
    pub test_images: usize,
    pub seconds: f64,
    /// All of it, as it stands in `results.json`.
    pub results: Value,
}

/// How much of everything there is, and how large it is.
#[derive(Clone)]
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

    fn of_recipe(&self, protocol: &Protocol, recipe: &Recipe) -> f64 {
        let evaluated = (self.test_images + self.validation_images) as f64 / 3.0;
        protocol.passes(recipe, SOURCES.len()) * self.target_images as f64 + evaluated
    }
}

/// The work that there is to do, in passes over images, and how much of it is done.
struct Work {
    start: Instant,
    all: f64,
    done: f64,
}

impl Work {
    fn new(size: &Size) -> Work {
        let protocol = protocol(size);
        let of_recipes: f64 = Recipe::usual(SOURCES.len()).iter().map(|r| size.of_recipe(&protocol, r)).sum();
        let all = size.seeds as f64 * (SOURCES.len() as f64 * size.of_source() + of_recipes);
        Work { start: Instant::now(), all, done: 0.0 }
    }

    /// `part` has been done; what is left takes so many seconds if it goes on like this.
    fn finish(&mut self, part: f64) -> f64 {
        self.done += part;
        seconds_left(self.start.elapsed().as_secs_f64(), self.done, self.all)
    }
}

fn seconds_left(elapsed: f64, done: f64, all: f64) -> f64 {
    elapsed * (all - done).max(0.0) / done
}

impl Demo {
    /// Refuses what is wrong in itself, before anything is drawn.
    pub fn check(&self) -> Result<()> {
        self.compute.check()
    }

    pub fn run(&self, observer: &mut dyn DemoObserver) -> Result<Demonstration> {
        self.check()?;
        let place = self.compute.open(observer)?;
        make_folder(&self.out, self.force)?;
        let (size, architecture) = self.size()?;
        let seeds: Vec<u64> = (0..size.seeds).map(|seed| self.seed + seed).collect();
        let mut work = Work::new(&size);
        let start = Instant::now();
        let mut records = Vec::new();
        for &seed in &seeds {
            let folder = self.out.join(format!("seed{seed}"));
            make_folder(&folder, self.force)?;
            observer.seed(seed, &folder);
            let setting = Setting { size: &size, architecture: &architecture, place };
            records.extend(one_seed(setting, seed, &folder, &mut work, observer)?);
        }
        let of_recipe = |recipe: Recipe| {
            let found = records.iter().filter(|record| record.recipe == recipe).cloned().collect();
            (recipe, found)
        };
        let of_recipes: Vec<(Recipe, Vec<Record>)> = Recipe::usual(SOURCES.len()).into_iter().map(of_recipe).collect();
        let summary = Summary::of(&protocol(&size), &names(), &of_recipes);
        write(&self.out.join("table.md"), &summary.markdown())?;
        let seconds = start.elapsed().as_secs_f64();
        let results = json!({
            "seeds": seeds, "seconds": seconds, "out": shown(&self.out), "summary": summary, "runs": records,
        });
        write(&self.out.join("results.json"), &format!("{results:#}\n"))?;
        Ok(Demonstration { summary, test_images: size.test_images, seconds, results })
    }

    /// How much there is of everything, and the networks: with the stem for small images, where they have a choice.
    fn size(&self) -> Result<(Size, Architecture)> {
        let size = if self.full { FULL } else { QUICK };
        let usual = Architecture::named(&self.architecture, None, None)?;
        let stem = usual.stem().map(|_| Stem::Small);
        let architecture = Architecture::named(&self.architecture, stem, Some(self.width.unwrap_or(size.width)))?;
        let takes = |pixels| architecture.build(1, 2).accepts(pixels, pixels);
        let pixels = if takes(size.pixels) { size.pixels } else { LARGE_ENOUGH };
        Ok((Size { pixels, ..size }, architecture))
    }
}

/// One learning rate for all: what there is to choose is told by `compare`.
fn protocol(size: &Size) -> Protocol {
    let probe = TrainOptions {
        epochs: size.probe_epochs,
        batch_size: size.batch_size,
        learning_rate: 3e-3,
        merge_learning_rate: 3e-2,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        ..TrainOptions::default()
    };
    let fine_tuning = TrainOptions { epochs: size.fine_tuning_epochs, ..probe.clone() };
    Protocol { probe, fine_tuning, learning_rates: vec![2e-3] }
}

fn names() -> [&'static str; 2] {
    SOURCES.map(|(name, _)| name)
}

/// What the runs of all seeds have in common.
#[derive(Clone, Copy)]
struct Setting<'a> {
    size: &'a Size,
    architecture: &'a Architecture,
    place: Place,
}

/// Makes the tasks and the sources, runs every method, and leaves all files in `folder`.
fn one_seed(
    setting: Setting,
    seed: u64,
    folder: &Path,
    work: &mut Work,
    observer: &mut dyn DemoObserver,
) -> Result<Vec<Record>> {
    let Setting { size, place, .. } = setting;
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
        let name = SOURCES[index].0;
        observer.phase(&format!("source {name}"));
        train_source(setting, target, seed * SOURCES.len() as u64 + index as u64, path, observer)?;
        observer.source(name, work.finish(size.of_source()));
    }
    let sources = Sources::load(&paths)?;
    let target = Target { data: target, normalisation: &normalisation, place };
    let protocol = protocol(size);
    let mut runs = Seeded::new(&sources, target, &protocol, seed);
    let (mut records, mut shown) = (Vec::new(), Vec::new());
    for recipe in Recipe::usual(sources.len()) {
        let label = recipe.label(&names());
        observer.phase(&label);
        let planned = size.of_recipe(&protocol, &recipe);
        let outcome = runs.run(&recipe, observer)?;
        save_outcome(&outcome, &sources, target, folder)?;
        let record = Record::of(&outcome)?;
        observer.recipe(&label, &record, work.finish(planned));
        let history = &outcome.stages.last().expect("a run has a stage").history;
        let points = history.iter().map(|r| (r.epoch as f64, r.val_macro_f1.unwrap_or(f64::NAN))).collect();
        shown.push(Curve { name: label, points });
        records.push(record);
    }
    write(&folder.join("curves.svg"), &curves("Target, validation split", "epoch", "macro F1", &shown))?;
    Ok(records)
}

fn train_source(setting: Setting, target: Target, seed: u64, path: &Path, observer: &mut dyn Observer) -> Result<()> {
    let Setting { size, architecture, .. } = setting;
    let mut model = Model::initialized(architecture.build(target.data.channels, target.data.classes), seed);
    let options = TrainOptions {
        epochs: size.source_epochs,
        batch_size: size.batch_size,
        learning_rate: 4e-3,
        augmentation: Some(Augmentation { flip: true, shift: 2 }),
        seed,
        ..TrainOptions::default()
    };
    let history = train(&mut model, &mut Subject::Everything, target, &options, observer)?;
    let mut metadata = training_metadata(architecture, seed, None);
    let phase = options.phase(TRAIN, &history);
    Provenance::of(target.data, target.normalisation, &[], phase)?.write(&mut metadata);
    checkpoint::save(&mut OutputPath::check(path, true, 0)?, &model, &metadata)
}

/// The fine-tuned network of a recipe that makes one, and its merge weights with their picture where it learned some.
fn save_outcome(outcome: &Outcome, sources: &Sources, target: Target, folder: &Path) -> Result<()> {
    let stage = outcome.stages.last().expect("a run has a stage");
    let [model] = &stage.models[..] else { return Ok(()) };
    let label = outcome.recipe.label(&names());
    let name = label.replace([':', ','], "-").replace('=', "-");
    let mut metadata = match &outcome.learned {
        Some(learned) => learned.metadata(),
        None => training_metadata(sources.architecture(), outcome.seed, None),
    };
    metadata.insert("medmerge.demo".into(), label);
    Provenance { training: stage.phases.clone(), ..Provenance::of_data(target.data, target.normalisation)? }
        .write(&mut metadata);
    let mut output = OutputPath::check(&folder.join(format!("{name}.safetensors")), true, 0)?;
    checkpoint::save(&mut output, model, &metadata)?;
    if let Some(learned) = &outcome.learned {
        learned.save(&mut OutputPath::check(&folder.join(format!("{name}.weights.safetensors")), true, 0)?)?;
        write(&folder.join(format!("{name}.weights.svg")), &picture(learned, sources)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    save(text, &mut OutputPath::check(path, true, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_from_the_work_done() {
        assert_eq!(seconds_left(10.0, 1.0, 4.0), 30.0);
        assert_eq!(seconds_left(10.0, 4.0, 4.0), 0.0);
    }

    /// On two slow cores the full one took eleven minutes, of which a minute is a tenth. An image costs at least its pixels
    /// times the filters.
    #[test]
    fn the_quick_one_is_far_less_than_a_tenth_of_the_full_one() {
        let [quick, full] = [QUICK, FULL].map(|size| Work::new(&size).all * (size.width * size.pixels.pow(2)) as f64);
        assert!(quick < 0.07 * full, "{quick:.0} and {full:.0}");
    }
}
