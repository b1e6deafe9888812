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

mod derivation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::graph::{Network, Node};
use super::model::Model;
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

impl Units {
    pub fn of(network: &Network) -> Units {
        derivation::derive(network)
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
