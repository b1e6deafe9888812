//! How good a network is on a split of a data set; of its file, nothing else is read.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::heads::{self, Columns, Needs};
use super::{Compute, Images, networks};
use crate::checkpoint::Reading;
use crate::data::{Classes, Dataset, Flips, Labels, Normalisation, Split, SplitName, Task};
use crate::error::{Error, Result};
use crate::metrics::threshold::{self, Decided, ThresholdBy};
use crate::metrics::{Intervals, Metrics, mean_of_members};
use crate::nn::Model;
use crate::train::{Observer, Place, Silent, Target, scores};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub model: PathBuf,
    /// More networks: an ensemble, whose probabilities are the mean of its members'.
    #[serde(default)]
    pub others: Vec<PathBuf>,
    #[serde(default)]
    pub reading: Reading,
    /// One of several heads, by its name or its number from 0.
    #[serde(default)]
    pub head: Option<String>,
    pub images: Images,
    pub split: SplitName,
    /// Images per pass; it changes results by rounding alone.
    pub batch_size: usize,
    #[serde(default)]
    pub test_flips: TestFlips,
    pub compute: Compute,
}

/// In which mirrors images are looked at too; what counts is the mean of the probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestFlips {
    #[default]
    None,
    /// Left to right.
    Horizontal,
    /// Left to right, upside down, and both.
    Both,
}

impl TestFlips {
    fn all(self) -> impl Iterator<Item = Flips> {
        let count = match self {
            TestFlips::None => 1,
            TestFlips::Horizontal => 2,
            TestFlips::Both => 4,
        };
        (0..count).map(|index| Flips { across: index & 1 == 1, down: index & 2 == 2 })
    }
}

/// The result of a run of [`Evaluate`].
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub metrics: Metrics,
    pub images: usize,
    /// The head that was measured; `None` where it is the only one.
    pub head: Option<String>,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
    /// Images × classes.
    pub logits: Vec<f32>,
    /// As `task` has them.
    pub labels: Vec<u32>,
    pub task: Task,
}

impl Evaluation {
    /// Figures by thresholds that are best on another split.
    ///
    /// # Errors
    /// If there are more than two classes, of which the largest probability decides.
    pub fn decided(&self, by: ThresholdBy, chosen_on: &Evaluation) -> Result<Vec<Decided>> {
        fn split(of: &Evaluation) -> threshold::Scored<'_> {
            threshold::Scored { scores: &of.logits, labels: &of.labels }
        }
        let classes = self.metrics.per_class.len();
        let decided = threshold::decided(self.task, classes, by, split(chosen_on), split(self));
        decided.ok_or_else(|| no_threshold(classes))
    }

    /// What may be chance, by images drawn again so often.
    pub fn intervals(&self, resamples: usize, seed: u64) -> Intervals {
        Metrics::intervals(self.task, &self.logits, &self.labels, self.metrics.per_class.len(), resamples, seed)
    }
}

fn no_threshold(classes: usize) -> Error {
    let hint = "two classes have a threshold, and so has each of several labels at once";
    Error::usage(format!("a threshold of {classes} classes, of which the largest probability decides"), hint)
}

impl Evaluate {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        match self.batch_size {
            0 => Err(Error::usage("a batch size of 0", "give at least 1; 128 is usual")),
            _ => Ok(()),
        }
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Evaluation> {
        let Scored { mut heads, split, task } = self.scores(Labels::Required, Needs::OneOfData, observer)?;
        let HeadScores { name, logits, classes, class_names } = heads.remove(0);
        let metrics = Metrics::of(task, &logits, &split.labels, classes);
        Ok(Evaluation { metrics, images: split.len(), head: name, class_names, logits, labels: split.labels, task })
    }

    /// Refuses a network for which [`Evaluation::decided`] would have no threshold, before anything is scored.
    pub fn check_thresholds(&self) -> Result<()> {
        let checkpoint = networks::load(&self.model, &self.reading, &mut Silent)?;
        let is_sure = checkpoint.provenance.task() == Some(Task::MultiClass);
        let heads = heads::choose(&self.model, &checkpoint, self.head.as_deref(), Needs::OneOfData)?;
        match heads.iter().all(|head| head.classes > 2) && is_sure {
            true => Err(no_threshold(heads[0].classes)),
            false => Ok(()),
        }
    }

    pub(super) fn scores(&self, labels: Labels, needs: Needs, observer: &mut dyn Observer) -> Result<Scored> {
        self.check()?;
        let place = self.compute.open(observer)?;
        self.check_members(needs)?;
        let mut scored = self.scores_of(&self.model, place, labels, needs, observer)?;
        if self.others.is_empty() {
            return Ok(scored);
        }
        let mut all = vec![scored.heads.remove(0)];
        for path in &self.others {
            all.push(self.scores_of(path, place, labels, needs, observer)?.heads.remove(0));
        }
        let members: Vec<&[f32]> = all.iter().map(|member| member.logits.as_slice()).collect();
        let logits = mean_of_members(scored.task, &members, all[0].classes);
        scored.heads = vec![HeadScores { logits, ..all.swap_remove(0) }];
        Ok(scored)
    }

    /// Refuses an ensemble of networks with other classes, before any of them runs.
    fn check_members(&self, needs: Needs) -> Result<()> {
        if self.others.is_empty() {
            return Ok(());
        }
        let head = |path: &Path| -> Result<Columns> {
            let checkpoint = networks::load(path, &self.reading, &mut Silent)?;
            networks::check_classifier(path, &checkpoint)?;
            let mut heads = heads::choose(path, &checkpoint, self.head.as_deref(), needs)?;
            match heads.len() {
                1 => Ok(heads.remove(0)),
                count => {
                    let path = path.display();
                    let message = format!("{path} has {count} heads, and members of an ensemble give one answer");
                    Err(Error::usage(message, "choose one: --head NAME"))
                }
            }
        };
        let first = head(&self.model)?;
        for other in &self.others {
            let head = head(other)?;
            let (one, other) = (self.model.display(), other.display());
            let hint = "members of an ensemble have the same classes, in the same order";
            if first.classes != head.classes {
                let message = format!("{one} tells {} classes apart, and {other} {}", first.classes, head.classes);
                return Err(Error::usage(message, hint));
            }
            if let (Some(names), Some(others)) = (&first.class_names, &head.class_names)
                && names != others
            {
                return Err(Error::usage(format!("{one} and {other} name their classes differently"), hint));
            }
        }
        Ok(())
    }

    fn scores_of(
        &self,
        path: &Path,
        place: Place,
        labels: Labels,
        needs: Needs,
        observer: &mut dyn Observer,
    ) -> Result<Scored> {
        let Loaded { model, data, normalisation, heads } = self.load(path, labels, needs, observer)?;
        observer.phase(&format!("{} split", self.split));
        let images = data.split(self.split).len();
        let (views, mut all) = (self.test_flips.all().count(), Vec::new());
        for flips in self.test_flips.all() {
            let mirrored = data.mirrored(self.split, flips);
            // Those that are no mirror are the images themselves.
            let data = if flips == (Flips { across: false, down: false }) { &data } else { &mirrored };
            let before = all.len() * images;
            let watch = |done| observer.images(before + done, views * images);
            let target = Target { data, normalisation: &normalisation, place };
            all.push(scores(&model, target, self.split, self.batch_size, watch)?);
        }
        let split = data.split(self.split).clone();
        // The data set's labels, and their names, are those of one head.
        let names_of_data = data.class_names.filter(|_| heads.len() == 1);
        let of_head = |head: Columns| {
            let of_views: Vec<_> = all.iter().map(|logits| head.of(logits, model.network.classes)).collect();
            let logits = match &of_views[..] {
                [one] => one.clone(),
                several => mean_of_members(data.task, several, head.classes),
            };
            let Columns { name, classes, class_names, .. } = head;
            HeadScores { name, logits, classes, class_names: names_of_data.clone().or(class_names) }
        };
        Ok(Scored { heads: heads.into_iter().map(of_head).collect(), split, task: data.task })
    }

    /// A network and a split that fit each other. What the classes are, the network says, or its head.
    fn load(&self, path: &Path, labels: Labels, needs: Needs, observer: &mut dyn Observer) -> Result<Loaded> {
        let checkpoint = networks::load(path, &self.reading, observer)?;
        networks::check_classifier(path, &checkpoint)?;
        let mut heads = heads::choose(path, &checkpoint, self.head.as_deref(), needs)?;
        let network = &checkpoint.model.network;
        let files = [(path, &checkpoint.provenance)];
        let channels = network.input_channels;
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let task = checkpoint.provenance.task();
        let classes = if let [one] = &heads[..] { one.classes(task) } else { Classes::Any };
        let data = self.images.load_split(self.split, labels, &classes, &files, observer)?;
        networks::check_fit(&data, network)?;
        if heads.len() > 1 && needs == Needs::OneOfData {
            heads = vec![heads::of_data(path, &checkpoint, &data)?];
        }
        if let [one] = &heads[..] {
            networks::check_class_names(path, one.class_names.as_ref(), &data)?;
        }
        networks::tell_image_size(&files, &data, observer);
        if data.split(self.split).is_empty() {
            let message = format!("its {} split is empty", self.split);
            return Err(Error::data(&data.path, message, "choose another --split"));
        }
        Ok(Loaded { model: checkpoint.model, data, normalisation, heads })
    }
}

/// A network, a split, and the heads whose scores are wanted.
struct Loaded {
    model: Model,
    data: Dataset,
    normalisation: Normalisation,
    heads: Vec<Columns>,
}

/// A network's logits on a split.
pub(super) struct Scored {
    /// One, or all of a network that has several.
    pub heads: Vec<HeadScores>,
    pub split: Split,
    pub task: Task,
}

pub(super) struct HeadScores {
    /// `None` where it is the only head.
    pub name: Option<String>,
    /// Images × classes.
    pub logits: Vec<f32>,
    pub classes: usize,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
}
