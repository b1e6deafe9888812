//! Units: what may change places in a network without changing what it computes, derived from the graph.
//!
//! A network does not know the order of its channels. Whoever permutes the filters of a convolution has to permute what reads
//! them alike: the batch norm behind it, the columns of every convolution that sees it, the other operand of a sum. All
//! channels that are tied in this way are one *unit*; units of which each lies wherever the others of its kind lie may change
//! places, and are a *group*:
//!
//! | what the graph has | what follows |
//! |---|---|
//! | a residual stream | all filters that are added into it, channel by channel, are one unit |
//! | a concatenation | its parts stay groups of their own, at an offset in the columns of whoever reads the whole |
//! | channels of zeros added to a stream | they tie nothing: what they are added to is free |
//! | a convolution in as many groups as channels | a filter is one unit with the channel that it reads |
//! | a convolution in other groups | its groups change places as wholes, and channels within each of them |
//! | a linear layer behind flattening | all pixels of a channel move together |
//!
//! The channels of the images, the classes, and what is added to either stay where they are.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Network, Node, Operation};
use super::model::Model;
use crate::ops::conv2d::Conv2d;
use crate::tensor::Tensor;

/// The units of a network, group by group, in the order of the layers that make them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    pub groups: Vec<UnitGroup>,
}

/// Units that may change places with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitGroup {
    /// The layer that makes the first of their channels.
    pub name: String,
    pub units: usize,
    /// One, unless units are the groups of a convolution: then what it reads and what it makes.
    pub strands: Vec<Strand>,
}

/// Channels of a group: `pieces` of each unit, which may change places within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strand {
    pub pieces: usize,
    pub places: Vec<Place>,
    /// Where the channels can be seen: of the nodes that have all of them, the last one among those with the fewest others, and
    /// each channel's position in it.
    pub seen: Option<(Node, Vec<usize>)>,
}

/// What of a network is permuted with the channels of a strand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub holder: Holder,
    pub axis: Axis,
    /// The position of each channel, units × pieces of them.
    pub positions: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A parameter, by its index.
    Parameter(usize),
    /// The running mean and variance of a batch norm.
    Statistics(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Output channels: a filter's rows, or a vector's numbers.
    Rows,
    /// Input channels. Of a convolution in groups, channel c is column c mod C/G of the rows of its group.
    Columns { groups: usize },
}

impl Strand {
    pub fn channels(&self) -> usize {
        self.places[0].positions.len()
    }
}

/// An order of the channels of every strand: each one's new channels, by the old ones that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    /// For each group, for each of its strands.
    pub orders: Vec<Vec<Vec<usize>>>,
}

/// The channel of a node, as far as its place can be changed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    /// It stays where it is.
    Fixed,
    /// Zeros, wherever they are.
    Zero,
    Variable(usize),
}

/// A row or a column that moves with a variable.
struct Member {
    variable: usize,
    holder: Holder,
    axis: Axis,
    position: usize,
}

/// The groups of a convolution: for each, the variables that it reads and those that it makes.
type Blocks = Vec<[Vec<usize>; 2]>;

struct Derivation<'a> {
    network: &'a Network,
    /// Union-find over variables; variable 0 stays where it is.
    parents: Vec<usize>,
    nodes: Vec<Vec<Slot>>,
    members: Vec<Member>,
    grouped: Vec<Blocks>,
}

/// The variable of all that cannot move.
const FIXED: usize = 0;

impl Units {
    pub fn of(network: &Network) -> Units {
        let mut derivation = Derivation {
            network,
            parents: vec![FIXED],
            nodes: vec![vec![Slot::Fixed; network.input_channels]],
            members: Vec::new(),
            grouped: Vec::new(),
        };
        for index in 0..network.layers.len() {
            derivation.layer(index);
        }
        let output = derivation.nodes.last().cloned().unwrap_or_default();
        output.into_iter().for_each(|slot| derivation.fix(slot));
        derivation.freeze_crossing_blocks();
        derivation.finish()
    }

    /// How many units there are in all.
    pub fn count(&self) -> usize {
        self.groups.iter().map(|group| group.units).sum()
    }

    /// The same network with its channels in another order.
    pub fn permuted(&self, model: &Model, permutation: &Permutation) -> Model {
        let mut permuted = model.copy();
        self.permute(&mut permuted, permutation.orders.iter().map(Vec::as_slice).enumerate());
        permuted
    }

    /// Brings the channels of some groups into another order: each group by its index, with the orders of its strands. Nothing
    /// but what the groups own is read or written.
    pub fn permute<'a>(&self, model: &mut Model, orders: impl Iterator<Item = (usize, &'a [Vec<usize>])>) {
        let mut of_banks: BTreeMap<usize, Bank> = BTreeMap::new();
        for (group, orders) in orders {
            for (strand, order) in self.groups[group].strands.iter().zip(orders) {
                for place in &strand.places {
                    let from = order.iter().map(|&old| place.positions[old]);
                    let moves: Vec<[usize; 2]> =
                        place.positions.iter().copied().zip(from).map(|(to, from)| [to, from]).collect();
                    match (place.holder, place.axis) {
                        (Holder::Statistics(index), _) => move_statistics(model, index, &moves),
                        (Holder::Parameter(index), Axis::Rows) => {
                            of_banks.entry(index).or_default().rows.extend(moves);
                        }
                        (Holder::Parameter(index), Axis::Columns { groups }) => {
                            let bank = of_banks.entry(index).or_default();
                            bank.groups = groups;
                            bank.columns.extend(moves);
                        }
                    }
                }
            }
        }
        for (index, bank) in of_banks {
            bank.apply(model, index);
        }
    }
}

impl Network {
    /// The layers that own rows which move with a strand, or columns; each once, in the order of layers.
    pub fn held(&self, strand: &Strand, rows: bool) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for place in strand.places.iter().filter(|place| (place.axis == Axis::Rows) == rows) {
            let name = match place.holder {
                Holder::Parameter(index) => self.parameters[index].name.rsplit_once('.').map_or("", |(layer, _)| layer),
                Holder::Statistics(index) => &self.batch_norms[index].name,
            };
            if !names.iter().any(|known| known == name) {
                names.push(name.to_string());
            }
        }
        names
    }
}

/// What moves of a parameter: rows, then columns; each to a position from another one.
#[derive(Default)]
struct Bank {
    rows: Vec<[usize; 2]>,
    columns: Vec<[usize; 2]>,
    groups: usize,
}

impl Bank {
    fn apply(self, model: &mut Model, index: usize) {
        let parameter = &model.network.clone().parameters[index];
        let (shape, pitch) = (parameter.shape, parameter.pitch);
        let numbers = model.numbers_mut(parameter);
        let row_len = if shape.rank() == 1 { 1 } else { shape.row_len() };
        let old: Vec<f32> =
            self.rows.iter().flat_map(|[_, from]| &numbers[from * pitch..][..row_len]).copied().collect();
        for ([to, _], row) in self.rows.iter().zip(old.chunks(row_len)) {
            numbers[to * pitch..][..row_len].copy_from_slice(row);
        }
        if self.columns.is_empty() {
            return;
        }
        // Rows of a group are in their new place by now: what is left are columns within them.
        let (channels, rows_of_group) = (shape.channels(), shape.rows() / self.groups);
        let mut of_group: Vec<Vec<[usize; 2]>> = vec![Vec::new(); self.groups];
        for [to, from] in self.columns {
            of_group[to / channels].push([to % channels, from % channels]);
        }
        let mut old = Vec::new();
        for (row, numbers) in numbers.chunks_mut(pitch).enumerate() {
            let moves = &of_group[row / rows_of_group];
            for pixel in numbers[..row_len].chunks_mut(channels) {
                old.clear();
                old.extend(moves.iter().map(|[_, from]| pixel[*from]));
                moves.iter().zip(&old).for_each(|([to, _], &number)| pixel[*to] = number);
            }
        }
    }
}

fn move_statistics(model: &mut Model, index: usize, moves: &[[usize; 2]]) {
    let (mean, variance) = model.running(index);
    let [mean, variance] = [mean, variance].map(|old: Tensor| {
        let old = old.to_vec::<f32>();
        let mut new = old.clone();
        moves.iter().for_each(|[to, from]| new[*to] = old[*from]);
        new
    });
    model.set_running(index, &mean, &variance);
}

impl Permutation {
    /// Everything where it is.
    pub fn identity(units: &Units) -> Permutation {
        let of_group =
            |group: &UnitGroup| group.strands.iter().map(|strand| (0..strand.channels()).collect()).collect();
        Permutation { orders: units.groups.iter().map(of_group).collect() }
    }

    /// Draws an order; `draw(n)` gives an order of n things.
    pub fn drawn(units: &Units, mut draw: impl FnMut(usize) -> Vec<usize>) -> Permutation {
        let mut of_group = |group: &UnitGroup| {
            let outer = draw(group.units);
            let mut of_strand = |strand: &Strand| {
                let inner = |&unit: &usize| {
                    let order = draw(strand.pieces);
                    order.into_iter().map(move |piece| unit * strand.pieces + piece)
                };
                outer.iter().flat_map(inner).collect()
            };
            group.strands.iter().map(&mut of_strand).collect()
        };
        Permutation { orders: units.groups.iter().map(&mut of_group).collect() }
    }

    /// The order that undoes this one.
    pub fn inverse(&self) -> Permutation {
        let invert = |order: &Vec<usize>| {
            let mut inverse = vec![0; order.len()];
            order.iter().enumerate().for_each(|(new, &old)| inverse[old] = new);
            inverse
        };
        Permutation { orders: self.orders.iter().map(|group| group.iter().map(invert).collect()).collect() }
    }

    /// Whether it is an order of these units: every channel once, and those of a unit with it.
    pub fn fits(&self, units: &Units) -> bool {
        let of_strand = |strand: &Strand, order: &Vec<usize>| {
            let mut is_there = vec![false; strand.channels()];
            order.iter().for_each(|&old| is_there.get_mut(old).into_iter().for_each(|seen| *seen = true));
            order.len() == strand.channels() && is_there.iter().all(|&seen| seen)
        };
        // The unit that each one becomes; none where its channels scatter.
        let outer = |strand: &Strand, order: &Vec<usize>| -> Option<Vec<usize>> {
            let unit = |channels: &[usize]| {
                let first = channels[0] / strand.pieces;
                channels.iter().all(|channel| channel / strand.pieces == first).then_some(first)
            };
            order.chunks(strand.pieces).map(unit).collect()
        };
        let of_group = |(group, orders): (&UnitGroup, &Vec<Vec<usize>>)| {
            let mut strands = group.strands.iter().zip(orders);
            let first = outer(&group.strands[0], &orders[0]);
            first.is_some() && strands.all(|(strand, order)| of_strand(strand, order) && outer(strand, order) == first)
        };
        let is_alike = |(group, orders): (&UnitGroup, &Vec<Vec<usize>>)| group.strands.len() == orders.len();
        self.orders.len() == units.groups.len()
            && units.groups.iter().zip(&self.orders).all(is_alike)
            && units.groups.iter().zip(&self.orders).all(of_group)
    }

    /// How many channels are not where they were.
    pub fn moved(&self) -> usize {
        let of_strand = |order: &Vec<usize>| order.iter().enumerate().filter(|(new, old)| new != *old).count();
        self.orders.iter().flatten().map(of_strand).sum()
    }
}

impl Derivation<'_> {
    fn variable(&mut self) -> usize {
        self.parents.push(self.parents.len());
        self.parents.len() - 1
    }

    fn root(&self, mut variable: usize) -> usize {
        while self.parents[variable] != variable {
            variable = self.parents[variable];
        }
        variable
    }

    /// The smaller root stays one: what is fixed remains fixed.
    fn tie(&mut self, a: usize, b: usize) {
        let [a, b] = [a, b].map(|variable| self.root(variable));
        self.parents[a.max(b)] = a.min(b);
    }

    fn fix(&mut self, slot: Slot) {
        if let Slot::Variable(variable) = slot {
            self.tie(variable, FIXED);
        }
    }

    /// Those of the slots that move, move this too.
    fn follow(&mut self, slots: &[Slot], holder: Holder, axis: Axis) {
        for (position, slot) in slots.iter().enumerate() {
            if let Slot::Variable(variable) = *slot {
                self.members.push(Member { variable, holder, axis, position });
            }
        }
    }

    fn layer(&mut self, index: usize) {
        let network = self.network;
        let layer = &network.layers[index];
        let input = self.nodes[layer.inputs[0].0].clone();
        let output = match &layer.operation {
            Operation::Conv2d { conv, weight } => self.filters(*weight, *conv, &input),
            Operation::Linear { weight, bias } => {
                let output = self.filters(*weight, Conv2d::new(1, 0), &input);
                self.follow(&output, Holder::Parameter(*bias), Axis::Rows);
                output
            }
            Operation::BatchNorm { index } => {
                let norm = &network.batch_norms[*index];
                let holders = [Holder::Parameter(norm.gamma), Holder::Parameter(norm.beta), Holder::Statistics(*index)];
                self.per_channel(&input, &holders)
            }
            Operation::Bias { bias } => self.per_channel(&input, &[Holder::Parameter(*bias)]),
            Operation::Add => {
                let others: Vec<_> = layer.inputs[1..].iter().map(|node| self.nodes[node.0].clone()).collect();
                others.iter().fold(input, |sum, other| self.sum(&sum, other))
            }
            Operation::Concat => layer.inputs.iter().flat_map(|node| self.nodes[node.0].clone()).collect(),
            Operation::PadChannels([before, behind]) => {
                [vec![Slot::Zero; *before], input, vec![Slot::Zero; *behind]].concat()
            }
            Operation::Relu
            | Operation::MaxPool(_)
            | Operation::AveragePool(_)
            | Operation::AdaptiveAveragePool(_)
            | Operation::GlobalAveragePool
            | Operation::Dropout { .. } => input,
        };
        self.nodes.push(output);
    }

    /// A bank of filters over `input`; the slots of what it makes.
    fn filters(&mut self, weight: usize, conv: Conv2d, input: &[Slot]) -> Vec<Slot> {
        let shape = self.network.parameters[weight].shape;
        let (rows, columns, groups) = (shape.rows(), shape.channels(), conv.groups);
        let made: Vec<usize> = (0..rows).map(|_| self.variable()).collect();
        let output: Vec<Slot> = made.iter().map(|&variable| Slot::Variable(variable)).collect();
        let holder = Holder::Parameter(weight);
        self.follow(&output, holder, Axis::Rows);
        let per_group = rows / groups;
        match (groups, columns) {
            (1, _) => self.follow(input, holder, Axis::Columns { groups }),
            // Each filter reads one channel: it goes where that goes.
            (_, 1) => {
                for (slot, made) in input.iter().zip(made.chunks(per_group)) {
                    let read = if let Slot::Variable(read) = *slot { read } else { FIXED };
                    made.iter().for_each(|&made| self.tie(read, made));
                }
            }
            _ => {
                self.follow(input, holder, Axis::Columns { groups });
                let of = |slot: &Slot| if let Slot::Variable(variable) = *slot { variable } else { FIXED };
                let read: Vec<usize> = input.iter().map(of).collect();
                let blocks = read.chunks(columns).zip(made.chunks(per_group));
                self.grouped.push(blocks.map(|(read, made)| [read.to_vec(), made.to_vec()]).collect());
            }
        }
        output
    }

    /// Numbers for each channel, which then is zero no longer.
    fn per_channel(&mut self, input: &[Slot], holders: &[Holder]) -> Vec<Slot> {
        holders.iter().for_each(|&holder| self.follow(input, holder, Axis::Rows));
        input.iter().map(|&slot| if slot == Slot::Zero { Slot::Fixed } else { slot }).collect()
    }

    fn sum(&mut self, a: &[Slot], b: &[Slot]) -> Vec<Slot> {
        let mut add = |(&a, &b): (&Slot, &Slot)| match (a, b) {
            (Slot::Zero, other) | (other, Slot::Zero) => other,
            (Slot::Variable(a), Slot::Variable(b)) => {
                self.tie(a, b);
                Slot::Variable(a)
            }
            (one, other) => {
                self.fix(one);
                self.fix(other);
                Slot::Fixed
            }
        };
        a.iter().zip(b).map(&mut add).collect()
    }

    /// Groups of convolutions change places as wholes only if they are whole: of channels that move, each once, that lie in the same
    /// places, and that no other convolution groups otherwise. What is not so stays where it is.
    fn freeze_crossing_blocks(&mut self) {
        loop {
            let classes = self.classes();
            let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let mut frozen: Vec<usize> = Vec::new();
            for blocks in &self.grouped {
                let all: Vec<Vec<usize>> =
                    blocks.iter().flatten().map(|block| block.iter().map(|&v| self.root(v)).collect()).collect();
                let distinct: BTreeSet<usize> = all.iter().flatten().copied().collect();
                let whole = distinct.len() == all.iter().map(Vec::len).sum::<usize>() && !distinct.contains(&FIXED);
                let crosses = all
                    .iter()
                    .any(|block| block.iter().any(|class| sets.get(class).is_some_and(|other| other != block)));
                let signature = |class: &usize| classes.get(class).map(|members| signature(members));
                let differ = all.iter().any(|block| block.iter().any(|class| signature(class) != signature(&block[0])));
                if !whole || crosses || differ {
                    frozen.extend(distinct.into_iter().filter(|&class| class != FIXED));
                }
                for block in all {
                    for &class in &block {
                        sets.entry(class).or_insert_with(|| block.clone());
                    }
                }
            }
            if frozen.is_empty() {
                break;
            }
            frozen.into_iter().for_each(|class| self.tie(class, FIXED));
        }
        let grouped = std::mem::take(&mut self.grouped);
        let is_free = |blocks: &Blocks| !blocks.iter().flatten().flatten().any(|&v| self.root(v) == FIXED);
        self.grouped = grouped.into_iter().filter(is_free).collect();
    }

    /// What moves with each class of variables, in the order of layers.
    fn classes(&self) -> BTreeMap<usize, Vec<&Member>> {
        let mut classes: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
        for member in &self.members {
            let class = self.root(member.variable);
            if class != FIXED {
                classes.entry(class).or_default().push(member);
            }
        }
        classes
    }

    /// Puts classes of variables together whose members lie in the same places.
    fn finish(self) -> Units {
        let classes = self.classes();
        let units = self.wholes(&classes);
        let of_slot = |slot: &Slot| if let Slot::Variable(variable) = *slot { self.root(variable) } else { FIXED };
        let nodes: Vec<Vec<usize>> = self.nodes.iter().map(|slots| slots.iter().map(of_slot).collect()).collect();
        // Wholes of which each strand lies wherever that of the others lies.
        let mut groups: Vec<(Kind, Vec<Unit>)> = Vec::new();
        for unit in units {
            let of_strand = |strand: &Vec<usize>| (strand.len(), signature(&classes[&strand[0]]));
            let of_unit: Kind = unit.iter().map(of_strand).collect();
            match groups.iter_mut().find(|(of_group, _)| *of_group == of_unit) {
                Some((_, units)) => units.push(unit),
                None => groups.push((of_unit, vec![unit])),
            }
        }
        Units { groups: groups.into_iter().map(|(_, units)| self.group(&units, &classes, &nodes)).collect() }
    }

    /// Each unit's strands, and the classes of each: one of one, or the blocks that convolutions in groups tie together.
    fn wholes(&self, classes: &BTreeMap<usize, Vec<&Member>>) -> Vec<Unit> {
        // Which blocks convolutions tie together; each block is known by its first class.
        let mut ties: BTreeMap<usize, usize> = BTreeMap::new();
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        let root = |ties: &BTreeMap<usize, usize>, mut block: usize| {
            while ties[&block] != block {
                block = ties[&block];
            }
            block
        };
        for pair in self.grouped.iter().flatten() {
            let pair = pair.each_ref().map(|side| side.iter().map(|&v| self.root(v)).collect::<Vec<_>>());
            for side in &pair {
                if let Entry::Vacant(new) = ties.entry(side[0]) {
                    new.insert(side[0]);
                    blocks.push(side.clone());
                }
            }
            let [read, made] = pair.map(|side| root(&ties, side[0]));
            ties.insert(read.max(made), read.min(made));
        }
        let mut wholes: BTreeMap<usize, Unit> = BTreeMap::new();
        let mut of_class: BTreeMap<usize, usize> = BTreeMap::new();
        for block in blocks {
            let whole = root(&ties, block[0]);
            of_class.extend(block.iter().map(|&class| (class, whole)));
            wholes.entry(whole).or_default().push(block);
        }
        let mut units: Vec<Unit> = Vec::new();
        let mut taken = BTreeSet::new();
        for &class in classes.keys() {
            match of_class.get(&class) {
                None => units.push(vec![vec![class]]),
                Some(&whole) if taken.insert(whole) => units.push(wholes[&whole].clone()),
                Some(_) => {}
            }
        }
        units
    }

    /// Units, of which each has its strands, and each strand its classes.
    fn group(&self, units: &[Unit], classes: &BTreeMap<usize, Vec<&Member>>, nodes: &[Vec<usize>]) -> UnitGroup {
        let strands: Vec<Strand> = (0..units[0].len())
            .map(|strand| {
                let channels: Vec<usize> = units.iter().flat_map(|unit| unit[strand].iter().copied()).collect();
                let first = &classes[&channels[0]];
                let place = |at: usize| Place {
                    holder: first[at].holder,
                    axis: first[at].axis,
                    positions: channels.iter().map(|class| classes[class][at].position).collect(),
                };
                let places = (0..first.len()).map(place).collect();
                Strand { pieces: units[0][strand].len(), places, seen: self.seen(&channels, nodes) }
            })
            .collect();
        let Holder::Parameter(first) = strands[0].places[0].holder else { unreachable!("filters come first") };
        let name = self.network.parameters[first].name.trim_end_matches(".weight").to_string();
        UnitGroup { name, units: units.len(), strands }
    }

    /// The node in which all classes can be seen best, and where in it. `nodes` are classes, channel by channel.
    fn seen(&self, channels: &[usize], nodes: &[Vec<usize>]) -> Option<(Node, Vec<usize>)> {
        let shows = |operation: &Operation| {
            use Operation::{Add, BatchNorm, Bias, Conv2d, Linear, Relu};
            matches!(operation, Conv2d { .. } | BatchNorm { .. } | Bias { .. } | Relu | Add | Linear { .. })
        };
        let may = |index: &usize| {
            let operation = &self.network.layers[index - 1].operation;
            shows(operation) && channels.iter().all(|class| nodes[*index].contains(class))
        };
        let fewest = |index: &usize| (nodes[*index].len(), std::cmp::Reverse(*index));
        let holding = (1..nodes.len()).filter(|&index| nodes[index].contains(&channels[0]));
        let best = holding.filter(may).min_by_key(fewest)?;
        let mut at = BTreeMap::new();
        for (position, class) in nodes[best].iter().enumerate() {
            at.entry(*class).or_insert(position);
        }
        Some((Node(best), channels.iter().map(|class| at[class]).collect()))
    }
}

/// The classes of each strand.
type Unit = Vec<Vec<usize>>;

/// How many classes each strand has, and where they lie.
type Kind = Vec<(usize, Signature)>;

/// Where all members of a class lie.
type Signature = Vec<(Holder, Axis)>;

fn signature(members: &[&Member]) -> Signature {
    members.iter().map(|member| (member.holder, member.axis)).collect()
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::{Architecture, NetworkBuilder, Role};
    use crate::ops::pool::Pool;

    fn conv(window: usize, stride: usize, groups: usize) -> Conv2d {
        Conv2d { groups, ..Conv2d::new(stride, window / 2) }
    }

    /// Names, units, and pieces of each strand.
    fn shape(units: &Units) -> Vec<(&str, usize, Vec<usize>)> {
        let pieces = |group: &UnitGroup| group.strands.iter().map(|strand| strand.pieces).collect();
        units.groups.iter().map(|group| (group.name.as_str(), group.units, pieces(group))).collect()
    }

    fn holders(network: &Network, strand: &Strand) -> Vec<String> {
        let name = |place: &Place| match (place.holder, place.axis) {
            (Holder::Parameter(index), Axis::Rows) => network.parameters[index].name.clone(),
            (Holder::Parameter(index), _) => format!("columns of {}", network.parameters[index].name),
            (Holder::Statistics(index), _) => format!("statistics of {}", network.batch_norms[index].name),
        };
        strand.places.iter().map(name).collect()
    }

    #[test]
    fn a_residual_stream_is_one_group() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 3);
        let units = Units::of(&network);
        let expected = [
            ("conv1", 4),
            ("layer1.0.conv1", 4),
            ("layer2.0.conv1", 8),
            ("layer2.0.conv2", 8),
            ("layer3.0.conv1", 16),
            ("layer3.0.conv2", 16),
        ];
        assert_eq!(shape(&units), expected.map(|(name, count)| (name, count, vec![1])));
        let stream = holders(&network, &units.groups[3].strands[0]);
        for held in [
            "layer2.0.conv2.weight",
            "layer2.0.downsample.0.weight",
            "layer2.0.downsample.1.bias",
            "statistics of layer2.0.bn2",
            "columns of layer3.0.conv1.weight",
            "columns of layer3.0.downsample.0.weight",
        ] {
            assert!(stream.iter().any(|name| name == held), "{held} in {stream:?}");
        }
        assert_eq!(stream.len(), 10);
        let last = holders(&network, &units.groups[5].strands[0]);
        assert_eq!(last.last().unwrap(), "columns of fc.weight");
    }

    /// What shortcuts without parameters add zeros to is tied to nothing.
    #[test]
    fn zeros_beside_a_stream_tie_nothing() {
        let network = Architecture::named("resnet20-option-a", None, Some(4)).unwrap().build(1, 3);
        let of_streams: Vec<(&str, usize)> = Units::of(&network)
            .groups
            .iter()
            .filter(|group| !group.name.ends_with("conv1") || group.name == "conv1")
            .map(|group| (group.name.clone(), group.units))
            .map(|(name, units)| (&*name.leak(), units))
            .collect();
        assert_eq!(of_streams, [("conv1", 4), ("layer2.0.conv2", 4), ("layer3.0.conv2", 8)]);
    }

    #[test]
    fn groups_of_a_convolution_move_as_wholes() {
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d("a", b.input(), 12, 1, conv(1, 1, 1));
        let x = b.conv2d("grouped", x, 6, 3, conv(3, 1, 3));
        let x = b.conv2d("depthwise", x, 12, 3, conv(3, 1, 6));
        let x = b.conv2d("last", x, 5, 1, conv(1, 1, 1));
        let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
        b.linear("head", x, 3);
        let network = b.finish();
        let units = Units::of(&network);
        assert_eq!(shape(&units), [("a", 3, vec![4, 2]), ("last", 5, vec![1])]);
        // Two filters of the depthwise convolution move with each channel that it reads.
        let made = holders(&network, &units.groups[0].strands[1]);
        let expected = [
            "grouped.weight",
            "depthwise.weight",
            "depthwise.weight",
            "columns of last.weight",
            "columns of last.weight",
        ];
        assert_eq!(made, expected);
    }

    /// Groups of 2 and of 3 over the same six channels: neither is whole.
    #[test]
    fn groups_that_cross_stay_where_they_are() {
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d("a", b.input(), 12, 1, conv(1, 1, 1));
        let y = b.conv2d("two", x, 12, 1, conv(1, 1, 2));
        let z = b.conv2d("three", x, 12, 1, conv(1, 1, 3));
        let x = b.plain("concat", Operation::Concat, &[y, z]);
        b.conv2d("free", x, 4, 1, conv(1, 1, 1));
        let x = b.conv2d("last", x, 4, 1, conv(1, 1, 1));
        let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
        b.linear("head", x, 3);
        let names: Vec<_> = Units::of(&b.finish()).groups.into_iter().map(|group| group.name).collect();
        assert_eq!(names, ["free", "last"]);
    }

    /// Integers so small that no sum rounds: filters with a single ±1, or two, and norms that divide by 1.
    fn fill_with_integers(model: &mut Model, entries: usize, rng: &mut ChaCha8Rng) {
        let network = model.network.clone();
        for parameter in &network.parameters {
            let mut values = vec![0f32; parameter.shape.len()];
            match parameter.role {
                Role::Filters => {
                    for row in values.chunks_mut(parameter.shape.row_len()) {
                        for _ in 0..entries {
                            let at = rng.random_range(0..row.len());
                            row[at] = if rng.random() { 1.0 } else { -1.0 };
                        }
                    }
                }
                Role::Scale => values.iter_mut().for_each(|v| *v = if rng.random_range(0..4) > 0 { 1.0 } else { -1.0 }),
                _ => values.iter_mut().for_each(|v| *v = rng.random_range(-1..=2) as f32),
            }
            model.set_parameter(parameter, &values);
        }
        for index in 0..network.batch_norms.len() {
            let channels = network.batch_norms[index].channels;
            let mean: Vec<f32> = (0..channels).map(|_| rng.random_range(-1..=1) as f32).collect();
            model.set_running(index, &mean, &vec![1.0 - 1e-5; channels]);
        }
    }

    fn fill_with_fractions(model: &mut Model, rng: &mut ChaCha8Rng) {
        let network = model.network.clone();
        for parameter in network.parameters.iter().filter(|parameter| parameter.role != Role::Filters) {
            let values: Vec<f32> = (0..parameter.shape.len()).map(|_| rng.random_range(0.5..1.5)).collect();
            model.set_parameter(parameter, &values);
        }
        for index in 0..network.batch_norms.len() {
            let mut draw = |low: f32, high: f32| -> Vec<f32> {
                (0..network.batch_norms[index].channels).map(|_| rng.random_range(low..high)).collect()
            };
            let (mean, variance) = (draw(-0.1, 0.1), draw(0.5, 2.0));
            model.set_running(index, &mean, &variance);
        }
    }

    fn draw(rng: &mut ChaCha8Rng) -> impl FnMut(usize) -> Vec<usize> + '_ {
        |count| {
            let mut order: Vec<usize> = (0..count).collect();
            order.shuffle(rng);
            order
        }
    }

    /// The logits of a network, and of the same one with its channels in a drawn order.
    fn logits(network: &std::sync::Arc<Network>, pixels: usize, is_exact: bool, seed: u64) -> [Vec<f32>; 2] {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut model = Model::initialized(network.clone(), seed);
        match is_exact {
            true => fill_with_integers(&mut model, 1, &mut rng),
            false => fill_with_fractions(&mut model, &mut rng),
        }
        let units = Units::of(network);
        let permutation = Permutation::drawn(&units, draw(&mut rng));
        assert!(permutation.moved() > units.count() / 3);
        let permuted = units.permuted(&model, &permutation);
        let shape = [2, pixels, pixels, network.input_channels];
        let images: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(0..4) as f32).collect();
        let back = units.permuted(&permuted, &permutation.inverse());
        for parameter in &network.parameters {
            let [old, new] = [&model, &back].map(|model| model.parameter(parameter).to_vec::<f32>());
            assert!(old == new, "{} is not as it was, of {:?}", parameter.name, units);
        }
        assert!(back.statistics.to_vec::<f32>() == model.statistics.to_vec::<f32>());
        assert_ne!(permuted.trunk.to_vec::<f32>(), model.trunk.to_vec::<f32>());
        [&model, &permuted].map(|model| model.logits(Tensor::from_vec(images.clone(), shape)).to_vec())
    }

    /// Every architecture computes the same with its channels in another order: to the bit where nothing rounds.
    #[test]
    fn a_permuted_network_computes_the_same_function() {
        for name in Architecture::names() {
            // Groups of two filters each, and of one where that is narrow enough.
            let width = if name.starts_with("resnext50") {
                32
            } else if name.starts_with("resnext") {
                16
            } else {
                8
            };
            let network = Architecture::named(name, None, Some(width)).unwrap().build(3, 5);
            let [before, after] = logits(&network, 32, true, 1);
            let (least, most) = (before.iter().copied().reduce(f32::min), before.iter().copied().reduce(f32::max));
            assert!(least < most, "{name} says the same of every class: {before:?}");
            assert_eq!(before, after, "{name}");
        }
        for name in ["resnet20", "resnet20-option-a", "resnet50", "resnext50_32x4d", "densenet121", "vgg16", "vgg11_bn"]
        {
            let network = Architecture::named(name, None, Some(16)).unwrap().build(3, 5);
            let [before, after] = logits(&network, 32, false, 2);
            let scale = before.iter().fold(0f32, |most, x| most.max(x.abs()));
            let close = before.iter().zip(&after).all(|(x, y)| (x - y).abs() <= 1e-3 * scale);
            assert!(close && scale > 0.0, "{name}: {before:?} {after:?}");
        }
    }

    /// Graphs that no family has: sums of concatenations, a part read twice, convolutions in groups behind each other.
    #[test]
    fn drawn_graphs_compute_the_same_function() {
        for seed in 0..400 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut b = NetworkBuilder::new(3);
            let mut nodes = vec![b.conv2d("stem", Node::INPUT, 12, 3, conv(3, 1, 1))];
            for index in 0..rng.random_range(4..12) {
                let x = nodes[rng.random_range(0..nodes.len())];
                let channels = b.channels(x);
                let name = format!("layer{index}");
                let alike: Vec<Node> = nodes.iter().copied().filter(|&node| b.channels(node) == channels).collect();
                let other = alike[rng.random_range(0..alike.len())];
                let any = nodes[rng.random_range(0..nodes.len())];
                let node = match rng.random_range(0..9) {
                    0 => b.plain(&name, Operation::Add, &[x, other]),
                    1 => b.plain(&name, Operation::Concat, &[x, any]),
                    2 => b.batch_norm(&name, x),
                    3 => b.plain(&name, Operation::Relu, &[x]),
                    4 => b.conv2d(&name, x, channels, 3, conv(3, 1, channels)),
                    5 => b.conv2d(&name, x, 12, 3, conv(3, 1, if channels.is_multiple_of(3) { 3 } else { 1 })),
                    6 => b.plain(&name, Operation::PadChannels([1, 2]), &[x]),
                    7 => {
                        b.conv2d_with_bias(&name, x, 24, 1, conv(1, 1, if channels.is_multiple_of(2) { 2 } else { 1 }))
                    }
                    _ => b.conv2d(&name, x, 12, 3, conv(3, 1, 1)),
                };
                nodes.push(node);
            }
            let all = b.plain("all", Operation::Concat, &nodes);
            let x = b.conv2d("last", all, 9, 1, conv(1, 1, 1));
            let x = b.plain("max", Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
            let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
            b.linear("head", x, 4);
            let network = b.finish();
            let [before, after] = logits(&network, 8, true, seed);
            assert_eq!(before, after, "seed {seed}: {:?}", network.layers);
        }
    }

    #[test]
    fn an_order_that_tears_units_apart_is_none() {
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d("a", b.input(), 4, 1, conv(1, 1, 1));
        let x = b.conv2d("grouped", x, 4, 1, conv(1, 1, 2));
        let x = b.conv2d("last", x, 2, 1, conv(1, 1, 1));
        b.plain("pool", Operation::GlobalAveragePool, &[x]);
        let units = Units::of(&b.finish());
        assert_eq!(shape(&units), [("a", 2, vec![2, 2])]);
        let fits = |orders: &[&[usize]]| {
            Permutation { orders: vec![orders.iter().map(|order| order.to_vec()).collect()] }.fits(&units)
        };
        assert!(fits(&[&[0, 1, 2, 3], &[1, 0, 2, 3]]) && fits(&[&[3, 2, 0, 1], &[2, 3, 0, 1]]));
        for wrong in [
            &[&[0, 2, 1, 3][..], &[0, 1, 2, 3]][..],
            &[&[2, 3, 0, 1], &[0, 1, 2, 3]],
            &[&[0, 1, 2, 2], &[0, 1, 2, 3]],
            &[&[0, 1, 2, 4], &[0, 1, 2, 3]],
            &[&[0, 1, 2], &[0, 1, 2, 3]],
            &[&[0, 1, 2, 3]],
            &[],
        ] {
            assert!(!fits(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn every_group_can_be_seen() {
        for (name, node) in [("resnet50", "layer1.2.relu"), ("densenet121", "features.denseblock1.denselayer1.relu1")] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 5);
            let units = Units::of(&network);
            let name_of = |node: Node| network.layers[node.layer().unwrap()].name.as_str();
            let first: Vec<_> = units.groups[0].strands[0].seen.iter().map(|(node, _)| name_of(*node)).collect();
            let all = units.groups.iter().flat_map(|group| &group.strands).all(|strand| strand.seen.is_some());
            assert!(all);
            if name == "densenet121" {
                assert_eq!(first, [node]);
            }
        }
        let network = Architecture::named("resnet50", None, None).unwrap().build(3, 5);
        let units = Units::of(&network);
        let stream = units.groups.iter().find(|group| group.units == 256).unwrap();
        let (seen, positions) = stream.strands[0].seen.clone().unwrap();
        assert_eq!(network.layers[seen.layer().unwrap()].name, "layer1.2.relu");
        assert_eq!(positions, (0..256).collect::<Vec<_>>());
    }
}
