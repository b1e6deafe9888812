//! The head of a network that is merged by coefficients, where sources may tell different classes apart.
//!
//! | | the merged network's classifier |
//! |---|---|
//! | `merge` | `Σ coefficient·source` where all sources have heads of the same classes; else the anchor's |
//! | `anchor` | the anchor's |
//! | `new` | none: training makes one |
//! | `concat` | all rows of all sources, one source below the other: N×(C_0 + C_1 + …) logits in one forward |

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Source, Sources};
use crate::checkpoint::{HeadRecord, Provenance};
use crate::data::Task;
use crate::error::{Error, Result};
use crate::nn::{Model, Parameter, Region};

/// What becomes of the sources' heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Heads {
    #[default]
    Merge,
    New,
    Anchor,
    Concat,
}

impl Heads {
    pub const ALL: [(Heads, &'static str); 4] =
        [(Heads::Merge, "merge"), (Heads::New, "new"), (Heads::Anchor, "anchor"), (Heads::Concat, "concat")];
}

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Heads::ALL[*self as usize].1)
    }
}

impl FromStr for Heads {
    type Err = Error;
    fn from_str(name: &str) -> Result<Heads> {
        let found = Heads::ALL.into_iter().find(|(_, known)| *known == name);
        found
            .map(|(heads, _)| heads)
            .ok_or_else(|| Error::unknown("treatment of heads", name, Heads::ALL.map(|(_, name)| name)))
    }
}

/// The fate of the sources' heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// They were merged like everything else.
    Merged,
    /// The anchor's is kept; for this reason, where nobody asked for it.
    Anchors(Option<String>),
    /// All are there, in these columns.
    Concatenated(Vec<HeadRecord>),
    /// There is none, because a new one is to come.
    New,
    /// There is none, because the anchor has none.
    Missing,
}

impl Head {
    /// What a user ought to know of it.
    pub fn remark(&self, anchor: &Source) -> Option<String> {
        match self {
            Head::Merged | Head::Anchors(None) => None,
            Head::Anchors(Some(why)) => Some(format!("the anchor's classifier is kept: {why}")),
            Head::Concatenated(heads) => Some(format!("its heads, column by column: {}", HeadRecord::list(heads))),
            Head::New => Some("the merged network has no classifier: medmerge train --from makes a new one".into()),
            Head::Missing => {
                let anchor = anchor.path.display();
                Some(format!("the merged network has no classifier, because {anchor} has none"))
            }
        }
    }

    /// Whether the merged network has a classifier.
    pub fn is_there(&self) -> bool {
        !matches!(self, Head::New | Head::Missing)
    }

    fn of(heads: Heads, sources: &Sources, anchor: usize) -> Head {
        let of_anchor = sources.get(anchor);
        match heads {
            Heads::Concat => return Head::Concatenated(concatenated(sources)),
            Heads::New => return Head::New,
            _ if !of_anchor.checkpoint.has_head => return Head::Missing,
            Heads::Anchor => return Head::Anchors(None),
            Heads::Merge => {}
        }
        let is_odd =
            |source: &&Source| classes(source) != classes(of_anchor) || heads_of(source) != heads_of(of_anchor);
        match sources.iter().find(is_odd) {
            Some(odd) => Head::Anchors(Some(format!("{}, {}", tells(of_anchor), tells(odd)))),
            None => Head::Merged,
        }
    }
}

fn classes(source: &Source) -> Option<usize> {
    source.checkpoint.has_head.then_some(source.checkpoint.model.network.classes)
}

fn heads_of(source: &Source) -> &[HeadRecord] {
    source.checkpoint.heads()
}

fn tells(source: &Source) -> String {
    let path = source.path.display();
    match (classes(source), heads_of(source)) {
        (None, _) => format!("{path} has no classifier"),
        (Some(classes), []) => format!("{path} tells {classes} classes apart"),
        (Some(_), heads) => format!("{path} has the heads {}", HeadRecord::list(heads)),
    }
}

/// A network with its head, and what its header says of the classes.
pub(super) struct Headed {
    pub model: Model,
    pub head: Head,
    pub class_names: Option<Vec<String>>,
    pub task: Option<Task>,
    pub heads: Option<Vec<HeadRecord>>,
}

impl Heads {
    /// Refuses sources whose heads cannot be put together, before anything is merged.
    pub(super) fn check(self, sources: &Sources) -> Result<()> {
        let task = |source: &Source| source.checkpoint.provenance.task;
        if let (Heads::Merge | Heads::Concat, Some(odd)) =
            (self, sources.iter().find(|source| task(source) != task(sources.get(0))))
        {
            let [first, odd] = [sources.get(0), odd].map(|source| source.path.display());
            let message = format!("one of {first} and {odd} tells classes apart, the other findings that go together");
            return Err(Error::usage(message, "take the head of one of them, --heads anchor, or none, --heads new"));
        }
        match self {
            Heads::Concat => sources.iter().try_for_each(check_concatenable),
            _ => Ok(()),
        }
    }

    /// Gives its head to `model`: the anchor, whose trunk is merged already.
    pub(super) fn put(self, sources: &Sources, coefficients: &[f64], anchor: usize, mut model: Model) -> Headed {
        let head = Head::of(self, sources, anchor);
        match head {
            Head::Merged => merge(sources, coefficients, &mut model),
            Head::Concatenated(_) => model = concatenate(sources, model),
            Head::Anchors(_) | Head::New | Head::Missing => {}
        }
        let Provenance { class_names, .. } = sources.get(anchor).checkpoint.provenance.clone();
        let is_common = |names: &Vec<String>| {
            sources.iter().all(|source| source.checkpoint.provenance.class_names.as_ref() == Some(names))
        };
        let of_anchor = Some(heads_of(sources.get(anchor)).to_vec()).filter(|heads| !heads.is_empty());
        let (class_names, heads) = match &head {
            Head::Merged => (class_names.filter(is_common), of_anchor),
            Head::Anchors(_) => (class_names, of_anchor),
            Head::Concatenated(heads) => (HeadRecord::all_class_names(heads), Some(heads.clone())),
            Head::New | Head::Missing => (None, None),
        };
        let task = sources.get(anchor).checkpoint.provenance.task.filter(|_| head.is_there());
        Headed { model, head, class_names, task, heads }
    }
}

fn check_concatenable(source: &Source) -> Result<()> {
    let (path, network) = (source.path.display(), &source.checkpoint.model.network);
    let is_classifiers = |parameter: &Parameter| {
        network.classifier().is_some_and(|classifier| classifier.iter().any(|own| own.name == parameter.name))
    };
    if let Some(hidden) = network.region(Region::Head).find(|parameter| !is_classifiers(parameter)) {
        let message = format!(
            "{path}: {} belongs to a hidden layer of its head, and heads that are put together share no hidden layers",
            hidden.name
        );
        let hint = "without --hidden new, hidden layers are merged with the trunk; or leave all heads out: --heads new";
        return Err(Error::usage(message, hint));
    }
    if !source.checkpoint.has_head {
        let message = format!("{path} has no classifier, and --heads concat puts those of all sources together");
        return Err(Error::usage(message, "train one (medmerge train --from), or use --heads anchor, or new"));
    }
    Ok(())
}

/// Σ coefficient·source, parameter by parameter.
fn merge(sources: &Sources, coefficients: &[f64], model: &mut Model) {
    let network = model.network.clone();
    for parameter in network.region(Region::Head) {
        let mut sum = vec![0f32; parameter.shape.len()];
        for (source, &coefficient) in sources.iter().zip(coefficients) {
            let values = source.checkpoint.model.parameter(parameter).to_vec::<f32>();
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += coefficient as f32 * value);
        }
        model.set_parameter(parameter, &sum);
    }
}

/// The rows of all classifiers, one source below the other, on the trunk of `model`.
fn concatenate(sources: &Sources, model: Model) -> Model {
    let models = || sources.iter().map(|source| &source.checkpoint.model);
    let network = sources.network(models().map(|model| model.network.classes).sum());
    let Model { trunk, statistics, batches_tracked, .. } = model;
    let mut model = Model { trunk, statistics, batches_tracked, ..Model::blank(network.clone()) };
    let classifier = |model: &Model, part: usize| model.network.classifier().expect("checked before")[part].clone();
    for part in 0..2 {
        let rows = models().flat_map(|source| source.parameter(&classifier(source, part)).to_vec::<f32>());
        let rows: Vec<f32> = rows.collect();
        model.set_parameter(&classifier(&model, part), &rows);
    }
    model
}

/// The heads of all sources, each under a name of its own.
fn concatenated(sources: &Sources) -> Vec<HeadRecord> {
    let mut taken = BTreeSet::new();
    let mut heads: Vec<HeadRecord> = sources.iter().flat_map(named_by_file).collect();
    for head in &mut heads {
        let again = (2..).map(|number| format!("{}-{number}", head.name));
        let mut names = std::iter::once(head.name.clone()).chain(again);
        head.name = names.find(|name| !taken.contains(name)).expect("numbers do not end");
        taken.insert(head.name.clone());
    }
    heads
}

/// A source's heads, by the stem of its file's name.
fn named_by_file(source: &Source) -> Vec<HeadRecord> {
    let stem = source.path.file_stem().map_or("source".into(), |stem| stem.to_string_lossy());
    match heads_of(source) {
        [] => {
            let (classes, class_names) =
                (source.checkpoint.model.network.classes, source.checkpoint.provenance.class_names.clone());
            vec![HeadRecord { name: stem.into_owned(), classes, class_names }]
        }
        heads => {
            let prefixed = |head: &HeadRecord| HeadRecord { name: format!("{stem}.{}", head.name), ..head.clone() };
            heads.iter().map(prefixed).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;
    use crate::tensor::Tensor;

    /// Untrained networks of these names and classes.
    fn sources(architecture: &str, networks: &[(&str, usize)]) -> Sources {
        let architecture = Architecture::named(architecture, None, Some(4)).unwrap();
        let model = |(seed, &(name, classes)): (usize, &(&str, usize))| {
            let model = Model::initialized(architecture.build(3, classes), seed as u64);
            (name.to_string(), architecture.clone(), model)
        };
        Sources::from_models(networks.iter().enumerate().map(model).collect())
    }

    #[test]
    fn heads_are_called_by_their_files_each_by_a_name_of_its_own() {
        let names = |networks: &[(&str, usize)]| -> Vec<String> {
            concatenated(&sources("resnet8", networks)).into_iter().map(|head| head.name).collect()
        };
        assert_eq!(names(&[("a/skin.pth", 2), ("b/blood.safetensors", 3)]), ["skin", "blood"]);
        let alike = [("a/m.pth", 2), ("b/m.pth", 3), ("m-2.pth", 2), ("m-2", 4)];
        assert_eq!(names(&alike), ["m", "m-2", "m-2-2", "m-2-3"]);
    }

    /// Every family's classifier, whose rows are padded differently: as they were, in the order of the sources.
    #[test]
    fn rows_of_all_classifiers_lie_one_below_the_other() {
        for architecture in ["resnet8", "densenet121", "vgg11"] {
            let sources = sources(architecture, &[("a", 3), ("b", 5), ("c", 1)]);
            Heads::Concat.check(&sources).unwrap();
            let Headed { model, heads, class_names, .. } =
                Heads::Concat.put(&sources, &[0.0; 3], 1, sources.get(1).checkpoint.model.clone());
            assert_eq!((model.network.classes, heads.unwrap().len(), class_names), (9, 3, None));
            let rows =
                |model: &Model, part: usize| model.parameter(model.network.classifier().unwrap()[part]).to_vec::<f32>();
            for part in 0..2 {
                let of_sources = sources.iter().flat_map(|source| rows(&source.checkpoint.model, part));
                assert_eq!(rows(&model, part), of_sources.collect::<Vec<_>>(), "{architecture}");
            }
            // On a source's own trunk, its columns are its logits bit for bit.
            let images = Tensor::from_vec((0..2 * 32 * 32 * 3).map(|i| (i as f32).sin()).collect(), [2, 32, 32, 3]);
            let own = sources.get(1).checkpoint.model.logits(images.clone()).to_vec::<f32>();
            let all = model.logits(images).to_vec::<f32>();
            let columns: Vec<f32> = all.chunks(9).flat_map(|row| row[3..8].to_vec()).collect();
            assert!(own.iter().all(|logit| logit.is_finite()));
            assert_eq!(columns, own, "{architecture}");
        }
    }
}
