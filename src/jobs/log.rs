//! A log of a job's epochs beside its result.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::output::OutputPath;
use crate::train::EpochRecord;

/// A row per epoch, whole after each, so that an interrupted run leaves it too.
pub struct EpochLog {
    output: OutputPath,
    text: String,
}

const HEADER: &str = "phase,epoch,train_loss,val_accuracy,val_macro_f1,val_balanced_accuracy,val_auc,val_loss,\
                      learning_rate,seconds\n";
/// What every header began with.
const BEGINNING: &str = "phase,epoch,train_loss,val_accuracy,val_macro_f1,";

impl EpochLog {
    /// `folder/name.safetensors` to `folder/name.log.csv`.
    pub fn beside(out: &Path) -> PathBuf {
        out.with_extension("log.csv")
    }

    /// The log of a run whose result is `out`. One that stands there alone is of a run that was interrupted before it had a
    /// result, and may be replaced.
    pub fn new(out: &Path, force: bool) -> Result<EpochLog> {
        let path = EpochLog::beside(out);
        let is_ours = || std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(BEGINNING.as_bytes()));
        let output = OutputPath::check(&path, force || (!out.exists() && is_ours()), 0)?;
        Ok(EpochLog { output, text: HEADER.to_string() })
    }

    pub fn add(&mut self, phase: &str, record: &EpochRecord) {
        let or_nothing = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let EpochRecord { epoch, train_loss, learning_rate, seconds, .. } = record;
        let figures =
            [record.val_accuracy, record.val_macro_f1, record.val_balanced_accuracy, record.val_auc, record.val_loss];
        let figures = figures.map(or_nothing).join(",");
        self.text.push_str(&format!("{},{epoch},{train_loss},{figures},{learning_rate},{seconds:.3}\n", field(phase)));
    }

    pub fn save(&mut self) -> Result<()> {
        self.output.write(|file| file.write_all(self.text.as_bytes()))
    }
}

/// The same as JSON: a line per epoch, an object of the phase and of all that is known of it.
pub(super) struct EpochLines {
    output: OutputPath,
    text: String,
}

impl EpochLines {
    /// A run that continues may replace the lines of an earlier one, and nothing else, unless `force`.
    pub fn new(path: &Path, force: bool, continues: bool) -> Result<EpochLines> {
        let are_lines = || std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"{\"phase\":"));
        let force = force || (continues && are_lines());
        Ok(EpochLines { output: OutputPath::check(path, force, 0)?, text: String::new() })
    }

    pub fn add(&mut self, phase: &str, record: &EpochRecord) {
        #[derive(Serialize)]
        struct Line<'a> {
            phase: &'a str,
            #[serde(flatten)]
            record: &'a EpochRecord,
        }
        self.text.push_str(&serde_json::to_string(&Line { phase, record }).expect("plain data is JSON"));
        self.text.push('\n');
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
