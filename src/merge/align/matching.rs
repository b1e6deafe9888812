//! The partners of a group's units, by the similarities of their channels.
//!
//! Units of one channel are assigned outright. Those of several, the groups of a convolution, are as alike as their channels are
//! when those are assigned within them: an assignment of assignments.

use super::assignment::{assign, total};
use crate::nn::{Permutation, UnitGroup, Units};

/// The similarities of the channels of each strand of a group, strand by strand: channels × channels, of the anchor's to the
/// other's.
pub type Similarities = Vec<Vec<f32>>;

/// The order of the other's channels, strand by strand, in which they stand for the anchor's.
pub fn partners(group: &UnitGroup, similarities: &[Vec<f32>]) -> Vec<Vec<usize>> {
    let pieces = |strand: usize| group.strands[strand].pieces;
    let of_units = match group.strands.as_slice() {
        [strand] if strand.pieces == 1 => similarities[0].clone(),
        _ => {
            let pairs = (0..group.units * group.units).map(|pair| (pair / group.units, pair % group.units));
            let of_pair = |(a, b): (usize, usize)| {
                let strands = similarities.iter().enumerate();
                strands.map(|(strand, all)| inner(all, [group.units, pieces(strand)], a, b).1).sum::<f64>() as f32
            };
            pairs.map(of_pair).collect()
        }
    };
    let outer = assign(&of_units, group.units);
    let of_strand = |(strand, all): (usize, &Vec<f32>)| {
        let within = |(a, &b): (usize, &usize)| {
            let order = inner(all, [group.units, pieces(strand)], a, b).0;
            order.into_iter().map(move |piece| b * pieces(strand) + piece)
        };
        outer.iter().enumerate().flat_map(within).collect()
    };
    similarities.iter().enumerate().map(of_strand).collect()
}

/// The assignment of the pieces of unit `b` to those of unit `a`, and its sum.
fn inner(similarity: &[f32], [units, pieces]: [usize; 2], a: usize, b: usize) -> (Vec<usize>, f64) {
    let channels = units * pieces;
    let row = |piece: usize| &similarity[(a * pieces + piece) * channels + b * pieces..][..pieces];
    let block: Vec<f32> = (0..pieces).flat_map(row).copied().collect();
    let order = assign(&block, pieces);
    let sum = total(&block, pieces, &order);
    (order, sum)
}

/// The order by similarities that do not depend on each other's: correlations of activations.
pub fn by_correlation(units: &Units, correlations: &[Similarities]) -> Permutation {
    let groups = units.groups.iter().zip(correlations);
    Permutation { orders: groups.map(|(group, similarities)| partners(group, similarities)).collect() }
}

/// The mean similarity of partners in each group.
pub fn mean_similarity(units: &Units, similarities: &[Similarities], permutation: &Permutation) -> Vec<f64> {
    let of_group = |((group, all), orders): ((&UnitGroup, &Similarities), &Vec<Vec<usize>>)| {
        let sums = all.iter().zip(orders).map(|(similarity, order)| total(similarity, order.len(), order));
        let channels: usize = group.strands.iter().map(|strand| strand.channels()).sum();
        sums.sum::<f64>() / channels as f64
    };
    units.groups.iter().zip(similarities).zip(&permutation.orders).map(of_group).collect()
}
