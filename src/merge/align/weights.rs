//! Matching by weights: the permutation π that makes ⟨A, π(B)⟩, the inner product over all parameters of the trunk, as large as it
//! can be found (weight matching of Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2023, §3.2).
//!
//! The order of one group, with those of all others held, is an assignment: the similarity of two units is the inner product of
//! their rows and columns. So groups take turns until none gains. Where that ends depends on where it begins, and most rows have
//! no meaning before the columns are in order: a first pass goes from the images to the classes, and goes by what is in order
//! already. It finds the permutation of a network's own permuted copy.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rayon::prelude::*;

use super::assignment::total;
use super::matching::{Similarities, partners};
use crate::error::{Error, Result};
use crate::nn::{Axis, Holder, Model, Network, Parameter, Permutation, Region, UnitGroup, UnitPlace, Units};
use crate::numbers::dot;
use crate::ops::gemm::{Matrix, gemm};

/// Rows of similarities that one thread makes at a time.
const BLOCK: usize = 256;
/// Turns of all groups after which it is enough: some tens are usual.
const MOST_TURNS: usize = 100;

struct Matching<'a> {
    units: &'a Units,
    anchor: &'a Model,
    /// The other network, in the order found so far.
    other: Model,
    permutation: Permutation,
}

/// The order in which the units of `other` are most like those of `anchor`.
///
/// # Errors
/// If weights are so large that their products are not finite.
pub fn by_weights(units: &Units, anchor: &Model, other: &Model) -> Result<Permutation> {
    let permutation = Permutation::identity(units);
    let mut matching = Matching { units, anchor, other: other.copy(), permutation };
    matching.match_forwards()?;
    matching.in_turns()?;
    Ok(matching.permutation)
}

impl Matching<'_> {
    fn match_forwards(&mut self) -> Result<()> {
        let (units, mut done) = (self.units, BTreeSet::new());
        for index in 0..units.groups.len() {
            self.turn(index, &|place| is_in_order(units, place, &done))?;
            done.insert(index);
            // What the groups of a convolution make depends on the order of what they read.
            if units.groups[index].strands.len() > 1 {
                self.turn(index, &|place| is_in_order(units, place, &done))?;
            }
        }
        Ok(())
    }

    fn in_turns(&mut self) -> Result<()> {
        let count = self.units.groups.len();
        let holders: Vec<BTreeSet<Holder>> =
            self.units.groups.iter().map(|group| places(group).map(|place| place.holder).collect()).collect();
        let mut open: BTreeSet<usize> = (0..count).collect();
        for _ in 0..MOST_TURNS {
            for index in 0..count {
                if open.remove(&index) && self.turn(index, &|_| true)? {
                    open.extend((0..count).filter(|&other| !holders[other].is_disjoint(&holders[index])));
                }
            }
            if open.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Brings one group into the order that those places ask for which count; whether that was another order, and a better one.
    fn turn(&mut self, index: usize, counts: &dyn Fn(&UnitPlace) -> bool) -> Result<bool> {
        let group = &self.units.groups[index];
        let similarities = self.similarities(group, counts)?;
        let orders = partners(group, &similarities);
        if orders.iter().all(|order| order.iter().enumerate().all(|(new, &old)| new == old)) {
            return Ok(false);
        }
        // Equal up to rounding is no gain: two such orders would take turns for ever.
        let is_gain = |before: f64, after: f64| after > before + 1e-9 * before.abs();
        if is_an_assignment(group) {
            let stay: Vec<usize> = (0..group.units).collect();
            let [before, after] = [&stay, &orders[0]].map(|order| total(&similarities[0], group.units, order));
            let gains = is_gain(before, after);
            if gains {
                self.reorder(index, &orders);
            }
            return Ok(gains);
        }
        let before = self.product(group, counts);
        self.reorder(index, &orders);
        if is_gain(before, self.product(group, counts)) {
            return Ok(true);
        }
        let back = Permutation { orders: vec![orders] }.inverse().orders.remove(0);
        self.reorder(index, &back);
        Ok(false)
    }

    fn reorder(&mut self, index: usize, orders: &[Vec<usize>]) {
        self.units.permute(&mut self.other, std::iter::once((index, orders)));
        for (so_far, order) in self.permutation.orders[index].iter_mut().zip(orders) {
            *so_far = order.iter().map(|&channel| so_far[channel]).collect();
        }
    }

    fn similarities(&self, group: &UnitGroup, counts: &dyn Fn(&UnitPlace) -> bool) -> Result<Similarities> {
        let of_strand = |places: &[UnitPlace], channels: usize| {
            let mut sum = vec![0f32; channels * channels];
            for place in places.iter().filter(|place| counts(place)) {
                let [a, b] = [self.anchor, &self.other].map(|model| Owned::of(model, place));
                if let (Some(a), Some(b)) = (a, b) {
                    a.add_products(&b, channels, &mut sum);
                }
            }
            match sum.iter().all(|value| value.is_finite()) {
                true => Ok(sum),
                false => Err(Error::NotFinite {
                    message: format!("the units of {} have weights whose products f32 cannot hold", group.name),
                    hint: "align networks by their activations".into(),
                }),
            }
        };
        group.strands.iter().map(|strand| of_strand(&strand.places, strand.channels())).collect()
    }

    /// ⟨A, π(B)⟩ over what a group has a part in.
    fn product(&self, group: &UnitGroup, counts: &dyn Fn(&UnitPlace) -> bool) -> f64 {
        let holders: BTreeSet<Holder> = places(group).filter(|place| counts(place)).map(|place| place.holder).collect();
        let of_holder = |holder: &Holder| {
            let parameter = parameter_of(&self.anchor.network, *holder)?;
            let [a, b] = [self.anchor, &self.other].map(|model| model.parameter(parameter).to_vec::<f32>());
            Some(dot(&a, &b))
        };
        holders.iter().filter_map(of_holder).sum()
    }
}

/// Whether the other axis of what a place holds is of groups that are done, or does not move.
fn is_in_order(units: &Units, place: &UnitPlace, done: &BTreeSet<usize>) -> bool {
    let crosses =
        |other: &UnitPlace| other.holder == place.holder && (other.axis == Axis::Rows) != (place.axis == Axis::Rows);
    let mut groups = units.groups.iter().enumerate();
    groups.all(|(index, group)| done.contains(&index) || !places(group).any(crosses))
}

/// Whether the product is the sum of the similarities of a group's partners. It is not where a parameter has its units on both
/// axes, as what is read and made in the groups of a convolution.
fn is_an_assignment(group: &UnitGroup) -> bool {
    let rows: BTreeSet<Holder> = places(group).filter(|p| p.axis == Axis::Rows).map(|p| p.holder).collect();
    let crosses = places(group).any(|place| place.axis != Axis::Rows && rows.contains(&place.holder));
    group.strands.len() == 1 && group.strands[0].pieces == 1 && !crosses
}

fn places(group: &UnitGroup) -> impl Iterator<Item = &UnitPlace> {
    group.strands.iter().flat_map(|strand| &strand.places)
}

/// What counts of a network: parameters of the trunk. Classifiers tell different classes apart, and statistics are no weights.
fn parameter_of(network: &Network, holder: Holder) -> Option<&Parameter> {
    match holder {
        Holder::Parameter(index) => Some(&network.parameters[index]).filter(|p| p.region == Region::Trunk),
        Holder::Statistics(_) => None,
    }
}

/// What each channel of a place owns there: a row for each.
struct Owned<'a> {
    numbers: Cow<'a, [f32]>,
    /// How many numbers a channel owns.
    len: usize,
    /// From row to row of the matrix in memory: of a channel each, or of what all channels own of one pixel of a filter.
    stride: usize,
    by_channel: bool,
}

impl Owned<'_> {
    fn of<'a>(model: &'a Model, place: &UnitPlace) -> Option<Owned<'a>> {
        let UnitPlace { holder, axis, positions } = place;
        let parameter = parameter_of(&model.network, *holder)?;
        let (numbers, pitch) = (model.numbers(parameter), parameter.pitch);
        let row_len = if parameter.shape.rank() == 1 { 1 } else { parameter.shape.row_len() };
        let are_all = |count: usize| positions.len() == count && positions.iter().enumerate().all(|(i, &p)| i == p);
        match axis {
            Axis::Rows if are_all(numbers.len() / pitch) => {
                Some(Owned { numbers: numbers.into(), len: row_len, stride: pitch, by_channel: true })
            }
            Axis::Rows => {
                let rows = positions.iter().flat_map(|position| &numbers[position * pitch..][..row_len]);
                Some(Owned { numbers: rows.copied().collect(), len: row_len, stride: row_len, by_channel: true })
            }
            Axis::Columns { groups: 1 } if pitch == row_len && are_all(parameter.shape.channels()) => {
                let channels = parameter.shape.channels();
                let len = numbers.len() / channels;
                Some(Owned { numbers: numbers.into(), len, stride: channels, by_channel: false })
            }
            Axis::Columns { groups } => {
                let (rows, channels) = (parameter.shape.rows() / groups, parameter.shape.channels());
                let of = |&position: &usize| {
                    let (group, column) = (position / channels, position % channels);
                    let rows = numbers[group * rows * pitch..].chunks(pitch).take(rows);
                    rows.flat_map(move |row| row[..row_len].iter().skip(column).step_by(channels)).copied()
                };
                let len = rows * row_len / channels;
                Some(Owned { numbers: positions.iter().flat_map(of).collect(), len, stride: len, by_channel: true })
            }
        }
    }

    /// The rows of `count` channels.
    fn matrix(&self, first: usize, count: usize) -> Matrix<'_> {
        match self.by_channel {
            true => Matrix::new(&self.numbers[first * self.stride..], count, self.len, self.stride),
            false => Matrix::new(&self.numbers[first..], self.len, count, self.stride).transposed(),
        }
    }

    /// Adds the inner products of these rows with those of another network: `count` × `count`.
    fn add_products(&self, other: &Owned, count: usize, sum: &mut [f32]) {
        sum.par_chunks_mut(BLOCK * count).enumerate().for_each(|(block, sum)| {
            let rows = sum.len() / count;
            let a = self.matrix(block * BLOCK, rows);
            gemm(a, other.matrix(0, count).transposed(), sum, count, true);
        });
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::Architecture;

    fn drawn(units: &Units, seed: u64) -> Permutation {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Permutation::drawn(units, |count| {
            let mut order: Vec<usize> = (0..count).collect();
            order.shuffle(&mut rng);
            order
        })
    }

    /// Every architecture finds its own permuted copy, exactly.
    #[test]
    fn a_permuted_copy_is_found() {
        for name in Architecture::names() {
            let width = if name.starts_with("resnext50") {
                32
            } else if name.starts_with("resnext") {
                16
            } else {
                8
            };
            let network = Architecture::named(name, None, Some(width)).unwrap().build(3, 5);
            let (model, units) = (Model::initialized(network.clone(), 1), Units::of(&network));
            let drawn = drawn(&units, 2);
            let permuted = units.permuted(&model, &drawn);
            let found = by_weights(&units, &model, &permuted).unwrap();
            assert!(found == drawn.inverse(), "{name}: {} of {} channels", found.moved(), drawn.moved());
            let back = units.permuted(&permuted, &found);
            assert!(back.trunk.to_vec::<f32>() == model.trunk.to_vec::<f32>(), "{name}");
        }
    }

    /// Networks of two origins: the product grows, and no single group could make it larger.
    #[test]
    fn matching_ends_where_no_group_gains() {
        let cases =
            [("resnet20", 8), ("resnet20-option-a", 8), ("resnext50_32x4d", 32), ("densenet121", 8), ("vgg11", 4)];
        for (name, width) in cases {
            let network = Architecture::named(name, None, Some(width)).unwrap().build(3, 5);
            let [a, b] = [1, 2].map(|seed| Model::initialized(network.clone(), seed));
            let units = Units::of(&network);
            let product = |other: &Model| -> f64 {
                let [a, b] = [&a, other].map(|model| model.trunk.to_f64());
                a.iter().zip(&b).map(|(a, b)| a * b).sum()
            };
            let found = by_weights(&units, &a, &b).unwrap();
            let aligned = units.permuted(&b, &found);
            let chance = (0..5).map(|seed| product(&units.permuted(&b, &drawn(&units, seed)))).fold(f64::MIN, f64::max);
            assert!(product(&aligned) > chance.max(product(&b)), "{name}");
            let mut again = Matching { units: &units, anchor: &a, other: aligned, permutation: found };
            let gains: Vec<bool> = (0..units.groups.len()).map(|index| again.turn(index, &|_| true).unwrap()).collect();
            assert!(!gains.contains(&true), "{name}");
        }
    }

    #[test]
    fn weights_whose_products_overflow_are_refused() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let mut model = Model::initialized(network.clone(), 1);
        let filters = network.parameter("layer1.0.conv1.weight").unwrap();
        model.set_parameter(filters, &vec![1e30f32; filters.shape.len()]);
        let error = by_weights(&Units::of(&network), &model, &model).unwrap_err().to_string();
        assert!(error.contains("conv1") && error.contains("f32 cannot hold"), "{error}");
    }
}
