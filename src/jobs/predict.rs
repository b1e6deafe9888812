//! Predictions: the class and the scores that a network gives each image, as a table.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Evaluate;
use super::evaluate::Scored;
use crate::data::Labels;
use crate::error::Result;
use crate::metrics::{argmax, softmax};
use crate::output::{OutputPath, check_apart};
use crate::train::Observer;

/// The class of each image and its scores, as CSV. The split needs no labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    pub evaluate: Evaluate,
    /// Whether scores are logits, or probabilities.
    #[serde(default)]
    pub logits: bool,
    #[serde(default)]
    pub format: PredictionFormat,
    /// A row per image in file order.
    pub out: PathBuf,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// The columns of a table of predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PredictionFormat {
    /// Under a header: `index,label,predicted`, then `label_name` and `predicted_name` as far as they are known, then
    /// `score0,score1,…`.
    #[default]
    Table,
    /// MedMNIST's result files: the index and the scores, and no header.
    Medmnist,
}

/// Classes and scores of the images of a split, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Images × classes: logits, or probabilities.
    pub scores: Vec<f32>,
    pub classes: usize,
    /// The class that scores highest, per image.
    pub predicted: Vec<u32>,
    /// The true class per image, where the file has labels.
    pub labels: Option<Vec<u32>>,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
}

impl Evaluate {
    /// The class of each image and its scores: logits, or probabilities.
    pub fn predictions(&self, logits: bool, observer: &mut dyn Observer) -> Result<Predictions> {
        let Scored { logits: mut scores, classes, split, class_names } = self.scores(Labels::Optional, observer)?;
        // Before probabilities round: the same classes that figures count.
        let predicted = scores.chunks(classes).map(|row| argmax(row) as u32).collect();
        if !logits {
            scores.chunks_mut(classes).for_each(softmax);
        }
        let labels = split.is_labelled().then_some(split.labels);
        Ok(Predictions { scores, classes, predicted, labels, class_names })
    }
}

impl Predict {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.evaluate.check()?;
        let inputs = [("--model", self.evaluate.model.as_path()), ("--data", self.evaluate.images.data.as_path())];
        check_apart(&inputs, &[("--out", &self.out)])
    }

    /// How many images have a row.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<usize> {
        self.check()?;
        let mut output = OutputPath::check(&self.out, self.force, 0)?;
        let predictions = self.evaluate.predictions(self.logits, observer)?;
        output.write(|file| predictions.write(self.format, file))?;
        Ok(predictions.predicted.len())
    }
}

impl Predictions {
    /// Writes CSV: a row per image.
    pub fn write(&self, format: PredictionFormat, to: &mut dyn Write) -> io::Result<()> {
        if format == PredictionFormat::Table {
            writeln!(to, "{}", self.columns().join(","))?;
        }
        for index in 0..self.predicted.len() {
            write!(to, "{index}")?;
            if format == PredictionFormat::Table {
                self.write_classes(index, to)?;
            }
            // Rust prints the shortest digits that give the same `f32` back.
            for score in &self.scores[index * self.classes..][..self.classes] {
                write!(to, ",{score}")?;
            }
            writeln!(to)?;
        }
        Ok(())
    }

    fn columns(&self) -> Vec<String> {
        let mut columns = ["index", "label", "predicted"].map(String::from).to_vec();
        if self.class_names.is_some() {
            columns.extend(self.labels.is_some().then(|| "label_name".into()));
            columns.push("predicted_name".into());
        }
        columns.extend((0..self.classes).map(|class| format!("score{class}")));
        columns
    }

    /// The classes of an image, and what they are called.
    fn write_classes(&self, index: usize, to: &mut dyn Write) -> io::Result<()> {
        let (label, predicted) = (self.labels.as_ref().map(|labels| labels[index]), self.predicted[index]);
        match label {
            Some(label) => write!(to, ",{label},{predicted}")?,
            None => write!(to, ",,{predicted}")?,
        }
        let Some(names) = &self.class_names else { return Ok(()) };
        label.into_iter().chain([predicted]).try_for_each(|class| write!(to, ",{}", quoted(&names[class as usize])))
    }
}

/// A field of CSV, quoted where it has to be (RFC 4180).
fn quoted(field: &str) -> Cow<'_, str> {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")).into(),
        false => field.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(predictions: &Predictions, format: PredictionFormat) -> String {
        let mut text = Vec::new();
        predictions.write(format, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_columns_are_those_that_are_known() {
        let plain = Predictions {
            scores: vec![0.25, 0.75, 1.0, 1e-7],
            classes: 2,
            predicted: vec![1, 0],
            labels: None,
            class_names: None,
        };
        let names = Some(vec!["a, or \"A\"".to_string(), "b".into()]);
        let named = Predictions { class_names: names, ..plain.clone() };
        let both = Predictions { labels: Some(vec![1, 1]), ..named.clone() };
        let labelled = Predictions { class_names: None, ..both.clone() };
        for (predictions, expected) in [
            (&plain, "index,label,predicted,score0,score1\n0,,1,0.25,0.75\n1,,0,1,0.0000001\n"),
            (&labelled, "index,label,predicted,score0,score1\n0,1,1,0.25,0.75\n1,1,0,1,0.0000001\n"),
            (
                &named,
                "index,label,predicted,predicted_name,score0,score1\n\
                 0,,1,b,0.25,0.75\n1,,0,\"a, or \"\"A\"\"\",1,0.0000001\n",
            ),
            (
                &both,
                "index,label,predicted,label_name,predicted_name,score0,score1\n\
                 0,1,1,b,b,0.25,0.75\n1,1,0,b,\"a, or \"\"A\"\"\",1,0.0000001\n",
            ),
        ] {
            assert_eq!(written(predictions, PredictionFormat::Table), expected);
            assert_eq!(written(predictions, PredictionFormat::Medmnist), "0,0.25,0.75\n1,1,0.0000001\n");
        }
    }
}
