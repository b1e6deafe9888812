//! Which unit of one network stands for which of another: the assignment of the largest sum of similarities
//! (Kuhn and Munkres, 1955 and 1957), by the crate `pathfinding`.

use pathfinding::prelude::{Matrix, kuhn_munkres};

/// Similarities are rounded to so many steps of the largest: sums of integers have one result, in any order, and the search
/// for it ends.
const STEPS: f64 = (1u64 << 40) as f64;

/// For each row of a square matrix of similarities, the column of its partner.
///
/// # Panics
/// If a similarity is not finite.
pub fn assign(similarity: &[f32], count: usize) -> Vec<usize> {
    assert_eq!(similarity.len(), count * count, "a square matrix of similarities");
    assert!(similarity.iter().all(|value| value.is_finite()), "a similarity is NaN or infinite");
    if count < 2 {
        return vec![0; count];
    }
    let largest = similarity.iter().fold(0f64, |most, &value| most.max(f64::from(value).abs()));
    let scale = if largest > 0.0 { STEPS / largest } else { 0.0 };
    let integers = similarity.iter().map(|&value| (f64::from(value) * scale).round() as i64).collect();
    let weights = Matrix::from_vec(count, count, integers).expect("a square matrix");
    kuhn_munkres(&weights).1
}

/// The sum of the similarities of all partners.
pub fn total(similarity: &[f32], count: usize, partners: &[usize]) -> f64 {
    partners.iter().enumerate().map(|(row, &column)| f64::from(similarity[row * count + column])).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All orders of `count` things.
    fn orders(count: usize) -> Vec<Vec<usize>> {
        match count {
            0 => vec![vec![]],
            _ => orders(count - 1)
                .into_iter()
                .flat_map(|order| {
                    (0..count).map(move |at| {
                        let mut order = order.clone();
                        order.insert(at, count - 1);
                        order
                    })
                })
                .collect(),
        }
    }

    #[test]
    fn no_other_assignment_has_a_larger_sum() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        for count in 1..=6 {
            let similarity: Vec<f32> = (0..count * count).map(|_| next()).collect();
            let best = total(&similarity, count, &assign(&similarity, count));
            let most = orders(count).iter().map(|order| total(&similarity, count, order)).fold(f64::MIN, f64::max);
            assert!((best - most).abs() < 1e-9, "{count}: {best} {most}");
        }
    }

    #[test]
    fn greedy_choices_are_not_the_best_ones() {
        // The largest, 10, leaves 0 to the other; 9 + 8 is more.
        assert_eq!(assign(&[10.0, 9.0, 8.0, 0.0], 2), [1, 0]);
        assert_eq!(assign(&[0.0; 9], 3).len(), 3);
        assert!(assign(&[], 0).is_empty());
    }

    #[test]
    #[should_panic(expected = "NaN")]
    fn similarities_that_are_no_numbers_are_refused() {
        assign(&[1.0, f32::NAN, 0.0, 1.0], 2);
    }
}
