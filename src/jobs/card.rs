//! The files that lie beside a network when they are asked for: a card, which tells people what it is and where it comes from,
//! and a configuration, by which timm or transformers build it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{self, Configuration, Described, Metadata};
use crate::error::Result;
use crate::merge::SourceRecord;
use crate::output::{self, Named, OutputPath};
use crate::train::{EpochRecord, Observer, SelectBy, best_epoch_by};

/// Where the card and the configuration will be written.
pub(super) struct CardFiles {
    /// The command that the card tells.
    command: String,
    /// The name of the network's file.
    name: String,
    card: OutputPath,
    configuration: OutputPath,
}

/// What a card tells beside the network itself.
pub(super) struct Told<'a> {
    pub described: Described<'a>,
    /// The network's header.
    pub metadata: &'a Metadata,
    pub history: &'a [EpochRecord],
    /// The figure by which one of them was kept.
    pub select_by: SelectBy,
    /// Files that it comes from, where its header does not name them.
    pub sources: Vec<SourceRecord>,
}

/// The name of both in errors.
const BESIDE: &str = "a file of --card beside --out";

/// The name of a file which libraries look for in a folder, beside `config.json` and `README.md`.
const IN_FOLDER: &str = "model.safetensors";

/// The card and the configuration of `out`: `folder/name.md` and `folder/name.config.json`; beside a `model.safetensors`, which
/// makes its folder one that libraries load, `README.md` and `config.json`.
fn beside(out: &Path) -> [PathBuf; 2] {
    match out.file_name().is_some_and(|name| name == IN_FOLDER) {
        true => [out.with_file_name("README.md"), out.with_file_name("config.json")],
        false => [out.with_extension("md"), out.with_extension("config.json")],
    }
}

/// Refuses a job one of whose outputs is another one, or an input; a card that a command asks for is two outputs more.
pub(super) fn check_apart(inputs: &[Named], outputs: Vec<Named>, command: &Option<String>, out: &Path) -> Result<()> {
    let beside = command.as_ref().map(|_| beside(out));
    let mut outputs: Vec<Named> = outputs;
    outputs.extend(beside.iter().flatten().map(|path| (BESIDE, path.as_path())));
    output::check_apart(inputs, &outputs)
}

/// Writes a network and, where one is asked for, its card.
pub(super) fn save(
    output: &mut OutputPath,
    told: &Told,
    card: Option<CardFiles>,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Described { model, has_head, form, .. } = told.described;
    checkpoint::save_as(output, model, has_head, form, told.metadata)?;
    card.map_or(Ok(()), |card| card.write(told, observer))
}

impl CardFiles {
    /// The files beside `out`, if a card is asked for by a command.
    pub fn check(command: &Option<String>, out: &Path, force: bool) -> Result<Option<CardFiles>> {
        let Some(command) = command.clone() else { return Ok(None) };
        let [card, configuration] = beside(out);
        let check = |path: PathBuf| OutputPath::check(&path, force, 0);
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(CardFiles { command, name, card: check(card)?, configuration: check(configuration)? }))
    }

    /// Writes both; the configuration only where a library has such a network.
    fn write(mut self, told: &Told, observer: &mut dyn Observer) -> Result<()> {
        let configuration = told.described.configuration();
        match &configuration {
            Some(Configuration { json, .. }) => {
                self.configuration.write(|file| writeln!(file, "{json:#}"))?;
            }
            None => {
                let architecture = told.described.architecture;
                let path = self.configuration.path().display();
                observer.remark(&format!(
                    "{path} was not written: timm and transformers have no {architecture} under these names"
                ));
            }
        }
        let text = told.text(&self, configuration.map(|configuration| configuration.library));
        self.card.write(|file| file.write_all(text.as_bytes()))
    }
}

impl Told<'_> {
    fn text(&self, files: &CardFiles, library: Option<&str>) -> String {
        let name = plain(&files.name);
        let sources = self.sources();
        let mut text = front_matter(library, &sources);
        let network = &self.described.model.network;
        let head = match self.described.has_head {
            true => format!("{} classes", network.classes),
            false => "no classifier".to_string(),
        };
        let architecture = self.described.architecture;
        text += &format!("\n# {name}\n\n{architecture}, {} input channels, {head}.\n", network.input_channels);
        if !sources.is_empty() {
            text += "\n## Sources\n\n| file | SHA-256 |\n|---|---|\n";
            sources
                .iter()
                .for_each(|source| text += &format!("| {} | `{}` |\n", plain(&source.name), plain(&source.sha256)));
        }
        text += &table("Heads", &self.heads());
        text += &table("Method", &self.method());
        text += &table("Data", &self.data());
        text += &table("Training", &self.training());
        text += &table("On the validation split", &self.validation());
        let version = env!("CARGO_PKG_VERSION");
        text += &format!("\n## How it was made\n\nBy medmerge {version}:\n\n{}\n", indented(&files.command));
        text
    }

    /// The files that the network comes from, as its header has them.
    fn sources(&self) -> Vec<SourceRecord> {
        let in_header = self.metadata.get("medmerge.sources").and_then(|json| serde_json::from_str(json).ok());
        in_header
            .into_iter()
            .flat_map(|records: Vec<SourceRecord>| records)
            .chain(self.sources.iter().cloned())
            .collect()
    }

    /// Where there are several, in the order of their columns.
    fn heads(&self) -> Vec<(&str, String)> {
        let heads = self.described.provenance.heads.iter().flatten();
        heads.map(|head| (head.name.as_str(), head.of_classes())).collect()
    }

    fn method(&self) -> Vec<(&'static str, String)> {
        let keys = [
            "method",
            "granularity",
            "constraint",
            "align",
            "start",
            "regularise",
            "probe_statistics",
            "coefficients",
            "coefficients_for",
            "scale",
            "density",
            "t",
            "threshold",
            "budget",
            "batch_norm",
            "anchor",
            "seed",
        ];
        let value = |key: &'static str| Some((key, self.metadata.get(&format!("medmerge.{key}"))?.clone()));
        keys.into_iter().filter_map(value).collect()
    }

    fn data(&self) -> Vec<(&'static str, String)> {
        let provenance = self.described.provenance;
        let mut rows = Vec::new();
        if let Some(data) = &provenance.data {
            rows.push(("file", data.name.clone()));
            rows.push(("SHA-256 of images and labels", data.sha256.clone()));
        }
        rows.extend(provenance.image_size.map(|[height, width]| ("pixels", format!("{height}×{width}"))));
        rows.extend(
            provenance.normalisation.as_ref().map(|normalisation| ("normalisation", normalisation.to_string())),
        );
        let class_names = provenance.class_names.as_ref().filter(|_| provenance.heads.is_none());
        rows.extend(class_names.map(|names| ("classes", names.join(", "))));
        rows
    }

    fn training(&self) -> Vec<(&'static str, String)> {
        let phase = |phase: &crate::checkpoint::Phase| {
            let (done, rate, optimizer) = (phase.epochs_done, phase.learning_rate, &phase.optimizer);
            let text =
                format!("{}: {done} epochs, the numbers of epoch {}, {optimizer} at {rate}", phase.kind, phase.epoch);
            ("phase", text)
        };
        self.described.provenance.training.iter().map(phase).collect()
    }

    fn validation(&self) -> Vec<(&'static str, String)> {
        let Some(best) = best_epoch_by(self.select_by, self.history) else { return Vec::new() };
        let row = |name, value: Option<f64>| Some((name, format!("{:.4}", value?)));
        [row("accuracy", best.val_accuracy), row("macro F1", best.val_macro_f1)].into_iter().flatten().collect()
    }
}

/// The part for machines: YAML, of which JSON's texts are a part.
fn front_matter(library: Option<&str>, sources: &[SourceRecord]) -> String {
    let mut text = "---\n".to_string();
    library.into_iter().for_each(|library| text += &format!("library_name: {library}\n"));
    text += "pipeline_tag: image-classification\ntags:\n- image-classification\n- medmerge\n";
    if sources.len() > 1 {
        text += "- merge\n";
    }
    if !sources.is_empty() {
        text += "base_model:\n";
        sources.iter().for_each(|source| text += &format!("- {}\n", Value::from(source.name.as_str())));
    }
    text + "---\n"
}

fn table(title: &str, rows: &[(&str, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows: String = rows.iter().map(|(name, value)| format!("| {} | {} |\n", plain(name), plain(value))).collect();
    format!("\n## {title}\n\n| | |\n|---|---|\n{rows}")
}

/// A text that means nothing to Markdown: names of files and classes may hold anything.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            _ if c.is_control() => plain.extend(c.escape_debug()),
            '|' | '`' | '<' | '>' | '[' | ']' | '*' | '\\' | '#' => plain.extend(['\\', c]),
            _ => plain.push(c),
        }
    }
    plain
}

/// A block of code, in which nothing is marked up.
fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
