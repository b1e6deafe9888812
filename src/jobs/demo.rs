//! The whole job on data that is drawn for it: two sources, a target of another kind, a comparison, one merged network.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::side_by_side::{Worker, side_by_side};
use super::{Compare, CompareObserver, Compute, Images, Learn, Normalise, Summary};
use crate::checkpoint::{self, Provenance, Reading, Writing};
use crate::data::synthetic::{SyntheticOptions, Task, generate};
use crate::data::{Augmentation, Dataset, Normalisation};
use crate::error::Result;
use crate::merge::{Align, BatchNormPolicy, Constraint, Granularity, ProbeStatistics, Start, training_metadata};
use crate::nn::{Architecture, Model, Stem};
use crate::output::{OutputPath, make_folder, shown};
use crate::report::{Thumbnail, contact_sheet, save};
use crate::tensor::Device;
use crate::train::{Observer, Protocol, Recipe, Subject, TRAIN, Target, TrainOptions, train};

/// What each source is trained to see; the target has both, in images of another instrument.
const SOURCES: [(&str, Task); 2] = [("texture", Task::Texture), ("shape", Task::Shape)];

/// A merge as `learn` makes it for this task.
const MERGE: &str = "medmerge:granularity=kernel,start=0.5,align=activations";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demo {
    /// Twice the seeds, larger networks and images, all target classes.
    #[serde(default)]
    pub full: bool,
    /// The networks, by the name of their architecture.
    #[serde(default = "usual_architecture")]
    pub architecture: String,
    /// Filters of their first stage; few, if left out.
    #[serde(default)]
    pub width: Option<usize>,
    /// The first of the seeds; data and sources are drawn by it too.
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

/// Sees each part of a [`Demo`] as it is finished.
pub trait DemoObserver: CompareObserver {
    fn source(&mut self, _name: &str, _path: &Path) {}
}

/// The result of a run of [`Demo`].
pub struct Demonstration {
    /// A row per recipe: figures on the test split, over the seeds.
    pub summary: Summary,
    /// Images that each seed trains on, and images to test on.
    pub images: [usize; 2],
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
    source_epochs: usize,
    /// Textures and shapes of the target: their product is the number of its classes.
    kinds: usize,
    /// Of the target's training images, each seed draws so many from so many.
    target_images: usize,
    target_pool: usize,
    validation_images: usize,
    test_images: usize,
    probe_epochs: usize,
    fine_tuning_epochs: usize,
}

/// Of the pixels, as a share of the full range: little, so that few epochs are enough.
const NOISE: f32 = 0.02;

/// Ends within a minute on two slow cores.
const QUICK: Size = Size {
    seeds: 6,
    width: 8,
    pixels: 16,
    batch_size: 16,
    source_images: 1400,
    source_epochs: 5,
    kinds: 2,
    target_images: 64,
    target_pool: 320,
    validation_images: 48,
    test_images: 400,
    probe_epochs: 10,
    fine_tuning_epochs: 20,
};

const FULL: Size = Size {
    seeds: 10,
    width: 16,
    pixels: 28,
    batch_size: 16,
    source_images: 4000,
    source_epochs: 8,
    kinds: 4,
    target_images: 320,
    target_pool: 1600,
    validation_images: 256,
    test_images: 2000,
    probe_epochs: 20,
    fine_tuning_epochs: 40,
};

impl Size {
    fn source(&self, seed: u64) -> SyntheticOptions {
        let (train, val, test) = (self.source_images, 4 * self.validation_images, self.validation_images);
        SyntheticOptions { size: self.pixels, train, val, test, seed, noise: NOISE, ..SyntheticOptions::default() }
    }

    fn target(&self, seed: u64) -> SyntheticOptions {
        let (train, val, test) = (self.target_pool, self.validation_images, self.test_images);
        let options =
            SyntheticOptions { size: self.pixels, train, val, test, seed, noise: NOISE, ..SyntheticOptions::default() };
        SyntheticOptions { textures: self.kinds, shapes: self.kinds, negative: true, ..options }
    }

    /// The same head, order and rates for all: what there is to choose is told by `compare`.
    fn protocol(&self) -> Protocol {
        let probe = TrainOptions {
            epochs: self.probe_epochs,
            batch_size: self.batch_size,
            learning_rate: 5e-3,
            merge_learning_rate: 5e-2,
            ..TrainOptions::default()
        };
        let fine_tuning = TrainOptions { epochs: self.fine_tuning_epochs, ..probe.clone() };
        Protocol { probe, fine_tuning, learning_rates: vec![5e-3] }
    }

    /// Passes forward and backward over images, all in all.
    #[cfg(test)]
    fn passes(&self) -> f64 {
        let (protocol, epochs) = (self.protocol(), (self.probe_epochs + self.fine_tuning_epochs) as f64);
        let of_recipe = |recipe: &Recipe| {
            let validated = (self.validation_images as f64 * epochs + self.test_images as f64) / 3.0;
            protocol.passes(recipe, SOURCES.len()) * self.target_images as f64 + validated
        };
        let of_seed: f64 = recipes().iter().map(of_recipe).sum();
        self.seeds as f64 * of_seed + (SOURCES.len() * self.source_images * self.source_epochs) as f64
    }
}

/// What is compared: each source by itself, also rescaled as a learned merge would be, the aligned average, learned merges, both
/// sources side by side.
fn recipes() -> Vec<Recipe> {
    let texts = [
        "scratch",
        "fine-tune:source=0",
        "fine-tune:source=1",
        "lp-ft:source=0",
        "lp-ft:source=1",
        "rescale:source=0",
        "rescale:source=1",
        "linear:align=activations",
        "medmerge",
        MERGE,
        "ensemble",
    ];
    texts.map(|text| text.parse().expect("a recipe")).to_vec()
}

impl Demo {
    /// Refuses what is wrong in itself, before anything is drawn.
    pub fn check(&self) -> Result<()> {
        self.compute.check()
    }

    pub fn run(&self, observer: &mut dyn DemoObserver) -> Result<Demonstration> {
        self.check()?;
        let start = Instant::now();
        let place = self.compute.open(observer)?;
        let (size, architecture) = self.size()?;
        make_folder(&self.out, self.force)?;
        let target = self.out.join("target.npz");
        let sources = self.draw(&size, &target)?;
        // Each on threads of its own: networks of this size leave several of them little to share.
        let jobs = if place.device == Device::Cpu { rayon::current_num_threads().clamp(1, 8) } else { 1 };
        let work = |(index, data): &(usize, Dataset), worker: &mut Worker, tell: &mut dyn FnMut(usize)| {
            let target = Target { data, normalisation: &Normalisation::default(), place };
            self.train_source(&size, &architecture, target, *index, worker)?;
            tell(*index);
            Ok(())
        };
        observer.phase("training sources");
        side_by_side(&sources, jobs.min(SOURCES.len()), work, &mut |trained| {
            if let Some(index) = trained {
                observer.source(SOURCES[index].0, &self.source(index));
            }
            observer.stops()
        })?;
        let summary = self.comparison(&size, &target, jobs).run(observer)?;
        let merged = self.merge(&size, &target);
        merged.run(observer)?;
        let seconds = start.elapsed().as_secs_f64();
        let results = json!({
            "seconds": seconds, "out": shown(&self.out), "merged": shown(&merged.out), "summary": summary,
        });
        write(&self.out.join("results.json"), &format!("{results:#}\n"))?;
        Ok(Demonstration { summary, images: [size.target_images, size.test_images], seconds, results })
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

    fn source(&self, index: usize) -> PathBuf {
        self.out.join(format!("{}.safetensors", SOURCES[index].0))
    }

    /// Draws and writes all images, with a sheet of some; returns those of the sources.
    fn draw(&self, size: &Size, target: &Path) -> Result<Vec<(usize, Dataset)>> {
        let (mut rows, mut sources) = (Vec::new(), Vec::new());
        for (index, (name, task)) in SOURCES.into_iter().enumerate() {
            let options = size.source(self.seed);
            let data = generate(task, &options);
            data.save(&self.out.join(format!("{name}.npz")))?;
            let says = format!("source '{name}': the class is the {name}, the other is chance");
            rows.push((says, thumbnails(&data, &options.class_names(task))?));
            sources.push((index, data));
        }
        let options = size.target(self.seed);
        let data = generate(Task::Both, &options);
        data.save(target)?;
        let says = format!(
            "target: the class is both, light and dark are exchanged; {} images to learn from",
            size.target_images
        );
        rows.push((says, thumbnails(&data, &options.class_names(Task::Both))?));
        write(&self.out.join("images.svg"), &contact_sheet("What the networks are to tell apart", &rows))?;
        Ok(sources)
    }

    /// Different initialisations: the case in which averaging destroys what both know.
    fn train_source(
        &self,
        size: &Size,
        architecture: &Architecture,
        target: Target,
        index: usize,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let seed = self.seed.wrapping_mul(SOURCES.len() as u64).wrapping_add(index as u64);
        let mut model = Model::initialized(architecture.build(target.data.channels, target.data.classes), seed);
        let options = TrainOptions {
            epochs: size.source_epochs,
            batch_size: size.batch_size,
            learning_rate: 4e-3,
            augmentation: Some(Augmentation { flip: true, shift: 2, ..Default::default() }),
            seed,
            ..TrainOptions::default()
        };
        let history = train(&mut model, &mut Subject::Everything, target, &options, observer)?;
        let mut metadata = training_metadata(architecture, seed, None);
        let phase = options.phase(TRAIN, &history);
        Provenance::of(target.data, target.normalisation, &[], phase)?.write(&mut metadata);
        checkpoint::save(&mut OutputPath::check(&self.source(index), true, 0)?, &model, &metadata)
    }

    fn comparison(&self, size: &Size, target: &Path, jobs: usize) -> Compare {
        Compare {
            models: (0..SOURCES.len()).map(|index| self.source(index)).collect(),
            reading: Reading::default(),
            images: Images {
                data: target.to_path_buf(),
                normalise: Normalise::default(),
                collecting: Default::default(),
            },
            protocol: size.protocol(),
            recipes: recipes(),
            seeds: (0..size.seeds).map(|index| self.seed.wrapping_add(index)).collect(),
            train_images: Some(size.target_images),
            jobs: jobs.min(size.seeds as usize),
            compute: self.compute.clone(),
            out: self.out.join("comparison"),
        }
    }

    /// One merged network for use, by all of the target's images.
    fn merge(&self, size: &Size, target: &Path) -> Learn {
        Learn {
            models: (0..SOURCES.len()).map(|index| self.source(index)).collect(),
            reading: Reading::default(),
            images: Images {
                data: target.to_path_buf(),
                normalise: Normalise::default(),
                collecting: Default::default(),
            },
            anchor: "auto".into(),
            granularity: Granularity::Kernel,
            constraint: Constraint::Affine,
            starts: vec![Start::Uniform],
            batch_norm: BatchNormPolicy::Merge,
            keep_statistics: false,
            align: Align::Activations,
            probe_statistics: ProbeStatistics::Batch,
            options: TrainOptions { seed: self.seed, ..size.protocol().probe },
            compute: self.compute.clone(),
            out: self.out.join("merged.safetensors"),
            writing: Writing::default(),
            card: None,
            weights: None,
            picture: Some(self.out.join("weights.svg")),
            resume: false,
            force: true,
        }
    }
}

/// An image of each class, and again, as many as a row holds.
fn thumbnails(data: &Dataset, names: &[String]) -> Result<Vec<Thumbnail>> {
    const IN_A_ROW: usize = 8;
    let (bytes, pixels) = (data.train.bytes()?, data.height * data.width * data.channels);
    let mut found: Vec<(usize, usize)> = Vec::new();
    for class in 0..names.len().min(IN_A_ROW) {
        let of_class = data.train.labels.iter().enumerate().filter(|(_, label)| **label as usize == class);
        found.extend(of_class.map(|(index, _)| (index, class)).take((IN_A_ROW / names.len()).max(1)));
    }
    let thumbnail = |&(index, class): &(usize, usize)| Thumbnail {
        label: names[class].clone(),
        width: data.width,
        pixels: bytes[index * pixels..][..pixels].iter().step_by(data.channels).copied().collect(),
    };
    Ok(found.iter().map(thumbnail).collect())
}

fn write(path: &Path, text: &str) -> Result<()> {
    save(text, &mut OutputPath::check(path, true, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image costs at least its pixels times the filters.
    #[test]
    fn the_quick_one_is_far_less_than_a_tenth_of_the_full_one() {
        let [quick, full] = [QUICK, FULL].map(|size| size.passes() * (size.width * size.pixels.pow(2)) as f64);
        assert!(quick < 0.05 * full, "{quick:.0} and {full:.0}");
    }
}
