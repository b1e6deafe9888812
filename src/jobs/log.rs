//! A log of a job's epochs beside its result.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::output::OutputPath;
use crate::train::EpochRecord;

/// A row per epoch, whole after each, so that an interrupted run leaves it too.
pub struct EpochLog {
    output: OutputPath,
    text: String,
}

const HEADER: &str = "phase,epoch,train_loss,val_accuracy,val_macro_f1,seconds\n";

impl EpochLog {
    /// `folder/name.safetensors` to `folder/name.log.csv`.
    pub fn beside(out: &Path) -> PathBuf {
        out.with_extension("log.csv")
    }

    /// The log of a run whose result is `out`. One that stands there alone is of a run that was interrupted before it had a
    /// result, and may be replaced.
    pub fn new(out: &Path, force: bool) -> Result<EpochLog> {
        let path = EpochLog::beside(out);
        let is_ours = || std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(HEADER.as_bytes()));
        let output = OutputPath::check(&path, force || (!out.exists() && is_ours()), 0)?;
        Ok(EpochLog { output, text: HEADER.to_string() })
    }

    pub fn add(&mut self, phase: &str, record: &EpochRecord) {
        let EpochRecord { epoch, train_loss, val_accuracy, val_macro_f1, seconds } = record;
        let or_nothing = |value: &Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let (accuracy, f1) = (or_nothing(val_accuracy), or_nothing(val_macro_f1));
        self.text.push_str(&format!("{},{epoch},{train_loss},{accuracy},{f1},{seconds:.3}\n", field(phase)));
    }

    pub fn save(&mut self) -> Result<()> {
        self.output.write(|file| file.write_all(self.text.as_bytes()))
    }
}

/// A text as a field of a CSV file: names of files may hold anything.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_kind_is_one_field() {
        assert_eq!(field("linear probe of a.safetensors"), "linear probe of a.safetensors");
        assert_eq!(field("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
    }
}
