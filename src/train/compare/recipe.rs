//! How a network for the target is made of the sources: what a comparison compares.
//!
//! A recipe is written as a name and what is not as usual, `medmerge:granularity=kernel,start=0.5`:
//!
//! | recipe | what it does | reads |
//! |---|---|---|
//! | `scratch` | trains everything, from a drawn start | |
//! | `fine-tune` | trains everything, from a source under a new head | `source` |
//! | `lp-ft` | trains the new head alone, then everything | `source`, `probe-epochs` |
//! | `rescale` | learns one number per kernel with the head, W = s·W of the source from s = 1, folds it, then trains everything: what a learned merge does, without another source | `source`, `granularity`, `merge-rate`, `probe-epochs` |
//! | a [merging method](crate::merge::methods) | the same from the merged network | `align`, the method's numbers, `probe-epochs` |
//! | `medmerge` | learns merge weights with the head, folds them, then trains everything | see [`LearnRecipe`], `probe-epochs` |
//! | `ensemble` | the mean of the probabilities of `lp-ft` of every source | |
//! | `greedy-soup` | the greedy soup of `lp-ft` of every source | |
//!
//! All but the last two also read how everything is trained at the end: `l2-sp`, `distill`, `ema`; see [`Tuning`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::merge::methods::{self, MergeMethod, Number, Numbers};
use crate::merge::{Align, BatchNormPolicy, Constraint, Granularity, ProbeStatistics, Start};
use crate::train::{AnchorChoice, LearnOptions, TrainOptions};

/// See the module's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipe {
    pub kind: Kind,
    /// Epochs of the head alone, if not as many as the protocol has.
    pub probe_epochs: Option<usize>,
    pub tuning: Tuning,
}

/// How everything is trained at the end, by the names of the options of `train`; 0 is without.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tuning {
    pub l2_sp: f64,
    /// Towards the features of the source that is fine-tuned, or of all that were merged by learned weights.
    pub distill: f64,
    pub ema: f64,
}

#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    Scratch,
    FineTune {
        source: usize,
    },
    ProbeThenFineTune {
        source: usize,
    },
    /// The control of a learned merge: `merge_rate` is that of the numbers, if not the protocol's.
    Rescale {
        source: usize,
        granularity: Granularity,
        merge_rate: Option<f64>,
    },
    Merge {
        method: String,
        align: Align,
        numbers: Numbers,
    },
    Medmerge(LearnRecipe),
    Ensemble,
    GreedySoup,
}

/// The options of learning that a comparison varies, by the names of the options of `learn`.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnRecipe {
    pub granularity: Granularity,
    pub constraint: Constraint,
    /// Of several, `0/0.5`, each is learned from, and the one that is best on the validation split is kept; so of anchors.
    pub start: Vec<Start>,
    pub anchor: Vec<AnchorChoice>,
    pub batch_norm: BatchNormPolicy,
    pub align: Align,
    pub probe_statistics: ProbeStatistics,
    pub regularise: f64,
    /// Of the merge weights, if not the protocol's.
    pub merge_rate: Option<f64>,
    pub learn_on: LearnOn,
}

impl LearnRecipe {
    /// Those of `learn`, for one of the anchors and one of the starts.
    pub(super) fn options(&self, anchor: usize, start: Start, probe: TrainOptions) -> LearnOptions {
        let LearnRecipe { granularity, constraint, batch_norm, align, probe_statistics, .. } = *self;
        let anchor = AnchorChoice::Named(anchor);
        let keep_statistics = false;
        LearnOptions {
            granularity,
            constraint,
            start,
            anchor,
            batch_norm,
            keep_statistics,
            align,
            probe_statistics,
            probe,
        }
    }
}

/// Whether merge weights are learned on while everything is fine-tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LearnOn {
    No,
    /// At the rate at which they were learned.
    Yes,
    At(f64),
}

impl fmt::Display for LearnOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LearnOn::No => f.write_str("no"),
            LearnOn::Yes => f.write_str("yes"),
            LearnOn::At(rate) => write!(f, "{rate}"),
        }
    }
}

impl FromStr for LearnOn {
    type Err = ();
    fn from_str(text: &str) -> Result<LearnOn, ()> {
        match text {
            "no" => Ok(LearnOn::No),
            "yes" => Ok(LearnOn::Yes),
            rate => rate.parse().map(LearnOn::At).map_err(drop),
        }
    }
}

impl Default for LearnRecipe {
    fn default() -> LearnRecipe {
        LearnRecipe {
            granularity: Granularity::Filter,
            constraint: Constraint::Affine,
            start: vec![Start::Weight(0.0)],
            anchor: vec![AnchorChoice::Auto],
            batch_norm: BatchNormPolicy::Merge,
            align: Align::None,
            probe_statistics: ProbeStatistics::Batch,
            regularise: 0.0,
            merge_rate: None,
            learn_on: LearnOn::No,
        }
    }
}

const NAMES: [&str; 7] = ["scratch", "fine-tune", "lp-ft", "rescale", "medmerge", "ensemble", "greedy-soup"];

impl Recipe {
    pub fn new(kind: Kind) -> Recipe {
        Recipe { kind, probe_epochs: None, tuning: Tuning::default() }
    }

    /// What a table shows of so many sources unless it is told otherwise: single sources, also rescaled as a learned merge would be,
    /// averages, learned merges, ensembles.
    pub fn usual(sources: usize) -> Vec<Recipe> {
        let of_each = |name: &str| (0..sources).map(|source| format!("{name}:source={source}")).collect::<Vec<_>>();
        let mut all = vec!["scratch".to_string()];
        all.extend(of_each("fine-tune"));
        all.extend(of_each("lp-ft"));
        all.extend(of_each("rescale"));
        let merges = ["linear", "linear:align=activations", "medmerge", "medmerge:granularity=kernel,start=0.5"];
        all.extend(merges.map(String::from));
        all.extend(["ensemble".to_string(), "greedy-soup".to_string()]);
        all.into_iter().map(|text| text.parse().expect("a recipe")).collect()
    }

    /// Every recipe that needs nothing besides: those of [`Recipe::usual`], every merging method that has no base, with alignment
    /// where it has a say, and learned merges of each granularity, start and constraint, aligned and not.
    pub fn all(sources: usize) -> Vec<Recipe> {
        let mut all: Vec<String> = Recipe::usual(sources).iter().map(ToString::to_string).collect();
        for method in methods::all() {
            let takes = method.only_sources().is_none_or(|count| count == sources);
            if takes && !method.needs_base() && !method.measures() {
                all.push(method.name().to_string());
                all.extend((!method.pairs_units()).then(|| format!("{}:align=activations", method.name())));
            }
        }
        all.push("linear:align=weights".into());
        all.push("pleas:align=activations,budget=1.3".into());
        for granularity in ["model", "layer", "filter", "kernel"] {
            for start in ["0", "0.5"] {
                all.push(format!("medmerge:granularity={granularity},start={start}"));
            }
            all.push(format!("medmerge:granularity={granularity},start=0.5,align=activations"));
        }
        all.extend(
            ["clamp", "simplex", "free"].map(|constraint| format!("medmerge:constraint={constraint},start=uniform")),
        );
        all.push("medmerge:granularity=kernel,start=0.5,regularise=1".into());
        all.push("medmerge:granularity=kernel,start=0.5,learn-on=yes".into());
        for option in
            ["batch-norm=anchor", "batch-norm=own", "probe-statistics=running", "l2-sp=10", "distill=0.1", "ema=0.8"]
        {
            all.push(format!("medmerge:granularity=kernel,start=0.5,{option}"));
        }
        for start in ["layer", "filter", "filter,regularise=1", "0/0.5"] {
            all.push(format!("medmerge:granularity=kernel,start={start}"));
        }
        let mut recipes: Vec<Recipe> = Vec::new();
        for text in all {
            let recipe: Recipe = text.parse().expect("a recipe");
            if !recipes.contains(&recipe) && (sources > 1 || recipe.source().is_some()) {
                recipes.push(recipe);
            }
        }
        recipes
    }

    /// The one source that it starts from, where it starts from one.
    pub fn source(&self) -> Option<usize> {
        match self.kind {
            Kind::FineTune { source } | Kind::ProbeThenFineTune { source } | Kind::Rescale { source, .. } => {
                Some(source)
            }
            _ => None,
        }
    }

    /// Whether a network with frozen features is made on the way, which has figures of its own.
    pub fn has_frozen(&self) -> bool {
        !matches!(self.kind, Kind::Scratch | Kind::FineTune { .. } | Kind::GreedySoup)
    }

    /// Whether everything is trained at its end, rather than put together of what was.
    pub fn is_tuned(&self) -> bool {
        !matches!(self.kind, Kind::Ensemble | Kind::GreedySoup)
    }

    /// Whether there are sources by whose features it may be fine-tuned: not those of a merge by a method, whose units may have changed
    /// places on the way, nor where merge weights are learned on.
    fn may_distil(&self) -> bool {
        match &self.kind {
            Kind::Medmerge(options) => options.learn_on == LearnOn::No,
            _ => self.source().is_some(),
        }
    }

    /// What it does until features are no longer frozen: recipes that agree in this share a first phase.
    pub fn frozen_part(&self) -> Recipe {
        let mut recipe = Recipe { tuning: Tuning::default(), ..self.clone() };
        if let Kind::Medmerge(options) = &mut recipe.kind {
            options.learn_on = LearnOn::No;
        }
        recipe
    }

    /// How it is called in a table; `names` are the sources'.
    pub fn label(&self, names: &[&str]) -> String {
        let text = self.to_string();
        match self.source() {
            Some(source) => text.replace(&format!("source={source}"), names[source]),
            None => text,
        }
    }

    /// The merging method by whose name it goes.
    pub fn method(&self) -> Option<&'static dyn MergeMethod> {
        match &self.kind {
            Kind::Merge { method, .. } => methods::named(method).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told: Vec<(&str, String)> = Vec::new();
        let mut tell = |is_told: bool, key: &'static str, value: &dyn fmt::Display| {
            if is_told {
                told.push((key, value.to_string()));
            }
        };
        let name = match &self.kind {
            Kind::Scratch => "scratch",
            Kind::Ensemble => "ensemble",
            Kind::GreedySoup => "greedy-soup",
            Kind::FineTune { source } => {
                tell(true, "source", source);
                "fine-tune"
            }
            Kind::ProbeThenFineTune { source } => {
                tell(true, "source", source);
                "lp-ft"
            }
            Kind::Rescale { source, granularity, merge_rate } => {
                tell(true, "source", source);
                tell(*granularity != Granularity::Kernel, "granularity", granularity);
                tell(merge_rate.is_some(), "merge-rate", &merge_rate.unwrap_or_default());
                "rescale"
            }
            Kind::Merge { method, align, numbers } => {
                tell(*align != Align::None, "align", align);
                numbers.texts().iter().for_each(|(number, value)| tell(true, number.name(), value));
                method
            }
            Kind::Medmerge(recipe) => {
                let usual = LearnRecipe::default();
                let of_anchor = |anchor: &AnchorChoice| match anchor {
                    AnchorChoice::Named(index) => index.to_string(),
                    AnchorChoice::Auto => "auto".into(),
                };
                let anchor = recipe.anchor.iter().map(of_anchor).collect::<Vec<_>>().join("/");
                let start = recipe.start.iter().map(Start::to_string).collect::<Vec<_>>().join("/");
                tell(recipe.granularity != usual.granularity, "granularity", &recipe.granularity);
                tell(recipe.constraint != usual.constraint, "constraint", &recipe.constraint);
                tell(recipe.start != usual.start, "start", &start);
                tell(recipe.anchor != usual.anchor, "anchor", &anchor);
                tell(recipe.batch_norm != usual.batch_norm, "batch-norm", &recipe.batch_norm);
                tell(recipe.align != usual.align, "align", &recipe.align);
                tell(recipe.probe_statistics != usual.probe_statistics, "probe-statistics", &recipe.probe_statistics);
                tell(recipe.regularise != usual.regularise, "regularise", &recipe.regularise);
                tell(recipe.merge_rate.is_some(), "merge-rate", &recipe.merge_rate.unwrap_or_default());
                tell(recipe.learn_on != usual.learn_on, "learn-on", &recipe.learn_on);
                "medmerge"
            }
        };
        tell(self.probe_epochs.is_some(), "probe-epochs", &self.probe_epochs.unwrap_or_default());
        let Tuning { l2_sp, distill, ema } = self.tuning;
        tell(l2_sp != 0.0, "l2-sp", &l2_sp);
        tell(distill != 0.0, "distill", &distill);
        tell(ema != 0.0, "ema", &ema);
        let told: Vec<String> = told.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        if told.is_empty() { f.write_str(name) } else { write!(f, "{name}:{}", told.join(",")) }
    }
}

impl From<Recipe> for String {
    fn from(recipe: Recipe) -> String {
        recipe.to_string()
    }
}

impl TryFrom<String> for Recipe {
    type Error = Error;
    fn try_from(text: String) -> Result<Recipe> {
        text.parse()
    }
}

impl FromStr for Recipe {
    type Err = Error;
    fn from_str(text: &str) -> Result<Recipe> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut given = Given::of(text, rest)?;
        let kind = match name {
            "scratch" => Kind::Scratch,
            "ensemble" => Kind::Ensemble,
            "greedy-soup" => Kind::GreedySoup,
            "fine-tune" => Kind::FineTune { source: given.source()? },
            "lp-ft" => Kind::ProbeThenFineTune { source: given.source()? },
            "rescale" => Kind::Rescale {
                source: given.source()?,
                granularity: given.take("granularity")?.unwrap_or(Granularity::Kernel),
                merge_rate: given.take("merge-rate")?,
            },
            "medmerge" => Kind::Medmerge(learn_recipe(&mut given)?),
            _ => {
                let method = methods::named(name).map_err(|_| {
                    let known = NAMES.into_iter().chain(methods::all().iter().map(|method| method.name()));
                    Error::unknown("recipe", name, known)
                })?;
                merge_recipe(method, &mut given)?
            }
        };
        let mut recipe = Recipe::new(kind);
        if recipe.has_frozen() {
            recipe.probe_epochs = given.take("probe-epochs")?;
        }
        if recipe.is_tuned() {
            recipe.tuning.ema = given.take("ema")?.unwrap_or(0.0);
        }
        if recipe.is_tuned() && recipe.kind != Kind::Scratch {
            recipe.tuning.l2_sp = given.take("l2-sp")?.unwrap_or(0.0);
        }
        if recipe.may_distil() {
            recipe.tuning.distill = given.take("distill")?.unwrap_or(0.0);
        }
        given.finish()?;
        Ok(recipe)
    }
}

fn learn_recipe(given: &mut Given) -> Result<LearnRecipe> {
    let usual = LearnRecipe::default();
    let of_anchor = |text: &str| match text {
        "auto" => Some(AnchorChoice::Auto),
        index => index.parse().ok().map(AnchorChoice::Named),
    };
    let anchor = given.several("anchor", of_anchor)?.unwrap_or(usual.anchor);
    let start = given.several("start", |text| text.parse().ok())?.unwrap_or(usual.start);
    Ok(LearnRecipe {
        granularity: given.take("granularity")?.unwrap_or(usual.granularity),
        constraint: given.take("constraint")?.unwrap_or(usual.constraint),
        start,
        anchor,
        batch_norm: given.take("batch-norm")?.unwrap_or(usual.batch_norm),
        align: given.take("align")?.unwrap_or(usual.align),
        probe_statistics: given.take("probe-statistics")?.unwrap_or(usual.probe_statistics),
        regularise: given.take("regularise")?.unwrap_or(usual.regularise),
        merge_rate: given.take("merge-rate")?,
        learn_on: given.take("learn-on")?.unwrap_or(usual.learn_on),
    })
}

fn merge_recipe(method: &dyn MergeMethod, given: &mut Given) -> Result<Kind> {
    let align = given.take("align")?.unwrap_or_default();
    let mut numbers = Numbers::default();
    for number in method.reads() {
        match number {
            Number::Scale => numbers.scale = given.take("scale")?,
            Number::Density => numbers.density = given.take("density")?,
            Number::T => numbers.t = given.take("t")?,
            Number::Seed => numbers.seed = given.take("seed")?,
            Number::Threshold => numbers.threshold = given.take("threshold")?,
            Number::Budget => numbers.budget = given.take("budget")?,
        }
    }
    numbers.check(method)?;
    Ok(Kind::Merge { method: method.name().to_string(), align, numbers })
}

/// What stands behind a recipe's name.
struct Given<'a> {
    text: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
    known: Vec<&'static str>,
}

impl<'a> Given<'a> {
    fn of(text: &'a str, rest: &'a str) -> Result<Given<'a>> {
        let parts = rest.split(',').filter(|part| !part.is_empty());
        let pair = |part: &'a str| {
            let hint = "write it as NAME:KEY=VALUE,KEY=VALUE, such as medmerge:granularity=kernel,start=0.5";
            part.split_once('=').ok_or_else(|| Error::usage(format!("recipe {text}: '{part}' has no value"), hint))
        };
        Ok(Given { text, pairs: parts.map(pair).collect::<Result<_>>()?, known: Vec::new() })
    }

    fn take<T: FromStr>(&mut self, key: &'static str) -> Result<Option<T>> {
        self.known.push(key);
        let Some(at) = self.pairs.iter().position(|(name, _)| *name == key) else { return Ok(None) };
        let (_, value) = self.pairs.remove(at);
        value.parse().map(Some).map_err(|_| self.odd(key, value))
    }

    /// One or more, with a slash between them.
    fn several<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(text) = self.take::<String>(key)? else { return Ok(None) };
        let all: Option<Vec<T>> = text.split('/').map(read).collect();
        all.map(Some).ok_or_else(|| self.odd(key, &text))
    }

    fn source(&mut self) -> Result<usize> {
        let missing = Error::usage(format!("recipe {}: of which source?", self.text), "such as lp-ft:source=0");
        self.take("source")?.ok_or(missing)
    }

    fn odd(&self, key: &str, value: &str) -> Error {
        let hint = "`medmerge compare --help` tells what each recipe reads";
        Error::usage(format!("recipe {}: {key} cannot be '{value}'", self.text), hint)
    }

    /// Refuses what nobody took.
    fn finish(self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) if self.known.contains(key) => {
                Err(Error::usage(format!("recipe {}: {key} is there twice", self.text), "leave one out"))
            }
            Some((key, _)) => Err(Error::unknown("part of a recipe", key, self.known)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_read_as_they_are_written() {
        for text in [
            "scratch",
            "fine-tune:source=1",
            "lp-ft:source=0,probe-epochs=24",
            "rescale:source=1",
            "rescale:source=0,granularity=filter,merge-rate=0.1,probe-epochs=3,ema=0.5",
            "linear",
            "linear:align=activations",
            "pleas:budget=1.3",
            "dare-ties:align=weights,density=0.3,seed=18446744073709551615",
            "medmerge",
            "medmerge:granularity=kernel,constraint=free,start=0.5,anchor=1,batch-norm=anchor,align=weights,regularise=0.5,\
             merge-rate=0.1,learn-on=yes,probe-epochs=3",
            "medmerge:start=uniform",
            "medmerge:start=0/0.5/layer,anchor=0/auto,batch-norm=own,probe-statistics=running,learn-on=0.002,l2-sp=3,ema=0.8",
            "scratch:ema=0.5",
            "fine-tune:source=0,l2-sp=0.1,distill=0.5",
            "medmerge:start=filter,regularise=1,distill=2",
            "ensemble",
            "greedy-soup",
        ] {
            let recipe: Recipe = text.parse().unwrap();
            assert_eq!(recipe.to_string(), text);
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(
                (json.as_str(), serde_json::from_str::<Recipe>(&json).unwrap()),
                (format!("\"{text}\"").as_str(), recipe)
            );
        }
        assert_eq!("medmerge:start=0,anchor=auto".parse::<Recipe>().unwrap().to_string(), "medmerge");
        assert_eq!("lp-ft:source=1".parse::<Recipe>().unwrap().label(&["a", "b"]), "lp-ft:b");
    }

    #[test]
    fn odd_recipes_are_refused() {
        for (text, says) in [
            ("linaer", "unknown recipe 'linaer'"),
            ("lp-ft", "of which source?"),
            ("lp-ft:source=x", "source cannot be 'x'"),
            ("lp-ft:0", "'0' has no value"),
            ("scratch:probe-epochs=3", "unknown part of a recipe 'probe-epochs'"),
            ("medmerge:start=0,start=1", "start is there twice"),
            ("medmerge:granularty=kernel", "unknown part of a recipe 'granularty'"),
            ("linear:t=0.5", "unknown part of a recipe 't'"),
            ("slerp:t=2", "--t 2"),
            ("scratch:l2-sp=1", "unknown part of a recipe 'l2-sp'"),
            ("ensemble:ema=0.5", "unknown part of a recipe 'ema'"),
            ("linear:distill=1", "unknown part of a recipe 'distill'"),
            ("medmerge:learn-on=yes,distill=1", "unknown part of a recipe 'distill'"),
            ("medmerge:start=0/x", "start cannot be '0/x'"),
            ("medmerge:anchor=", "anchor cannot be ''"),
            ("medmerge:learn-on=maybe", "learn-on cannot be 'maybe'"),
        ] {
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn all_recipes_are_different_and_begin_with_the_usual_ones() {
        let (usual, all) = (Recipe::usual(2), Recipe::all(2));
        assert_eq!(all[..usual.len()], usual);
        let texts: std::collections::BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), all.len());
        for name in ["fisher", "regmean", "zipit", "pleas", "slerp"] {
            assert!(texts.contains(name), "{name}");
            assert!(
                Recipe::all(3).iter().any(|recipe| recipe.to_string() == name) == ["fisher", "regmean"].contains(&name)
            );
        }
    }
}
