//! A training run that can be killed: its state after each epoch, in a file beside the result.
//!
//! The state is everything the next epoch depends on, so that a run continued from it ends with the same bits as one that
//! was never interrupted. The file belongs to one run: another network, data set or set of options is refused, by the name
//! of what differs. It carries a hash of its content, so that one which was altered is not continued.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::EpochRecord;
use super::selection::{Best, Selection};
use super::step::{Optimizers, Subject};
use crate::checkpoint::{Metadata, Numbers, StoredTensor, TensorFile, first_few, write};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::nn::Model;
use crate::ops::control::Values;
use crate::output::OutputPath;
use crate::tensor::Tensor;

/// Whatever changes the result of a run, by the name of the option that sets it.
pub type Settings = BTreeMap<String, Value>;

/// Where the state of a run is kept, and what says that it is this run's.
pub struct ResumeFile {
    output: OutputPath,
    settings: Settings,
    memo: Option<String>,
}

/// What a state holds beside the parameters.
pub(super) struct Progress<'a> {
    pub control: Option<Values>,
    pub selection: &'a Selection,
    pub average: Option<&'a Model>,
    pub steps: usize,
}

/// The progress made before this process started.
pub(super) struct Resumed {
    pub steps: usize,
    pub selection: Selection,
    pub average: Option<Model>,
    /// The values that a GPU had decided, where the run was on one.
    pub control: Option<Values>,
}

impl ResumeFile {
    pub fn new(path: &Path, settings: Settings) -> Result<ResumeFile> {
        Ok(ResumeFile { output: OutputPath::check(path, true, 0)?, settings, memo: None })
    }

    /// Whether an earlier run left its state here.
    pub fn exists(&self) -> bool {
        self.output.path().exists()
    }

    /// The run has ended with this content of its result; what it knows stays, so that a longer one may go on.
    pub fn keep(mut self, result: &str) -> Result<()> {
        let TensorFile { tensors, mut metadata, .. } = self.read()?;
        metadata.insert(RESULT.into(), result.to_string());
        let tensors: Vec<StoredTensor> = tensors.into_values().collect();
        metadata.insert(CONTENT.into(), content_hash(&tensors, &metadata));
        write(&mut self.output, &tensors, &metadata)
    }

    /// The content of the result with which the run of the state at `path` ended; `None` where there is none, or it has not.
    pub fn result(path: &Path) -> Option<String> {
        TensorFile::read(path).ok()?.metadata.get(RESULT).cloned()
    }

    /// The run has ended: nothing is left to continue.
    pub fn remove(self) -> Result<()> {
        let path = self.output.path();
        if path.exists() { std::fs::remove_file(path).map_err(Error::io("remove", path)) } else { Ok(()) }
    }

    pub(super) fn save(
        &mut self,
        model: &Model,
        subject: &Subject,
        optimizers: &Optimizers,
        progress: Progress,
    ) -> Result<()> {
        let Progress { control, selection, average, steps } = progress;
        let mut tensors = stored_model("model", model);
        tensors.extend(subject.merge_weights().map(|weights| stored("merge_weights".into(), &weights)));
        let mut metadata = Metadata::from([
            (SETTINGS.to_string(), serde_json::to_string(&self.settings).expect("plain data is JSON")),
            ("steps".into(), steps.to_string()),
            ("history".into(), serde_json::to_string(&selection.history).expect("plain data is JSON")),
        ]);
        for (name, optimizer) in optimizers.named() {
            metadata.insert(format!("{name}.step"), optimizer.steps().to_string());
            for (index, moment) in optimizer.moments().iter().enumerate() {
                tensors.push(stored(format!("{name}.moment{index}"), moment));
            }
        }
        if let Some(control) = control {
            // As bits: a decimal number may come back as another one.
            metadata.insert("control".into(), hex(bytemuck::bytes_of(&control)));
        }
        if let Some(memo) = &self.memo {
            metadata.insert(MEMO.into(), memo.clone());
        }
        tensors.extend(average.into_iter().flat_map(|average| stored_model(AVERAGE, average)));
        if let Some(best) = &selection.best {
            tensors.extend(stored_model("best", &best.model));
            tensors.extend(best.merge_weights.iter().map(|weights| stored("best.merge_weights".into(), weights)));
            metadata.insert("best.epoch".into(), best.epoch.to_string());
        }
        // A device that failed while it was read gave NaN: the state of the epoch before is worth more.
        model.device().check()?;
        metadata.insert(CONTENT.into(), content_hash(&tensors, &metadata));
        write(&mut self.output, &tensors, &metadata)
    }

    /// A text that goes with the state, for whoever prepares a run: what it decided before the first step. The one of an
    /// earlier process stays.
    pub fn remember(&mut self, memo: String) {
        self.memo.get_or_insert(memo);
    }

    /// The text that an earlier process [remembered](ResumeFile::remember).
    pub fn memo(&mut self) -> Result<Option<&str>> {
        if self.memo.is_none() && self.exists() {
            self.memo = self.read()?.metadata.get(MEMO).cloned();
        }
        Ok(self.memo.as_deref())
    }

    fn refuse(&self, message: &str) -> Error {
        Error::checkpoint(self.output.path(), message, "delete it to start from the beginning")
    }

    /// The file, if it is this run's and as it was written.
    fn read(&self) -> Result<TensorFile> {
        let file = TensorFile::read(self.output.path()).map_err(|error| match error {
            Error::Checkpoint { message, .. } => self.refuse(&message),
            other => other,
        })?;
        let text = |key: &str| file.metadata.get(key).ok_or_else(|| self.refuse(NO_STATE));
        let settings: Settings = serde_json::from_str(text(SETTINGS)?).map_err(|_| self.refuse(NO_STATE))?;
        let tensors: Vec<StoredTensor> = file.tensors.values().cloned().collect();
        if *text(CONTENT)? != content_hash(&tensors, &file.metadata) {
            return Err(self.refuse("it was altered since it was written"));
        }
        // By the same way through text: a decimal number may come back as another one.
        let ours = serde_json::to_string(&self.settings).expect("plain data is JSON");
        let differences = differences(&settings, &serde_json::from_str(&ours).expect("it was written just now"));
        if !differences.is_empty() {
            let message = format!("it is the state of another run: {}", first_few(&differences));
            let hint = "give the options of the first call, or delete the file to start from the beginning";
            return Err(Error::checkpoint(self.output.path(), message, hint));
        }
        Ok(file)
    }

    /// Restores `model`, merge weights and `optimizers` if there is a state to continue from.
    pub(super) fn load(
        &self,
        model: &mut Model,
        subject: &mut Subject,
        optimizers: &mut Optimizers,
    ) -> Result<Option<Resumed>> {
        if !self.exists() {
            return Ok(None);
        }
        let file = self.read()?;
        let text = |key: &str| file.metadata.get(key).ok_or_else(|| self.refuse(NO_STATE));
        let number = |key: &str| text(key)?.parse::<u64>().map_err(|_| self.refuse(NO_STATE));
        let history: Vec<EpochRecord> = serde_json::from_str(text("history")?).map_err(|_| self.refuse(NO_STATE))?;
        restore_model(&file, "model", model)?;
        let shape = subject.merge_weights().map(|weights| weights.shape());
        let merge_weights = |name: &str| match shape {
            Some(shape) => file.floats(name, shape.dims()).map(|values| Some(Tensor::from_vec(values, shape))),
            None => Ok(None),
        };
        subject.restore(merge_weights("merge_weights")?);
        for (name, optimizer) in optimizers.named_mut() {
            let mut moments = Vec::new();
            while let Some(stored) = file.tensors.get(&format!("{name}.moment{}", moments.len())) {
                moments.push(Tensor::from_vec(stored.floats(&file.path, &stored.name)?, stored.shape.as_slice()));
            }
            optimizer.restore(number(&format!("{name}.step"))?, moments);
        }
        let best = match file.metadata.contains_key("best.epoch") {
            false => None,
            true => {
                let mut best = model.copy();
                restore_model(&file, "best", &mut best)?;
                let epoch = number("best.epoch")? as usize;
                if epoch >= history.len() {
                    return Err(self.refuse(NO_STATE));
                }
                Some(Best { epoch, model: best, merge_weights: merge_weights("best.merge_weights")? })
            }
        };
        let average = match file.tensors.contains_key(&format!("{AVERAGE}.trunk")) {
            false => None,
            true => {
                let mut average = model.copy();
                restore_model(&file, AVERAGE, &mut average)?;
                Some(average)
            }
        };
        let control = match file.metadata.get("control") {
            None => None,
            Some(text) => Some(control_values(text).ok_or_else(|| self.refuse(NO_STATE))?),
        };
        Ok(Some(Resumed { steps: number("steps")? as usize, selection: Selection { history, best }, average, control }))
    }
}

/// Keys of the header.
const SETTINGS: &str = "settings";
const CONTENT: &str = "content";
const MEMO: &str = "memo";
const RESULT: &str = "result";

/// Before the names of the tensors of an average.
const AVERAGE: &str = "average";

const NO_STATE: &str = "it is no state of a training run";

/// SHA-256 of all tensors and of the rest of the header, whatever their order in the file.
fn content_hash(tensors: &[StoredTensor], metadata: &Metadata) -> String {
    // The writer adds these three to every file.
    let is_ours = |key: &str| key != CONTENT && key != "format" && key != "medmerge.version";
    let mut sorted: Vec<&StoredTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for (key, value) in metadata.iter().filter(|(key, _)| is_ours(key)) {
        hash.update(format!("{key:?}: {value:?}\n"));
    }
    for tensor in sorted {
        hash.update(format!("{:?} {:?}\n", tensor.name, tensor.shape));
        match &tensor.numbers {
            Numbers::Integers(values) => hash.update(bytemuck::cast_slice::<i64, u8>(values)),
            Numbers::Floats(values) => hash.update(bytemuck::cast_slice::<f32, u8>(values)),
            Numbers::NotUnderstood(bytes) => hash.update(bytes),
        }
    }
    hex(hash.finalize())
}

/// The settings that differ, in words.
fn differences(before: &Settings, now: &Settings) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not given".to_string(),
        Some(value) => value.to_string(),
    };
    // Hashes say nothing to anybody.
    let is_hash = |value: Option<&Value>| value.and_then(Value::as_str).is_some_and(|text| text.len() >= 64);
    let differing = names.into_iter().filter(|name| shown(before.get(*name)) != shown(now.get(*name)));
    differing
        .map(|name| match (before.get(name), now.get(name)) {
            (before, now) if is_hash(before) && is_hash(now) => format!("{name} is another"),
            (before, now) if is_hash(before) || is_hash(now) => {
                let is_given = now.is_some_and(|now| !now.is_null());
                format!("{name} was {}", if is_given { "not given and is" } else { "given and is not" })
            }
            (before, now) => format!("{name} was {} and is {}", shown(before), shown(now)),
        })
        .collect()
}

fn control_values(text: &str) -> Option<Values> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len() / 2).map(byte).collect();
    bytemuck::try_pod_read_unaligned(&bytes?).ok()
}

fn stored(name: String, tensor: &Tensor) -> StoredTensor {
    StoredTensor::floats_named(name, tensor.dims().to_vec(), tensor.to_vec())
}

fn stored_model(prefix: &str, model: &Model) -> Vec<StoredTensor> {
    let arenas = [("trunk", &model.trunk), ("head", &model.head), ("statistics", &model.statistics)];
    let mut tensors: Vec<StoredTensor> =
        arenas.into_iter().map(|(name, arena)| stored(format!("{prefix}.{name}"), arena)).collect();
    let counters = model.batches_tracked.clone();
    tensors.push(StoredTensor::integers_named(format!("{prefix}.batches_tracked"), vec![counters.len()], counters));
    tensors
}

fn restore_model(file: &TensorFile, prefix: &str, model: &mut Model) -> Result<()> {
    for (name, arena) in [("trunk", &mut model.trunk), ("head", &mut model.head), ("statistics", &mut model.statistics)]
    {
        let values = file.floats(&format!("{prefix}.{name}"), arena.dims())?;
        *arena = Tensor::from_vec(values, arena.shape());
    }
    if let Some(Numbers::Integers(values)) = file.tensors.get(&format!("{prefix}.batches_tracked")).map(|t| &t.numbers)
    {
        model.batches_tracked.clone_from(values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_differ_are_told_by_their_names() {
        let settings = |pairs: &[(&str, Value)]| {
            pairs.iter().map(|(name, value)| (name.to_string(), value.clone())).collect::<Settings>()
        };
        let (one, other) = ("1".repeat(64), "2".repeat(64));
        let before = settings(&[
            ("--epochs", json!(10)),
            ("--flip", json!(true)),
            ("--patience", Value::Null),
            ("the content of --data", json!(one)),
            ("--from", json!(one)),
        ]);
        let now = settings(&[
            ("--epochs", json!(12)),
            ("--flip", json!(true)),
            ("--patience", json!(3)),
            ("the content of --data", json!(other)),
            ("--from", Value::Null),
        ]);
        let expected = [
            "--epochs was 10 and is 12",
            "--from was given and is not",
            "--patience was not given and is 3",
            "the content of --data is another",
        ];
        assert_eq!(differences(&before, &now), expected);
        assert_eq!(differences(&now, &before)[1], "--from was not given and is");
        assert_eq!(differences(&before, &before), [""; 0]);
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests_on_a_gpu {
    use super::*;
    use crate::gpu::Gpu;
    use crate::nn::Architecture;
    use crate::tensor::{DType, Device};
    use crate::train::TrainOptions;

    /// Numbers read from a failed device are NaN, and a state of NaN in place of a good one would be the run's end.
    #[test]
    fn a_device_that_has_failed_leaves_the_state_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let gpu = Gpu::emulator(1).unwrap();
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let model = Model::initialized(network, 1).to_device(Device::Gpu(gpu));
        let optimizers = Subject::Everything.optimizers(&TrainOptions::default(), &model.network);
        let mut file = ResumeFile::new(&path, Settings::new()).unwrap();
        let selection = Selection::default();
        let progress = |steps| Progress { control: None, selection: &selection, average: None, steps };
        file.save(&model, &Subject::Everything, &optimizers, progress(1)).unwrap();
        let before = std::fs::read(&path).unwrap();
        gpu.prepare("convert", "no such kernel", DType::F32);
        let error = file.save(&model, &Subject::Everything, &optimizers, progress(2)).unwrap_err();
        assert!(matches!(error, Error::Gpu(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
