//! How units follow from the graph: every filter is a variable, layers hand variables on or tie them, and classes of tied
//! variables whose members lie in the same places are a group.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{Axis, Holder, Place, Strand, UnitGroup, Units};
use crate::nn::graph::{Network, Node, Operation};
use crate::ops::conv2d::Conv2d;

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

/// The units of a network.
pub(super) fn derive(network: &Network) -> Units {
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
