//! A training run that can be killed: its state after each epoch, in a file beside the result.
//!
//! The state is everything the next epoch depends on, so that a run continued from it ends with the same bits as one that
//! was never interrupted. The file belongs to one run: another network, data set or set of options is refused.

use std::path::Path;

use super::step::Optimizers;
use super::{Best, EpochRecord};
use crate::checkpoint::{Metadata, Numbers, StoredTensor, TensorFile, write};
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::ops::control::Values;
use crate::output::OutputPath;
use crate::tensor::Tensor;

/// Where the state of a run is kept, and what says that it is this run's.
pub struct ResumeFile {
    output: OutputPath,
    fingerprint: String,
}

/// What has been done before this process started.
pub(super) struct Resumed {
    pub steps: usize,
    pub history: Vec<EpochRecord>,
    pub best: Option<Best>,
    /// What a GPU had decided, where the run was on one.
    pub control: Option<Values>,
}

impl ResumeFile {
    /// `fingerprint` names the run: whatever changes its result belongs in it.
    pub fn new(path: &Path, fingerprint: String) -> Result<ResumeFile> {
        Ok(ResumeFile { output: OutputPath::check(path, true, 0)?, fingerprint })
    }

    /// Whether an earlier run left its state here.
    pub fn exists(&self) -> bool {
        self.output.path().exists()
    }

    /// The run has ended: nothing is left to continue.
    pub fn remove(self) -> Result<()> {
        let path = self.output.path();
        if path.exists() { std::fs::remove_file(path).map_err(Error::io("remove", path)) } else { Ok(()) }
    }

    pub(super) fn save(
        &mut self,
        model: &Model,
        optimizers: &Optimizers,
        control: Option<Values>,
        best: Option<&Best>,
        history: &[EpochRecord],
        steps: usize,
    ) -> Result<()> {
        let mut tensors = stored_model("model", model);
        let mut metadata = Metadata::from([
            ("fingerprint".to_string(), self.fingerprint.clone()),
            ("steps".into(), steps.to_string()),
            ("history".into(), serde_json::to_string(history).expect("plain data is JSON")),
        ]);
        for (name, optimizer) in optimizers.named() {
            metadata.insert(format!("{name}.step"), optimizer.steps().to_string());
            for (index, moment) in optimizer.moments().iter().enumerate() {
                tensors.push(stored(format!("{name}.moment{index}"), moment));
            }
        }
        if let Some(control) = control {
            // As bits, for the same reason as below.
            let bytes = bytemuck::bytes_of(&control).iter().map(|byte| format!("{byte:02x}"));
            metadata.insert("control".into(), bytes.collect());
        }
        if let Some(best) = best {
            tensors.extend(stored_model("best", &best.model));
            metadata.insert("best.epoch".into(), best.epoch.to_string());
            // As bits: a decimal number may come back as another one.
            metadata.insert("best.macro_f1".into(), best.macro_f1.to_bits().to_string());
        }
        // A device that failed while it was read gave NaN: the state of the epoch before is worth more.
        model.device().check()?;
        write(&mut self.output, &tensors, &metadata)
    }

    /// Restores `model` and `optimizers` if there is a state to continue from.
    pub(super) fn load(&self, model: &mut Model, optimizers: &mut Optimizers) -> Result<Option<Resumed>> {
        if !self.exists() {
            return Ok(None);
        }
        let file = TensorFile::read(self.output.path())?;
        let hint = "delete it to start from the beginning";
        let refuse = |message: &str| Error::checkpoint(self.output.path(), message, hint);
        let text = |key: &str| file.metadata.get(key).ok_or_else(|| refuse("it is no state of a training run"));
        let number = |key: &str| text(key)?.parse::<u64>().map_err(|_| refuse("it is no state of a training run"));
        if *text("fingerprint")? != self.fingerprint {
            return Err(refuse("it is the state of another run: the network, the data or the options differ"));
        }
        let history: Vec<EpochRecord> =
            serde_json::from_str(text("history")?).map_err(|_| refuse("it is no state of a training run"))?;
        restore_model(&file, "model", model)?;
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
                let (epoch, bits) = (number("best.epoch")? as usize, number("best.macro_f1")?);
                Some(Best { macro_f1: f64::from_bits(bits), epoch, model: best, numbers: None })
            }
        };
        let control = match file.metadata.get("control") {
            None => None,
            Some(text) => Some(control_values(text).ok_or_else(|| refuse("it is no state of a training run"))?),
        };
        Ok(Some(Resumed { steps: number("steps")? as usize, history, best, control }))
    }
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

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::gpu::Gpu;
    use crate::nn::Architecture;
    use crate::tensor::{DType, Device};
    use crate::train::{Subject, TrainOptions};

    /// What is read from a device that has failed is NaN, and a state of NaN in place of a good one would be the run's end.
    #[test]
    fn a_device_that_has_failed_leaves_the_state_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let gpu = Gpu::emulator(1).unwrap();
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let model = Model::initialized(network, 1).to_device(Device::Gpu(gpu));
        let optimizers = Subject::Everything.optimizers(&TrainOptions::default());
        let mut file = ResumeFile::new(&path, "a run".into()).unwrap();
        file.save(&model, &optimizers, None, None, &[], 1).unwrap();
        let before = std::fs::read(&path).unwrap();
        gpu.prepare("convert", "no such kernel", DType::F32);
        let error = file.save(&model, &optimizers, None, None, &[], 2).unwrap_err();
        assert!(matches!(error, Error::Gpu(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
