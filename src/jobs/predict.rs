//! Predictions: the class and the scores that a network gives each image, as a table; of a network with several heads,
//! those of each. Of labels that an image may have at once, those whose probability is above one half, joined by `|`.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Evaluate;
use super::evaluate::{HeadScores, Scored};
use super::heads::Needs;
use crate::data::{Labels, Task};
use crate::error::Result;
use crate::metrics::{argmax, sigmoid, softmax};
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
    /// `score0,score1,…`. Of several heads, `index,label`, then for each head `predicted_NAME`, `predicted_name_NAME` if
    /// known, and `score_NAME_0,score_NAME_1,…`.
    #[default]
    Table,
    /// MedMNIST's result files: the index and the scores of one head, and no header.
    Medmnist,
}

/// Classes and scores of the images of a split, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    pub images: usize,
    /// One, or all of a network that has several.
    pub heads: Vec<HeadPredictions>,
    /// The true class per image, where the file has labels; where there are several heads, nothing says of which.
    pub labels: Option<Vec<u32>>,
    /// What labels and predictions say.
    pub task: Task,
    /// What each image is called, where they are files.
    pub names: Option<Vec<String>>,
}

/// Classes and scores that one head gives.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPredictions {
    /// `None` where it is the only head.
    pub name: Option<String>,
    /// Images × classes: logits, or probabilities.
    pub scores: Vec<f32>,
    pub classes: usize,
    /// The class that scores highest, per image, or the set of those that are more likely than not.
    pub predicted: Vec<u32>,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
}

impl Evaluate {
    /// The class of each image and its scores: logits, or probabilities.
    ///
    /// # Errors
    /// Also if `format` has room for one head, and the network has several of which none is asked for.
    pub fn predictions(
        &self,
        logits: bool,
        format: PredictionFormat,
        observer: &mut dyn Observer,
    ) -> Result<Predictions> {
        let needs = match format {
            PredictionFormat::Table => Needs::All,
            PredictionFormat::Medmnist => Needs::One("MedMNIST's format has the scores of one"),
        };
        let Scored { heads, split, task } = self.scores(Labels::Optional, needs, observer)?;
        let heads = heads.into_iter().map(|head| HeadPredictions::of(head, task, logits)).collect();
        let images = split.len();
        let names = (0..images).map(|index| split.images().name(index).map(String::from)).collect();
        let labels = split.is_labelled().then_some(split.labels);
        Ok(Predictions { images, heads, names, labels, task })
    }
}

impl HeadPredictions {
    fn of(head: HeadScores, task: Task, logits: bool) -> HeadPredictions {
        let HeadScores { name, logits: mut scores, classes, class_names } = head;
        // Before probabilities round: the same classes that figures count.
        let of_row = |row: &[f32]| match task {
            Task::MultiClass => argmax(row) as u32,
            Task::MultiLabel => row.iter().rev().fold(0, |set, &logit| set << 1 | u32::from(logit > 0.0)),
        };
        let predicted = scores.chunks(classes).map(of_row).collect();
        match task {
            _ if logits => {}
            Task::MultiClass => scores.chunks_mut(classes).for_each(softmax),
            Task::MultiLabel => scores.iter_mut().for_each(|score| *score = sigmoid(*score) as f32),
        }
        HeadPredictions { name, scores, classes, predicted, class_names }
    }

    fn names_of(&self, task: Task, label: u32) -> Option<String> {
        let names = self.class_names.as_ref()?;
        Some(task.classes_of(label).map(|class| names[class].as_str()).collect::<Vec<_>>().join("|"))
    }

    fn write_scores(&self, index: usize, to: &mut dyn Write) -> io::Result<()> {
        // Rust prints the shortest digits that give the same `f32` back.
        self.scores[index * self.classes..][..self.classes].iter().try_for_each(|score| write!(to, ",{score}"))
    }
}

impl Predict {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.evaluate.check()?;
        let models = std::iter::once(&self.evaluate.model).chain(&self.evaluate.others);
        let mut inputs: Vec<_> = models.map(|model| ("--model", model.as_path())).collect();
        inputs.push(("--data", self.evaluate.images.data.as_path()));
        check_apart(&inputs, &[("--out", &self.out)])
    }

    /// How many images have a row.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<usize> {
        self.check()?;
        let mut output = OutputPath::check(&self.out, self.force, 0)?;
        let predictions = self.evaluate.predictions(self.logits, self.format, observer)?;
        output.write(|file| predictions.write(self.format, file))?;
        Ok(predictions.images)
    }
}

impl Predictions {
    /// Writes CSV: a row per image.
    pub fn write(&self, format: PredictionFormat, to: &mut dyn Write) -> io::Result<()> {
        if format == PredictionFormat::Table {
            let columns = self.columns();
            let columns: Vec<_> = columns.iter().map(|column| quoted(column)).collect();
            writeln!(to, "{}", columns.join(","))?;
        }
        for index in 0..self.images {
            write!(to, "{index}")?;
            if let (PredictionFormat::Table, Some(names)) = (format, &self.names) {
                write!(to, ",{}", quoted(&names[index]))?;
            }
            match (format, &self.heads[..]) {
                (PredictionFormat::Table, [head]) => {
                    self.write_classes(head, index, to)?;
                    head.write_scores(index, to)?;
                }
                (PredictionFormat::Table, heads) => self.write_heads(heads, index, to)?,
                (PredictionFormat::Medmnist, heads) => {
                    heads.iter().try_for_each(|head| head.write_scores(index, to))?;
                }
            }
            writeln!(to)?;
        }
        Ok(())
    }

    fn columns(&self) -> Vec<String> {
        let first = ["index".to_string()].into_iter().chain(self.names.as_ref().map(|_| "image".to_string()));
        let [head] = &self.heads[..] else {
            return first.chain(["label".to_string()]).chain(self.heads.iter().flat_map(columns_of_several)).collect();
        };
        let mut columns: Vec<String> = first.chain(["label", "predicted"].map(String::from)).collect();
        if head.class_names.is_some() {
            columns.extend(self.labels.is_some().then(|| "label_name".into()));
            columns.push("predicted_name".into());
        }
        columns.extend((0..head.classes).map(|class| format!("score{class}")));
        columns
    }

    /// The classes of an image, and what they are called.
    fn write_classes(&self, head: &HeadPredictions, index: usize, to: &mut dyn Write) -> io::Result<()> {
        let (label, predicted) = (self.labels.as_ref().map(|labels| labels[index]), head.predicted[index]);
        match label {
            Some(label) => write!(to, ",{},{}", self.numbers(label), self.numbers(predicted))?,
            None => write!(to, ",,{}", self.numbers(predicted))?,
        }
        let names = label.into_iter().chain([predicted]).filter_map(|label| head.names_of(self.task, label));
        names.into_iter().try_for_each(|name| write!(to, ",{}", quoted(&name)))
    }

    /// The label of an image, and what each of several heads says.
    fn write_heads(&self, heads: &[HeadPredictions], index: usize, to: &mut dyn Write) -> io::Result<()> {
        match &self.labels {
            Some(labels) => write!(to, ",{}", self.numbers(labels[index]))?,
            None => write!(to, ",")?,
        }
        for head in heads {
            let predicted = head.predicted[index];
            write!(to, ",{}", self.numbers(predicted))?;
            head.names_of(self.task, predicted).map_or(Ok(()), |name| write!(to, ",{}", quoted(&name)))?;
            head.write_scores(index, to)?;
        }
        Ok(())
    }

    /// The numbers of the classes that a label says.
    fn numbers(&self, label: u32) -> String {
        self.task.classes_of(label).map(|class| class.to_string()).collect::<Vec<_>>().join("|")
    }
}

fn columns_of_several(head: &HeadPredictions) -> Vec<String> {
    let name = head.name.as_deref().unwrap_or_default();
    let mut columns = vec![format!("predicted_{name}")];
    columns.extend(head.class_names.is_some().then(|| format!("predicted_name_{name}")));
    columns.extend((0..head.classes).map(|class| format!("score_{name}_{class}")));
    columns
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
        let head = HeadPredictions {
            name: None,
            scores: vec![0.25, 0.75, 1.0, 1e-7],
            classes: 2,
            predicted: vec![1, 0],
            class_names: None,
        };
        let with_names = HeadPredictions { class_names: Some(vec!["a, or \"A\"".into(), "b".into()]), ..head.clone() };
        let of = |head: &HeadPredictions, labels| {
            let task = Task::MultiClass;
            Predictions { images: 2, heads: vec![head.clone()], labels, task, names: None }
        };
        let (plain, named) = (of(&head, None), of(&with_names, None));
        let (labelled, both) = (of(&head, Some(vec![1, 1])), of(&with_names, Some(vec![1, 1])));
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

    #[test]
    fn several_labels_are_joined() {
        let head = HeadScores {
            name: None,
            logits: vec![0.0, 3.0, 1.5, -1.0, -2.0, 0.0],
            classes: 3,
            class_names: Some(["x", "y", "z"].map(String::from).to_vec()),
        };
        let head = HeadPredictions::of(head, Task::MultiLabel, false);
        assert_eq!((head.scores[0], head.predicted.clone()), (0.5, vec![0b110, 0]));
        let head = HeadPredictions { scores: vec![0.5; 6], ..head };
        let (labels, task) = (Some(vec![0b101, 0b010]), Task::MultiLabel);
        let predictions = Predictions { images: 2, heads: vec![head], labels, task, names: None };
        let expected = "index,label,predicted,label_name,predicted_name,score0,score1,score2\n\
                        0,0|2,1|2,x|z,y|z,0.5,0.5,0.5\n1,1,,y,,0.5,0.5,0.5\n";
        assert_eq!(written(&predictions, PredictionFormat::Table), expected);
    }

    #[test]
    fn several_heads_lie_side_by_side() {
        let [first, second] =
            [("x", 2, [1, 0]), ("y,z", 1, [0, 0])].map(|(name, classes, predicted)| HeadPredictions {
                name: Some(name.into()),
                scores: [0.25, 0.75, 1.0, 0.5][..2 * classes].to_vec(),
                classes,
                predicted: predicted.to_vec(),
                class_names: None,
            });
        let first = HeadPredictions { class_names: Some(vec!["a".into(), "b,c".into()]), ..first };
        // Labels that no head knows.
        let (heads, labels, task) = (vec![first, second], Some(vec![7, 8]), Task::MultiClass);
        let predictions = Predictions { images: 2, heads, labels, task, names: None };
        let header = "index,label,predicted_x,predicted_name_x,score_x_0,score_x_1,\"predicted_y,z\",\"score_y,z_0\"\n";
        let expected = format!("{header}0,7,1,\"b,c\",0.25,0.75,0,0.25\n1,8,0,a,1,0.5,0,0.75\n");
        assert_eq!(written(&predictions, PredictionFormat::Table), expected);
        let unlabelled = Predictions { labels: None, ..predictions };
        let expected = format!("{header}0,,1,\"b,c\",0.25,0.75,0,0.25\n1,,0,a,1,0.5,0,0.75\n");
        assert_eq!(written(&unlabelled, PredictionFormat::Table), expected);
    }
}
