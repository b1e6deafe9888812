//! One network with its units in the order of another's.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::card::{self, CardFiles, Told};
use super::{Compute, Images, networks};
use crate::checkpoint::{self, Described, Reading, Writing};
use crate::data::{Dataset, Normalisation};
use crate::error::{Error, Result};
use crate::merge::{self, ALIGN, Alignment, Sources};
use crate::nn::{Architecture, Permutation, Units};
use crate::numbers;
use crate::output::{Named, OutputPath};
use crate::train::{Observer, SelectBy, Target, align};

/// Writes a network that computes what `model` does, its units in the order of those of `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Align {
    pub model: PathBuf,
    pub to: PathBuf,
    pub by: merge::Align,
    #[serde(default)]
    pub reading: Reading,
    /// The images whose activations are compared, on their training split.
    #[serde(default)]
    pub images: Option<Images>,
    pub compute: Compute,
    pub out: PathBuf,
    /// Names and types of the numbers in `out`.
    #[serde(default)]
    pub writing: Writing,
    /// Writes a card and a configuration beside `out`; the card tells this command.
    #[serde(default)]
    pub card: Option<String>,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// The result of a run of [`Align`].
#[derive(Clone, Debug)]
pub struct Aligned {
    pub architecture: Architecture,
    pub groups: Vec<AlignedGroup>,
    /// Cosine of the angle between both trunks, all numbers of each taken as one vector: before and after.
    pub cosine: [f64; 2],
}

/// A group of units, and how many of their channels are not where they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlignedGroup {
    pub name: String,
    pub units: usize,
    pub channels: usize,
    pub moved: usize,
}

/// The other network comes first: that to which sources are aligned.
const TO: usize = 0;
const MODEL: usize = 1;

impl Align {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        check_images(self.by, self.images.as_ref().map(|images| &images.data))?;
        if self.by == merge::Align::Weights && self.images.is_some() {
            return Err(Error::usage(
                "--by weights does not look at images",
                "leave --data out, or use --by activations",
            ));
        }
        if self.by == merge::Align::None {
            return Err(Error::usage("--by none aligns nothing", "give --by weights, or --by activations with --data"));
        }
        let mut inputs: Vec<Named> = vec![("--model", &self.model), ("--to", &self.to)];
        inputs.extend(self.images.iter().map(|images| ("--data", images.data.as_path())));
        card::check_apart(&inputs, vec![("--out", &self.out)], &self.card, &self.out)
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Aligned> {
        self.check()?;
        let _claim = OutputPath::check(&self.out, self.force, 0)?;
        let card = CardFiles::check(&self.card, &self.out, self.force)?;
        let place = self.compute.open(observer)?;
        let sources = networks::load_sources(&[self.to.clone(), self.model.clone()], &self.reading, observer)?;
        let checkpoint = &sources.get(MODEL).checkpoint;
        let form = self.writing.form(sources.architecture(), Some(&checkpoint.origin))?;
        let mut output = OutputPath::check(&self.out, self.force, checkpoint::file_size(&checkpoint.model.network))?;
        let alignment = match &self.images {
            None => Alignment::by_weights(&sources, TO)?,
            Some(images) => {
                let (data, normalisation) = load_images(images, &sources, observer)?;
                let target = Target { data: &data, normalisation: &normalisation, place };
                align(self.by, &sources, TO, target, observer)?.expect("an alignment is asked for")
            }
        };
        let aligned = sources.aligned(&alignment);
        let [first, second] = [TO, MODEL].map(|index| sources.records()[index].clone());
        let record = |record: &merge::SourceRecord| serde_json::to_string(record).expect("plain data is JSON");
        let mut metadata = checkpoint.metadata.clone();
        metadata.insert(ALIGN.into(), self.by.to_string());
        metadata.insert("medmerge.aligned_to".into(), record(&first));
        metadata.insert("medmerge.aligned_from".into(), record(&second));
        metadata.insert("medmerge.architecture".into(), sources.architecture().to_json());
        checkpoint.provenance.write(&mut metadata);
        let (model, provenance) = (&aligned.get(MODEL).checkpoint.model, &checkpoint.provenance);
        let architecture = sources.architecture();
        let described = Described { architecture, model, has_head: checkpoint.has_head, form: &form, provenance };
        let told = Told {
            described,
            metadata: &metadata,
            history: &[],
            select_by: SelectBy::default(),
            sources: vec![second],
        };
        card::save(&mut output, &told, card, observer)?;
        Ok(Aligned {
            architecture: architecture.clone(),
            groups: groups(&Units::of(&model.network), &alignment.permutations[MODEL]),
            cosine: [&sources, &aligned].map(cosine),
        })
    }
}

/// Refuses an alignment by activations of nothing, and images that nobody looks at.
pub(super) fn check_images(by: merge::Align, data: Option<&PathBuf>) -> Result<()> {
    match (by, data) {
        (merge::Align::Activations, None) => Err(Error::usage(
            "activations are compared on images, and there are none",
            "give --data FILE.npz, or align by weights",
        )),
        _ => Ok(()),
    }
}

/// The images that sources see, normalised as they were trained unless it is asked for otherwise.
pub(super) fn load_images(
    images: &Images,
    sources: &Sources,
    observer: &mut dyn Observer,
) -> Result<(Dataset, Normalisation)> {
    let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
    let normalisation = networks::normalisation(&images.normalise, &files, sources.input_channels(), observer)?;
    let data = images.load(&files, observer)?;
    networks::check_fit(&data, &sources.get(0).checkpoint.model.network)?;
    networks::tell_image_size(&files, &data, observer);
    Ok((data, normalisation))
}

fn groups(units: &Units, permutation: &Permutation) -> Vec<AlignedGroup> {
    let of = |index: usize| {
        let group = &units.groups[index];
        let alone = Permutation { orders: vec![permutation.orders[index].clone()] };
        let channels = group.strands.iter().map(|strand| strand.channels()).sum();
        AlignedGroup { name: group.name.clone(), units: group.units, channels, moved: alone.moved() }
    };
    (0..units.groups.len()).map(of).collect()
}

fn cosine(sources: &Sources) -> f64 {
    let [a, b] = [TO, MODEL].map(|index| sources.get(index).checkpoint.model.trunk.to_vec::<f32>());
    numbers::cosine(&a, &b)
}
