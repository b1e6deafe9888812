//! Where a network comes from, as its file's header says it: how images became numbers, which images, how it was trained.
//!
//! | key, after `medmerge.` | JSON |
//! |---|---|
//! | `normalisation` | `{"mean": [0.5], "std": [0.5]}`, after dividing bytes by 255 |
//! | `image_size` | `[height, width]` of the images that it last saw in training |
//! | `class_names` | one name per class |
//! | `task` | `"multi-label"` where an image may be of several classes at once |
//! | `heads` | one [`HeadRecord`] per head, in the order of their columns; missing where there is one head |
//! | `data` | `{"name": "derma.npz", "sha256": …}`: of the arrays, not of the file; `drawn`: how splits were |
//! | `training` | one [`Phase`] per run, oldest first |
//!
//! Every key may be missing: files of other programs have none, older ones fewer. One that is there and makes no sense is
//! an error, because whoever reads the file goes by it.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{HeadRecord, Metadata, heads};
use crate::data::{Augmentation, Dataset, Drawn, Normalisation, Task};
use crate::error::{Error, Result};
use crate::nn::Network;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    pub normalisation: Option<Normalisation>,
    /// Height and width in pixels.
    pub image_size: Option<[usize; 2]>,
    pub class_names: Option<Vec<String>>,
    /// What its scores mean, where the header says so; see [`Provenance::task`].
    pub task: Option<Task>,
    /// Two or more, in the order of their columns; `None` where all classes are one head's.
    pub heads: Option<Vec<HeadRecord>>,
    pub data: Option<DataRecord>,
    /// Oldest first; the last one made the numbers that the file holds.
    pub training: Vec<Phase>,
}

/// The identity of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// The file's name without its folder.
    pub name: String,
    /// SHA-256 of the images and labels, in hexadecimal.
    pub sha256: String,
    /// How its splits were drawn, where it came without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<Drawn>,
}

/// One run of training: how long, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `train`, `fine-tune`, `linear probe` or `merge weights`.
    pub kind: String,
    /// The epoch, counted from 1, whose numbers these are; 0 where none has ended.
    pub epoch: usize,
    /// Epochs that had ended when the file was written.
    pub epochs_done: usize,
    /// Epochs that were asked for.
    pub epochs: usize,
    /// Whether the run ended before because it no longer improved.
    #[serde(default)]
    pub stopped_early: bool,
    /// The figure of the validation split by which the epoch is the best, where it was not macro F1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select_by: Option<String>,
    /// At the start; how it falls is the schedule's matter.
    pub learning_rate: f64,
    /// The head's own, and by how much stages learned more slowly the further they lay from it, where it was so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_learning_rate: Option<f64>,
    pub schedule: String,
    /// Epochs that a plateau could have before it fell, where that was the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau_patience: Option<usize>,
    /// Epochs in which it rose first, where there were such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<usize>,
    pub optimizer: String,
    /// Whether SGD's momentum was Nesterov's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nesterov: bool,
    /// What the gradient's norm was clipped to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    pub batch_size: usize,
    /// Batches of an update, where there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,
    pub weight_decay: f64,
    /// `weights` where nothing else decayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_of: Option<String>,
    pub label_smoothing: f64,
    /// How strongly the trunk was pulled to its start, its features to those of others, and what an epoch left of an average, where
    /// there was any of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2_sp: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Whether each class weighed as if all had as many images.
    pub balances_classes: bool,
    /// Whether all classes came equally often.
    #[serde(default, skip_serializing_if = "is_off")]
    pub balances_sampling: bool,
    /// Training images were mirrored, and moved by up to so many pixels.
    pub flip: bool,
    pub shift: usize,
    /// All that happened to them, where it was more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
    pub seed: u64,
}

fn is_off(option: &bool) -> bool {
    !option
}

impl Phase {
    /// Whether more epochs were to come when the file was written.
    pub fn is_unfinished(&self) -> bool {
        self.epochs_done < self.epochs && !self.stopped_early
    }
}

const NORMALISATION: &str = "medmerge.normalisation";
const IMAGE_SIZE: &str = "medmerge.image_size";
const CLASS_NAMES: &str = "medmerge.class_names";
const TASK: &str = "medmerge.task";
const HEADS: &str = "medmerge.heads";
const DATA: &str = "medmerge.data";
const TRAINING: &str = "medmerge.training";

impl Provenance {
    /// The provenance of a network that is trained on `data`; `before` are the phases that led to it.
    pub fn of(data: &Dataset, normalisation: &Normalisation, before: &[Phase], phase: Phase) -> Result<Provenance> {
        Ok(Provenance { training: [before, &[phase]].concat(), ..Provenance::of_data(data, normalisation)? })
    }

    /// The part that follows from the images alone.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn of_data(data: &Dataset, normalisation: &Normalisation) -> Result<Provenance> {
        let name = data.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Provenance {
            normalisation: Some(normalisation.clone()),
            image_size: Some([data.height, data.width]),
            class_names: data.class_names.clone(),
            task: Some(data.task).filter(|task| !task.is_multi_class()),
            heads: None,
            data: Some(DataRecord { name, sha256: data.sha256()?, drawn: data.drawn.clone() }),
            training: Vec::new(),
        })
    }

    /// Reads what the header of the file at `path` says.
    pub fn read(path: &Path, metadata: &Metadata) -> Result<Provenance> {
        let provenance = Provenance {
            normalisation: field(path, metadata, NORMALISATION)?,
            image_size: field(path, metadata, IMAGE_SIZE)?,
            class_names: field(path, metadata, CLASS_NAMES)?,
            task: field(path, metadata, TASK)?,
            heads: field(path, metadata, HEADS)?,
            data: field(path, metadata, DATA)?,
            training: field(path, metadata, TRAINING)?.unwrap_or_default(),
        };
        if provenance.image_size.is_some_and(|sides| sides.contains(&0)) {
            return Err(odd(path, IMAGE_SIZE, "images of 0 pixels"));
        }
        Ok(provenance)
    }

    /// Refuses what does not fit the network of the file that it was read from.
    pub fn check(&self, path: &Path, network: &Network, has_head: bool) -> Result<()> {
        if let Some(normalisation) = &self.normalisation {
            normalisation
                .check(network.input_channels)
                .map_err(|error| odd(path, NORMALISATION, &error.to_string()))?;
        }
        if let Some(names) = self.class_names.as_ref().filter(|names| has_head && names.len() != network.classes) {
            let reason = format!("{} names for {} classes", names.len(), network.classes);
            return Err(odd(path, CLASS_NAMES, &reason));
        }
        let Some(heads) = &self.heads else { return Ok(()) };
        heads::check(heads, self.class_names.as_ref(), has_head.then_some(network.classes))
            .map_err(|reason| odd(path, HEADS, &reason))
    }

    /// Adds what is known to a header.
    pub fn write(&self, metadata: &mut Metadata) {
        let mut put = |key: &str, json: Option<serde_json::Result<String>>| match json {
            Some(json) => drop(metadata.insert(key.into(), json.expect("plain data is JSON"))),
            None => drop(metadata.remove(key)),
        };
        put(NORMALISATION, self.normalisation.as_ref().map(serde_json::to_string));
        put(IMAGE_SIZE, self.image_size.as_ref().map(serde_json::to_string));
        put(CLASS_NAMES, self.class_names.as_ref().map(serde_json::to_string));
        put(TASK, self.task.as_ref().map(serde_json::to_string));
        put(HEADS, self.heads.as_ref().map(serde_json::to_string));
        put(DATA, self.data.as_ref().map(serde_json::to_string));
        put(TRAINING, (!self.training.is_empty()).then(|| serde_json::to_string(&self.training)));
    }

    /// What its scores mean; `None` in files of other programs, which say nothing.
    pub fn task(&self) -> Option<Task> {
        let is_ours = self.data.is_some() || !self.training.is_empty();
        self.task.or(is_ours.then_some(Task::MultiClass))
    }

    /// The run that made the numbers of the file.
    pub fn last_phase(&self) -> Option<&Phase> {
        self.training.last()
    }
}

/// The normalisation on which all files agree that tell one, for a network of so many channels; an error where they do not.
pub fn agreed_normalisation<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a Provenance)>,
    channels: usize,
) -> Result<Option<Normalisation>> {
    let mut agreed: Option<(&Path, &Normalisation)> = None;
    for (path, provenance) in files {
        match (agreed, &provenance.normalisation) {
            (_, None) => {}
            (None, Some(normalisation)) => agreed = Some((path, normalisation)),
            (Some((_, first)), Some(normalisation)) if first.is_same(normalisation, channels) => {}
            (Some((first_path, first)), Some(normalisation)) => {
                let message = format!(
                    "{} was trained with {first}, and {} with {normalisation}",
                    first_path.display(),
                    path.display()
                );
                return Err(Error::usage(message, "say which to use: --mean and --std"));
            }
        }
    }
    Ok(agreed.map(|(_, normalisation)| normalisation.clone()))
}

fn field<T: DeserializeOwned>(path: &Path, metadata: &Metadata, key: &str) -> Result<Option<T>> {
    let parse = |text: &String| serde_json::from_str(text).map_err(|error| odd(path, key, &error.to_string()));
    metadata.get(key).map(parse).transpose()
}

fn odd(path: &Path, key: &str, reason: &str) -> Error {
    let hint = "the header was altered; write the file again, or remove the entry";
    Error::checkpoint(path, format!("its header's {key} makes no sense: {reason}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;

    fn phase() -> Phase {
        Phase {
            kind: "train".into(),
            epoch: 2,
            epochs_done: 3,
            epochs: 10,
            stopped_early: false,
            select_by: Some("auc".into()),
            learning_rate: 1e-3,
            head_learning_rate: Some(2e-3),
            layer_decay: Some(0.7),
            merge_learning_rate: None,
            schedule: "cosine".into(),
            plateau_patience: Some(3),
            warmup: Some(1),
            optimizer: "adamw".into(),
            nesterov: false,
            clip_norm: Some(1.0),
            batch_size: 128,
            accumulate: Some(4),
            weight_decay: 1e-4,
            decay_of: Some("weights".into()),
            label_smoothing: 0.1,
            l2_sp: None,
            distill: None,
            ema: Some(0.8),
            balances_classes: true,
            balances_sampling: true,
            flip: false,
            shift: 2,
            augmentation: Some(Augmentation { shift: 2, crop: 0.3, ..Augmentation::default() }),
            seed: 7,
        }
    }

    fn whole() -> Provenance {
        Provenance {
            // A number whose decimal digits do not end.
            normalisation: Some(Normalisation { mean: vec![0.1, 0.2, 1.0 / 3.0], std: vec![0.25] }),
            image_size: Some([28, 32]),
            class_names: Some(vec!["naevus".into(), "mélanome".into()]),
            task: Some(Task::MultiLabel),
            heads: None,
            data: Some(DataRecord {
                name: "derma.npz".into(),
                sha256: "00ff".into(),
                drawn: Some(Drawn {
                    seed: 3,
                    shares: [0.1, 0.2],
                    group_column: None,
                    label_column: Some("dx".into()),
                    labels: Some("labels.csv".into()),
                    sha256: Some("ab".into()),
                }),
            }),
            training: vec![phase()],
        }
    }

    /// Three columns: two of a head that names them, and one of a head that does not.
    fn of_two_heads() -> Provenance {
        let names = Some(vec!["naevus".into(), "mélanome".into()]);
        let heads = [("derma", 2, names), ("a \"b\",c", 1, None)].map(|(name, classes, class_names)| HeadRecord {
            name: name.into(),
            classes,
            class_names,
        });
        Provenance { class_names: None, heads: Some(heads.to_vec()), ..whole() }
    }

    #[test]
    fn a_header_gives_back_what_was_written() {
        for provenance in [whole(), of_two_heads(), Provenance::default()] {
            let mut metadata = Metadata::new();
            provenance.write(&mut metadata);
            assert_eq!(Provenance::read(Path::new("x"), &metadata).unwrap(), provenance);
        }
        assert_eq!(Provenance::read(Path::new("x"), &Metadata::new()).unwrap(), Provenance::default());
    }

    #[test]
    fn a_header_that_makes_no_sense_is_refused_by_its_key() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 2);
        let refusal = |key: &str, text: &str| {
            let mut metadata = Metadata::new();
            whole().write(&mut metadata);
            metadata.insert(key.into(), text.into());
            let read = Provenance::read(Path::new("x"), &metadata);
            read.and_then(|provenance| provenance.check(Path::new("x"), &network, true)).unwrap_err().to_string()
        };
        for (key, text) in [
            (NORMALISATION, "0.5"),
            (NORMALISATION, r#"{"mean": [0.5], "std": [0]}"#),
            (NORMALISATION, r#"{"mean": [0.5, 0.5], "std": [1]}"#),
            (IMAGE_SIZE, "[28]"),
            (IMAGE_SIZE, "[28, 0]"),
            (CLASS_NAMES, r#"["one"]"#),
            (TASK, "\"regression\""),
            (DATA, "{}"),
            (TRAINING, r#"[{"kind": "train"}]"#),
        ] {
            let refusal = refusal(key, text);
            assert!(refusal.contains(&format!("its header's {key} makes no sense")), "{key} {text}: {refusal}");
        }
        whole().check(Path::new("x"), &network, true).unwrap();
    }

    #[test]
    fn heads_have_to_be_those_of_the_network() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 3);
        let checked = |class_names: Option<&[&str]>, has_head: bool, text: &str| {
            let mut metadata = Metadata::from([(HEADS.to_string(), text.to_string())]);
            if let Some(names) = class_names {
                metadata.insert(CLASS_NAMES.into(), serde_json::to_string(names).unwrap());
            }
            let read = Provenance::read(Path::new("x"), &metadata);
            read.and_then(|provenance| provenance.check(Path::new("x"), &network, has_head))
        };
        let (named, other) = (Some(&["x", "y", "z"][..]), Some(&["x", "z", "y"][..]));
        let both = r#"[{"name":"a","classes":2,"class_names":["x","y"]},{"name":"b","classes":1,"class_names":["z"]}]"#;
        let unnamed = r#"[{"name":"a","classes":2,"class_names":["x","y"]},{"name":"b","classes":1}]"#;
        checked(named, true, both).unwrap();
        checked(None, true, unnamed).unwrap();
        // A classifier that was taken out of a file leaves the rest as good as it was.
        checked(None, false, r#"[{"name":"a","classes":2},{"name":"b","classes":2}]"#).unwrap();
        for (class_names, text, says) in [
            (None, "7", "invalid type"),
            (None, "[]", "0 heads"),
            (None, r#"[{"name":"a","classes":3}]"#, "1 heads"),
            (None, r#"[{"name":"a","classes":2},{"classes":1}]"#, "missing field `name`"),
            (None, r#"[{"name":"a","classes":2},{"name":"b","classes":-1}]"#, "invalid value"),
            (None, r#"[{"name":"a","classes":2},{"name":"b","classes":2}]"#, "heads of 4 classes for a network of 3"),
            (None, r#"[{"name":"a","classes":1},{"name":"b","classes":1}]"#, "heads of 2 classes for a network of 3"),
            (
                None,
                r#"[{"name":"a","classes":18446744073709551615},{"name":"b","classes":4}]"#,
                "heads of too many classes",
            ),
            (None, r#"[{"name":"a","classes":3},{"name":"b","classes":0}]"#, "head b has no classes"),
            (None, r#"[{"name":"a","classes":2},{"name":"a","classes":1}]"#, "two heads are called a"),
            (None, r#"[{"name":"a","classes":2},{"name":"","classes":1}]"#, "a head without a name"),
            (
                None,
                r#"[{"name":"a","classes":2,"class_names":["x"]},{"name":"b","classes":1}]"#,
                "head a has 1 names for 2 classes",
            ),
            (other, both, "its heads name other classes than the network"),
            (named, unnamed, "its heads name other classes than the network"),
        ] {
            let refusal = checked(class_names, true, text).unwrap_err().to_string();
            assert!(refusal.contains("its header's medmerge.heads makes no sense"), "{text}: {refusal}");
            assert!(refusal.contains(says), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_run_is_unfinished_until_its_last_epoch_or_its_patience_ends() {
        assert!(phase().is_unfinished());
        assert!(!Phase { epochs_done: 10, ..phase() }.is_unfinished());
        assert!(!Phase { stopped_early: true, ..phase() }.is_unfinished());
    }
}
