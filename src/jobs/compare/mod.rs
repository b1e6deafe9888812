//! The same target by every recipe, with the same splits, epochs, batches and seeds.

#[cfg(feature = "cli")]
mod pictures;
mod record;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use record::{Figures, LearnedRecord, Plan, Record, StageRecord};
pub use summary::{Cell, Estimate, Row, Summary};

use super::side_by_side::{Worker, side_by_side};
use super::{Compute, Images, networks};
use crate::checkpoint::{Provenance, Reading};
use crate::data::{Dataset, Normalisation};
use crate::error::{Error, Result};
use crate::merge::{Sources, methods};
use crate::output::OutputPath;
use crate::report::save;
use crate::tensor::Device;
use crate::train::{
    Kind, Observer, Place, Protocol, Recipe, Seeded, Subject, Target, TrainOptions, check_sources, train,
};
use record::Folder;

/// Runs every recipe with every seed, keeps a small file of each run, from which it continues, and tells what they come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The sources, two or more.
    pub models: Vec<PathBuf>,
    #[serde(default)]
    pub reading: Reading,
    pub images: Images,
    pub protocol: Protocol,
    /// In the order of the table; the usual ones if left out.
    #[serde(default)]
    pub recipes: Vec<Recipe>,
    /// Every recipe runs with each of them.
    pub seeds: Vec<u64>,
    /// Draws so many training images by each seed; all of them if left out.
    #[serde(default)]
    pub train_images: Option<usize>,
    /// Seeds that run side by side, on a CPU, each on its share of the threads.
    pub jobs: usize,
    pub compute: Compute,
    /// A folder: new, empty, or of this very comparison.
    pub out: PathBuf,
}

/// Sees each run of a [`Compare`] as it is finished.
pub trait CompareObserver: Observer {
    /// `seconds_left` is what the rest will take if it goes on like this.
    fn run(&mut self, _record: &Record, _label: &str, _seconds_left: f64) {}
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Recipe by recipe, passes forward and backward over the training images of one seed.
    pub passes: Vec<(Recipe, f64)>,
    pub seeds: usize,
    pub train_images: usize,
    /// Runs that are there already.
    pub done: usize,
    /// Of a pass over one image forward and backward, measured.
    pub seconds_per_image: f64,
    /// Of all that is left, one seed after the other.
    pub seconds: f64,
}

/// What is read before anything runs.
struct Read {
    sources: Sources,
    data: Dataset,
    normalisation: Normalisation,
    place: Place,
    recipes: Vec<Recipe>,
    names: Vec<String>,
}

/// A recipe and a seed that have not been run.
type Todo = BTreeMap<u64, Vec<Recipe>>;

impl Compare {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        self.protocol.check()?;
        if self.seeds.is_empty() {
            return Err(Error::usage(
                "a comparison without seeds",
                "give one at least; ten make intervals worth reading",
            ));
        }
        if self.jobs == 0 {
            return Err(Error::usage("0 seeds side by side", "give --jobs 1 at least"));
        }
        self.recipes.iter().try_for_each(|recipe| self.protocol.check_recipe(recipe))?;
        self.recipes.iter().try_for_each(|recipe| check_sources(recipe, self.models.len()))
    }

    fn read(&self, observer: &mut dyn Observer) -> Result<Read> {
        let place = self.compute.open(observer)?;
        if self.jobs > 1 && place.device != Device::Cpu {
            return Err(Error::usage(
                "several seeds side by side share no GPU",
                "leave --jobs out, or give --device cpu",
            ));
        }
        let sources = networks::load_sources(&self.models, &self.reading, observer)?;
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let channels = sources.input_channels();
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = self.images.load(&files, observer)?;
        networks::check_fit(&data, &sources.network(data.classes))?;
        networks::tell_image_size(&files, &data, observer);
        if [&data.val, &data.test].iter().any(|split| split.is_empty()) {
            let hint =
                "give one with all three: what is compared is chosen on the validation and measured on the test split";
            return Err(Error::data(&data.path, "its validation or test split is empty", hint));
        }
        if let Some(count) = self.train_images.filter(|&count| count < data.classes || count > data.train.len()) {
            let message = format!("--train-images {count} of {} images and {} classes", data.train.len(), data.classes);
            return Err(Error::usage(message, "draw one of each class at least, and no more than there are"));
        }
        let recipes = if self.recipes.is_empty() { Recipe::usual(sources.len()) } else { self.recipes.clone() };
        recipes.iter().try_for_each(|recipe| self.protocol.check_learning(recipe, &sources, data.classes))?;
        recipes.iter().filter_map(Recipe::method).try_for_each(|method| methods::check_heads(method, &sources))?;
        let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut names: Vec<String> = self.models.iter().map(stem).collect();
        if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            // Files of one name in several folders.
            names = (0..names.len()).map(|index| format!("source={index}")).collect();
        }
        Ok(Read { names, sources, data, normalisation, place, recipes })
    }

    fn plan(&self, read: &Read) -> Result<Plan> {
        let Read { sources, data, normalisation, place, .. } = read;
        // Seeds are the runs' own.
        let unseeded = |options: &TrainOptions| TrainOptions { seed: 0, ..options.clone() };
        let Protocol { probe, fine_tuning, learning_rates } = &self.protocol;
        let (probe, fine_tuning, learning_rates) = (unseeded(probe), unseeded(fine_tuning), learning_rates.clone());
        let of_data = Provenance::of_data(data, normalisation)?.data.expect("a data set has a record");
        Ok(Plan {
            version: record::VERSION,
            sources: sources.records(),
            architecture: sources.architecture().clone(),
            input_channels: sources.input_channels(),
            data: of_data.sha256,
            mean: normalisation.mean.clone(),
            std: normalisation.std.clone(),
            train_images: self.train_images,
            protocol: Protocol { probe, fine_tuning, learning_rates },
            device: place.device.to_string().split(':').next().unwrap_or_default().to_string(),
            precision: self.compute.precision.clone(),
        })
    }

    /// What there is to do and how long it takes, by a measured step; nothing is written.
    pub fn cost(&self, observer: &mut dyn Observer) -> Result<Cost> {
        self.check()?;
        let read = self.read(observer)?;
        let folder = Folder(&self.out);
        if self.out.join("plan.json").exists() {
            folder.begin(&self.plan(&read)?)?;
        }
        let todo = self.todo(&read.recipes, &folder)?;
        let passes = |recipe: &Recipe| self.protocol.passes(recipe, self.models.len());
        // From 0, not from the −0 of an empty sum.
        let left = todo.values().flatten().map(passes).fold(0.0, |sum, passes| sum + passes);
        let train_images = self.train_images.unwrap_or(read.data.train.len());
        let seconds_per_image = self.measured(&read)?;
        Ok(Cost {
            passes: read.recipes.iter().map(|recipe| (recipe.clone(), passes(recipe))).collect(),
            seeds: self.seeds.len(),
            train_images,
            done: self.seeds.len() * read.recipes.len() - todo.values().map(Vec::len).sum::<usize>(),
            seconds_per_image,
            seconds: left * train_images as f64 * seconds_per_image,
        })
    }

    /// Seconds of a pass over an image forward and backward, with its share of the validation after each epoch: the second of two
    /// epochs over a few images.
    fn measured(&self, read: &Read) -> Result<f64> {
        let Read { sources, data, normalisation, place, .. } = read;
        let mut few = data.clone();
        few.draw_train(self.protocol.fine_tuning.batch_size.max(64).min(data.train.len()), 0);
        let validated = few.train.len() * data.val.len() / self.train_images.unwrap_or(data.train.len());
        few.val.labels.truncate(validated.max(1));
        let target = Target { data: &few, normalisation, place: *place };
        let mut model = sources.transfer(0, &sources.network(data.classes));
        let options = TrainOptions { epochs: 2, ..self.protocol.fine_tuning.clone() };
        let history = train(&mut model, &mut Subject::Everything, target, &options, &mut crate::train::Silent)?;
        Ok(history[1].seconds / few.train.len() as f64)
    }

    fn todo(&self, recipes: &[Recipe], folder: &Folder) -> Result<Todo> {
        let mut todo = Todo::new();
        for &seed in &self.seeds {
            let mut left = Vec::new();
            for recipe in recipes {
                if folder.read(recipe, seed)?.is_none() {
                    left.push(recipe.clone());
                }
            }
            if !left.is_empty() {
                todo.insert(seed, left);
            }
        }
        Ok(todo)
    }

    /// # Errors
    /// Also if `out` holds another comparison. After an error, or a stop, the same job continues with the runs that are missing.
    pub fn run(&self, observer: &mut dyn CompareObserver) -> Result<Summary> {
        self.check()?;
        let read = self.read(observer)?;
        let folder = Folder(&self.out);
        folder.begin(&self.plan(&read)?)?;
        let todo = self.todo(&read.recipes, &folder)?;
        self.run_all(&read, todo, observer)?;
        let mut records = Vec::new();
        for recipe in &read.recipes {
            let of_seed = |seed: &u64| folder.read(recipe, *seed);
            let found: Vec<Option<Record>> = self.seeds.iter().map(of_seed).collect::<Result<_>>()?;
            records.push((recipe.clone(), found.into_iter().flatten().collect()));
        }
        let names: Vec<&str> = read.names.iter().map(String::as_str).collect();
        let summary = Summary::of(&self.protocol, &names, &records);
        let write = |name: &str, text: &str| save(text, &mut OutputPath::check(&self.out.join(name), true, 0)?);
        write("table.md", &summary.markdown())?;
        write("table.csv", &summary.csv())?;
        write("summary.json", &format!("{:#}\n", serde_json::to_value(&summary).expect("plain data is JSON")))?;
        #[cfg(feature = "cli")]
        {
            write("results.svg", &pictures::results(&summary))?;
            write("curves.svg", &pictures::curves(&summary, &records))?;
        }
        Ok(summary)
    }

    /// As many seeds side by side as there is memory for.
    fn affordable(&self, read: &Read, seeds: usize, observer: &mut dyn CompareObserver) -> usize {
        let Read { sources, data, normalisation, place, .. } = read;
        let target = Target { data, normalisation, place: *place };
        let batch = self.protocol.fine_tuning.batch_size.min(data.train.len());
        let asked = self.jobs.min(seeds).max(1);
        // A step takes more than the least: gradients of activations, buffers that do not fit exactly.
        let of_one = 2 * target.memory_of_step(&sources.network(data.classes), batch).max(1);
        let free = crate::memory::available();
        let jobs = usize::try_from(u128::from(free) / of_one).unwrap_or(usize::MAX).clamp(1, asked);
        if jobs < asked {
            let (of_one, free) = (of_one >> 20, free >> 20);
            observer.remark(&format!(
                "{jobs} of {asked} seeds side by side: a step takes about {of_one} MiB of memory, of which {free} MiB are free",
            ));
        }
        jobs
    }

    /// Seeds side by side.
    fn run_all(&self, read: &Read, todo: Todo, observer: &mut dyn CompareObserver) -> Result<()> {
        let passes = |recipe: &Recipe| self.protocol.passes(recipe, self.models.len()).max(0.5);
        let (all, start) = (todo.values().flatten().map(passes).sum::<f64>(), Instant::now());
        let names: Vec<&str> = read.names.iter().map(String::as_str).collect();
        let todo: Vec<(u64, Vec<Recipe>)> = todo.into_iter().collect();
        let work = |(seed, recipes): &(u64, Vec<Recipe>), worker: &mut Worker, tell: &mut dyn FnMut(Event)| {
            self.one_seed(read, *seed, recipes, worker, tell)
        };
        let (mut done, jobs) = (0.0, self.affordable(read, todo.len(), observer));
        let result = side_by_side(&todo, jobs, work, &mut |event| {
            match event {
                Some(Event::Begins(seed, recipe)) => {
                    observer.phase(&format!("seed {seed}, {}", recipe.label(&names)));
                }
                Some(Event::Done(record)) => {
                    done += passes(&record.recipe);
                    let left = start.elapsed().as_secs_f64() * (all - done).max(0.0) / done;
                    observer.run(&record, &record.recipe.label(&names), left);
                }
                None => {}
            }
            observer.stops()
        });
        if matches!(result, Err(Error::Interrupted { .. })) {
            observer.remark("runs that were finished are kept: the same command continues, `demo` with --force");
        }
        result
    }

    fn one_seed(
        &self,
        read: &Read,
        seed: u64,
        recipes: &[Recipe],
        worker: &mut Worker,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let mut data = read.data.clone();
        if let Some(count) = self.train_images {
            data.draw_train(count, seed);
        }
        let target = Target { data: &data, normalisation: &read.normalisation, place: read.place };
        let mut runs = Seeded::new(&read.sources, target, &self.protocol, seed);
        // What others are made of comes first: the figures of seconds are then those of its own.
        let is_made_of_others = |recipe: &&Recipe| matches!(recipe.kind, Kind::Ensemble | Kind::GreedySoup);
        let (last, first): (Vec<&Recipe>, Vec<&Recipe>) = recipes.iter().partition(is_made_of_others);
        for recipe in first.into_iter().chain(last) {
            worker.check()?;
            tell(Event::Begins(seed, recipe.clone()));
            let outcome = runs.run(recipe, worker)?;
            let record = Record::of(&outcome)?;
            Folder(&self.out).write(&record)?;
            tell(Event::Done(Box::new(record)));
        }
        Ok(())
    }
}

/// What workers tell.
enum Event {
    Begins(u64, Recipe),
    Done(Box<Record>),
}
