//! Networks merged unit by unit: which units of the sources each unit of the merged network stands for.
//!
//! A unit of the merged network has *members*, units of the sources. What it says is their mean, and whoever read one of the members
//! reads it instead. So a weight from unit q to unit p of the merged network is
//!
//! ```text
//! W[p][q] = 1/|p| · Σ_{f in p} Σ_{g in q, of f's source} W_source(f)[f][g]
//! ```
//!
//! With one member of each source it is the average of aligned networks. A unit without a partner has one member: a network that
//! keeps such units is wider than its sources (partial merging: Nasery et al., "PLeaS", 2025; Stoica et al., "ZipIt!", 2024, who
//! also merge units of one source with each other).
//!
//! The sources are *lifted*: each is brought to the merged network's widths, so that the mean of all is the merged network, and
//! heads, batch norms and statistics are merged as those of others.

use std::collections::BTreeMap;

use super::Sources;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::nn::families::widened::Widened;
use crate::nn::{Architecture, Axis, Holder, Model, Network, Operation, Parameter, Role, UnitGroup, UnitPlace, Units};

/// A unit of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub source: usize,
    pub unit: usize,
}

/// The members of each unit of a merged network, group by group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zip {
    pub groups: Vec<Vec<Vec<Member>>>,
}

/// What stands at a position of the merged network.
#[derive(Clone, Copy, Debug)]
enum Entry<'a> {
    /// What stood there in every source.
    Kept(usize),
    /// A unit; the place tells the positions of its members.
    Unit { place: &'a UnitPlace, members: &'a [Member] },
}

impl Zip {
    /// The k-th units of all sources together: the average of networks as they stand.
    pub fn in_order(units: &Units, sources: usize) -> Zip {
        let of_unit = |unit: usize| (0..sources).map(|source| Member { source, unit }).collect();
        Zip { groups: units.groups.iter().map(|group| (0..group.units).map(of_unit).collect()).collect() }
    }

    /// Partners that are alike by less than `threshold` stay two units, the least alike first, as long as the network has no more
    /// than `budget` times its parameters. `likeness` is that of the k-th units of two sources that were aligned.
    pub fn partial(network: &Network, units: &Units, likeness: &[Vec<f64>], threshold: f64, budget: f64) -> Zip {
        let mut zip = Zip::in_order(units, 2);
        let mut sizes = Sizes::of(network, units);
        let most = network.parameter_count() as f64 * budget;
        let mut parameters = network.parameter_count() as f64;
        let mut candidates: Vec<(f64, usize, usize)> = Vec::new();
        for (index, _) in units.groups.iter().enumerate().filter(|(_, group)| can_grow(network, group)) {
            let of_group = likeness[index].iter().enumerate().map(|(unit, &like)| (like, index, unit));
            candidates.extend(of_group.filter(|(like, ..)| *like < threshold));
        }
        candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        for (_, group, unit) in candidates {
            let cost = sizes.of_another_unit(&units.groups[group]) as f64;
            if parameters + cost > most {
                break;
            }
            parameters += cost;
            sizes.grow(&units.groups[group]);
            zip.groups[group][unit].truncate(1);
            zip.groups[group].push(vec![Member { source: 1, unit }]);
        }
        zip
    }

    /// Pairs of the most alike of all units of two sources, also of one of them, the most alike first. `likeness` are matrices per
    /// group: of the first to the first, of the first to the second, of the second to the second.
    pub fn greedy(units: &Units, likeness: [&[Vec<f32>]; 3]) -> Zip {
        let of_group = |(index, group): (usize, &UnitGroup)| {
            if !is_plain(group) {
                return (0..group.units).map(|unit| [0, 1].map(|source| Member { source, unit }).to_vec()).collect();
            }
            let count = group.units;
            let mut pairs: Vec<(f32, Member, Member)> = Vec::new();
            for (matrix, [a, b]) in likeness.iter().zip([[0, 0], [0, 1], [1, 1]]) {
                for (at, &like) in matrix[index].iter().enumerate() {
                    let (first, second) = (at / count, at % count);
                    if a != b || first < second {
                        pairs.push((like, Member { source: a, unit: first }, Member { source: b, unit: second }));
                    }
                }
            }
            pairs.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
            let mut is_taken = vec![[false; 2]; count];
            let mut zipped: Vec<Vec<Member>> = Vec::new();
            for (_, a, b) in pairs {
                if !is_taken[a.unit][a.source] && !is_taken[b.unit][b.source] {
                    is_taken[a.unit][a.source] = true;
                    is_taken[b.unit][b.source] = true;
                    zipped.push(vec![a, b]);
                }
            }
            zipped
        };
        Zip { groups: units.groups.iter().enumerate().map(of_group).collect() }
    }

    /// The sources in the widths of the merged network, which is the mean of them.
    ///
    /// # Errors
    /// If the network has no such widths.
    pub fn lift(&self, sources: &Sources, units: &Units) -> Result<Sources> {
        let architecture = self.architecture(sources, units);
        let channels = sources.input_channels();
        architecture.check(channels).map_err(|reason| {
            Error::usage(format!("the merged network cannot be: {reason}"), "use --budget 1, which widens nothing")
        })?;
        let count = sources.len();
        let models: Vec<&Model> = sources.iter().map(|source| &source.checkpoint.model).collect();
        let lift = |index: usize, checkpoint: &Checkpoint| {
            let old = &checkpoint.model;
            let network = architecture.build(channels, old.network.classes);
            let mut model = Model::blank(network.clone());
            for (at, parameter) in network.parameters.iter().enumerate() {
                let values = self.lifted(units, old, at, index, count);
                model.set_parameter(parameter, &values);
            }
            for norm in 0..network.batch_norms.len() {
                let [mean, variance] = self.mean_statistics(units, &models, norm);
                model.set_running(norm, &mean, &variance);
            }
            model.batches_tracked = old.batches_tracked.clone();
            Checkpoint { model, architecture: architecture.clone(), ..checkpoint.clone() }
        };
        Ok(sources.with_checkpoints(lift))
    }

    fn architecture(&self, sources: &Sources, units: &Units) -> Architecture {
        let network = &sources.get(0).checkpoint.model.network;
        let of = sources.architecture();
        let filters = network.parameters.iter().enumerate().filter(|(_, parameter)| parameter.role == Role::Filters);
        let wanted: Vec<(usize, &str, usize)> = filters
            .map(|(index, parameter)| {
                let rows = self.axis(units, Holder::Parameter(index), true, parameter.shape.rows()).len();
                (index, parameter.name.trim_end_matches(".weight"), rows)
            })
            .collect();
        if wanted.iter().all(|&(index, _, rows)| network.parameters[index].shape.rows() == rows) {
            return of.clone();
        }
        // A family may make a layer as wide as half of what it reads: where what it reads has grown, its own width is told too.
        let mut widened = Widened::around(of);
        loop {
            let built = Architecture::from(widened.clone()).build(network.input_channels, network.classes);
            match wanted.iter().find(|&&(index, _, rows)| built.parameters[index].shape.rows() != rows) {
                Some(&(_, name, rows)) => drop(widened.filters.insert(name.to_string(), rows)),
                None => return widened.into(),
            }
        }
    }

    /// What stands along an axis of the merged network, whose sources have `len` positions there.
    fn axis<'a>(&'a self, units: &'a Units, holder: Holder, rows: bool, len: usize) -> Vec<Entry<'a>> {
        let mut at: Vec<Option<(&UnitPlace, usize, usize)>> = vec![None; len];
        for (index, group) in units.groups.iter().enumerate().filter(|(_, group)| is_plain(group)) {
            for place in group.strands.iter().flat_map(|strand| &strand.places) {
                if place.holder == holder && (place.axis == Axis::Rows) == rows {
                    place.positions.iter().enumerate().for_each(|(unit, &p)| at[p] = Some((place, index, unit)));
                }
            }
        }
        let mut entries = Vec::new();
        for (position, found) in at.into_iter().enumerate() {
            let Some((place, group, unit)) = found else {
                entries.push(Entry::Kept(position));
                continue;
            };
            let (zipped, count) = (&self.groups[group], units.groups[group].units);
            // Those that are more than the sources' stand behind the last one of these.
            let last = if unit + 1 == count { zipped.len() } else { unit + 1 };
            entries.extend(zipped[unit..last].iter().map(|members| Entry::Unit { place, members }));
        }
        entries
    }

    /// Rows and columns of a parameter.
    fn axes<'a>(&'a self, units: &'a Units, index: usize, parameter: &Parameter) -> [Vec<Entry<'a>>; 2] {
        let (holder, shape) = (Holder::Parameter(index), parameter.shape);
        let rows = self.axis(units, holder, true, shape.rows());
        // The columns of a convolution in groups are nobody's, or those of units that stay as they are.
        let columns = if shape.rank() == 1 { Vec::new() } else { self.axis(units, holder, false, shape.channels()) };
        [rows, columns]
    }

    /// A parameter of a lifted source.
    fn lifted(&self, units: &Units, model: &Model, index: usize, source: usize, sources: usize) -> Vec<f32> {
        let parameter = &model.network.parameters[index];
        let old = model.numbers(parameter);
        let [rows, columns] = self.axes(units, index, parameter);
        let (channels, window) = match parameter.shape.rank() {
            1 => (1, 1),
            _ => (parameter.shape.channels(), parameter.shape.row_len() / parameter.shape.channels()),
        };
        let columns: Vec<Vec<usize>> = match parameter.shape.rank() {
            1 => vec![vec![0]],
            _ => columns.iter().map(|entry| entry.positions(source)).collect(),
        };
        let mut new = vec![0f32; rows.len() * window * columns.len()];
        for (entry, new) in rows.iter().zip(new.chunks_mut((window * columns.len()).max(1))) {
            let scale = entry.scale(sources);
            for position in entry.positions(source) {
                let row = &old[position * parameter.pitch..];
                for (pixel, new) in new.chunks_mut(columns.len()).enumerate() {
                    for (from, new) in columns.iter().zip(new) {
                        *new += scale * from.iter().map(|&c| row[pixel * channels + c]).sum::<f32>();
                    }
                }
            }
        }
        new
    }

    /// The running mean and variance of a batch norm: the mean of the members'.
    fn mean_statistics(&self, units: &Units, models: &[&Model], norm: usize) -> [Vec<f32>; 2] {
        let running: Vec<[Vec<f32>; 2]> = models
            .iter()
            .map(|model| {
                let (mean, variance) = model.running(norm);
                [mean.to_vec(), variance.to_vec()]
            })
            .collect();
        let entries = self.axis(units, Holder::Statistics(norm), true, running[0][0].len());
        let mean_of = |which: usize| {
            let of_entry = |entry: &Entry| {
                let each = (0..models.len())
                    .flat_map(|source| entry.positions(source).into_iter().map(move |position| (source, position)));
                let values: Vec<f32> = each.map(|(source, position)| running[source][which][position]).collect();
                values.iter().sum::<f32>() / values.len() as f32
            };
            entries.iter().map(of_entry).collect()
        };
        [mean_of(0), mean_of(1)]
    }

    /// For each row and each column of a parameter of the merged network, the positions in each source that it stands for:
    /// what is read and made there is their mean.
    pub fn members_of(
        &self,
        units: &Units,
        network: &Network,
        index: usize,
        sources: usize,
    ) -> [Vec<Vec<[usize; 2]>>; 2] {
        self.axes(units, index, &network.parameters[index]).map(|entries| {
            let of = |entry: &Entry| {
                let each = |source: usize| entry.positions(source).into_iter().map(move |position| [source, position]);
                (0..sources).flat_map(each).collect()
            };
            entries.iter().map(of).collect()
        })
    }
}

impl Entry<'_> {
    /// Where a source has what this stands for.
    fn positions(&self, source: usize) -> Vec<usize> {
        match self {
            Entry::Kept(position) => vec![*position],
            Entry::Unit { place, members } => {
                members.iter().filter(|m| m.source == source).map(|m| place.positions[m.unit]).collect()
            }
        }
    }

    /// By what a row of a lifted source is multiplied, so that the mean of all sources is that of the members.
    fn scale(&self, sources: usize) -> f32 {
        match self {
            Entry::Kept(_) => 1.0,
            Entry::Unit { members, .. } => sources as f32 / members.len() as f32,
        }
    }
}

/// Units of one channel, each on its own.
fn is_plain(group: &UnitGroup) -> bool {
    matches!(group.strands.as_slice(), [strand] if strand.pieces == 1)
}

/// Whether there is room behind the units wherever they lie: they lie side by side, and none is a group of a convolution, of which
/// there are as many as there are.
fn can_grow(network: &Network, group: &UnitGroup) -> bool {
    let in_a_row = |place: &UnitPlace| place.positions.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let in_groups = |place: &UnitPlace| {
        network.layers.iter().any(|layer| match layer.operation {
            Operation::Conv2d { conv, weight } => conv.groups > 1 && place.holder == Holder::Parameter(weight),
            _ => false,
        })
    };
    is_plain(group) && group.strands[0].places.iter().all(|place| in_a_row(place) && !in_groups(place))
}

/// Rows, window and columns of each parameter while groups grow.
struct Sizes(BTreeMap<Holder, [usize; 3]>);

impl Sizes {
    fn of(network: &Network, units: &Units) -> Sizes {
        let holders = units.groups.iter().flat_map(|g| &g.strands).flat_map(|s| &s.places).map(|place| place.holder);
        let size = |holder: Holder| match holder {
            Holder::Parameter(index) => {
                let shape = network.parameters[index].shape;
                match shape.rank() {
                    1 => [shape.len(), 1, 1],
                    _ => [shape.rows(), shape.row_len() / shape.channels(), shape.channels()],
                }
            }
            Holder::Statistics(_) => [0; 3],
        };
        Sizes(holders.map(|holder| (holder, size(holder))).collect())
    }

    fn of_another_unit(&self, group: &UnitGroup) -> usize {
        let of_place = |place: &UnitPlace| {
            let [rows, window, columns] = self.0[&place.holder];
            if place.axis == Axis::Rows { window * columns } else { rows * window }
        };
        group.strands[0].places.iter().map(of_place).sum()
    }

    fn grow(&mut self, group: &UnitGroup) {
        for place in &group.strands[0].places {
            let sizes = self.0.get_mut(&place.holder).expect("every place has its holder");
            sizes[if place.axis == Axis::Rows { 0 } else { 2 }] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::Heads;
    use crate::merge::fold_by;
    use crate::merge::methods::{Inputs, Numbers, Task, named};
    use crate::tensor::Tensor;

    fn sources(name: &str, width: usize) -> Sources {
        let architecture = Architecture::named(name, None, Some(width)).unwrap();
        let models = [1, 2].map(|seed| {
            let mut model = Model::initialized(architecture.build(3, 5), seed);
            for index in 0..model.network.batch_norms.len() {
                let channels = model.network.batch_norms[index].channels;
                let values =
                    |scale: f32| (0..channels).map(|i| scale * (1.5 + (i as f32 * seed as f32).sin())).collect();
                let (mean, variance): (Vec<f32>, Vec<f32>) = (values(0.02), values(0.5));
                model.set_running(index, &mean, &variance);
            }
            (format!("{seed}.safetensors"), architecture.clone(), model)
        });
        Sources::from_models(models.to_vec())
    }

    fn mean(sources: &Sources) -> Model {
        let blend = |plan: &crate::merge::Plan, trunks: &[Tensor], weights: &Tensor| Ok(plan.blend(trunks, weights));
        let numbers = Numbers::default();
        let inputs = Inputs::new(sources, &[0.5, 0.5], &numbers);
        let task = Task { inputs, images: None, blend: &blend };
        fold_by(named("linear").unwrap(), &task, Heads::Merge).unwrap().model
    }

    fn logits(model: &Model) -> Vec<f32> {
        let values = (0..2 * 32 * 32 * 3).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        model.logits(Tensor::from_vec(values, [2, 32, 32, 3])).to_vec()
    }

    #[test]
    fn units_in_order_are_the_average() {
        for (name, width) in [("resnet8", 4), ("resnext50_32x4d", 32), ("densenet121", 4), ("vgg11_bn", 4)] {
            let sources = sources(name, width);
            let units = Units::of(&sources.get(0).checkpoint.model.network);
            let lifted = Zip::in_order(&units, 2).lift(&sources, &units).unwrap();
            for (lifted, source) in lifted.iter().zip(sources.iter()) {
                assert_eq!(lifted.checkpoint.architecture, source.checkpoint.architecture);
                assert!(lifted.checkpoint.model.trunk.to_vec::<f32>() == source.checkpoint.model.trunk.to_vec::<f32>());
            }
        }
    }

    /// A network of all units of both sources is both of them side by side: its logits are the mean of theirs.
    #[test]
    fn all_units_kept_are_an_ensemble() {
        for (name, width) in [("resnet8", 4), ("resnet20", 4), ("densenet121", 4), ("vgg11", 4), ("vgg11_bn", 4)] {
            let sources = sources(name, width);
            let network = sources.get(0).checkpoint.model.network.clone();
            let units = Units::of(&network);
            let nothing_alike: Vec<Vec<f64>> = units.groups.iter().map(|group| vec![0.0; group.units]).collect();
            let zip = Zip::partial(&network, &units, &nothing_alike, 1.0, 5.0);
            assert!(zip.groups.iter().zip(&units.groups).all(|(zip, group)| zip.len() == 2 * group.units), "{name}");
            let lifted = zip.lift(&sources, &units).unwrap();
            let merged = mean(&lifted);
            assert_eq!(lifted.architecture().family(), "widened");
            let [a, b] = [0, 1].map(|index| logits(&sources.get(index).checkpoint.model));
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
            let scale = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            let actual = logits(&merged);
            let close = actual.iter().zip(&expected).all(|(x, y)| (x - y).abs() <= 1e-4 * scale);
            assert!(close && scale > 0.0, "{name}: {actual:?}, not {expected:?}");
        }
    }

    /// Some units of every family, also where a layer's width follows from what it reads.
    #[test]
    fn some_units_kept_fit_every_family() {
        let all = [("resnet8", 4), ("resnet20-option-a", 4), ("densenet121", 8), ("vgg11", 4), ("resnext50_32x4d", 16)];
        for (name, width) in all {
            let sources = sources(name, width);
            let network = sources.get(0).checkpoint.model.network.clone();
            let units = Units::of(&network);
            let likeness: Vec<Vec<f64>> = units
                .groups
                .iter()
                .enumerate()
                .map(|(index, group)| (0..group.units).map(|unit| ((index * 7 + unit * 3) as f64).sin()).collect())
                .collect();
            for budget in [1.05, 1.2, 1.6] {
                let zip = Zip::partial(&network, &units, &likeness, 1.0, budget);
                let lifted = zip.lift(&sources, &units).unwrap();
                let merged = &lifted.get(0).checkpoint.model.network;
                let ratio = merged.parameter_count() as f64 / network.parameter_count() as f64;
                assert!(ratio > 1.0 && ratio <= budget, "{name}: {ratio} of {budget}");
                assert!(logits(&mean(&lifted)).iter().all(|logit| logit.is_finite()), "{name}");
            }
        }
    }

    #[test]
    fn the_budget_is_kept_and_the_least_alike_stay_two() {
        let sources = sources("resnet8", 8);
        let network = sources.get(0).checkpoint.model.network.clone();
        let units = Units::of(&network);
        let likeness: Vec<Vec<f64>> = units
            .groups
            .iter()
            .map(|group| {
                (0..group.units).map(|unit| if unit % 2 == 0 { 0.9 } else { 0.1 * unit as f64 / 64.0 }).collect()
            })
            .collect();
        let mut before = 1.0;
        for budget in [1.0, 1.1, 1.3, 1.6] {
            let zip = Zip::partial(&network, &units, &likeness, 0.5, budget);
            let lifted = zip.lift(&sources, &units).unwrap();
            let parameters = lifted.get(0).checkpoint.model.network.parameter_count();
            let ratio = parameters as f64 / network.parameter_count() as f64;
            assert!(ratio <= budget && (budget == 1.0 || ratio > before), "{ratio} of {budget}");
            before = ratio;
            for (zipped, group) in zip.groups.iter().zip(&units.groups) {
                // Those that are alike have both members, and every unit is there once.
                assert!((0..group.units).step_by(2).all(|unit| zipped[unit].len() == 2));
                let mut all: Vec<Member> = zipped.iter().flatten().copied().collect();
                all.sort();
                all.dedup();
                assert_eq!(all.len(), 2 * group.units);
            }
        }
    }

    #[test]
    fn pairs_are_taken_by_likeness_also_within_a_source() {
        let network = Architecture::named("resnet8", None, Some(2)).unwrap().build(1, 2);
        let units = Units::of(&network);
        let of_all = |matrix: [f32; 4]| -> Vec<Vec<f32>> {
            let of = |group: &UnitGroup| {
                let count = group.units;
                (0..count * count).map(|at| if count == 2 { matrix[at] } else { 0.0 }).collect()
            };
            units.groups.iter().map(of).collect()
        };
        let member = |source: usize, unit: usize| Member { source, unit };
        // a0 ~ b1, then a1 ~ b0.
        let cross = of_all([0.1, 0.8, 0.2, 0.3]);
        let zip = Zip::greedy(&units, [&of_all([1.0, 0.0, 0.0, 1.0]), &cross, &of_all([1.0, 0.0, 0.0, 1.0])]);
        assert_eq!(zip.groups[0], [vec![member(0, 0), member(1, 1)], vec![member(0, 1), member(1, 0)]]);
        // The two units of the first source are most alike: those of the second are left for each other.
        let zip = Zip::greedy(&units, [&of_all([1.0, 0.9, 0.9, 1.0]), &cross, &of_all([1.0, 0.0, 0.0, 1.0])]);
        assert_eq!(zip.groups[0], [vec![member(0, 0), member(0, 1)], vec![member(1, 0), member(1, 1)]]);
    }
}
