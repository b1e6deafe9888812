//! Soft labels: what an image has of each class, as annotators who do not agree say it.

/// How far from 1 the shares of an image may sum: what two written digits leave of a few classes.
const ROUNDING: f64 = 2e-2;

/// Shares that sum to 1, of numbers that nearly do; or what is wrong with them.
pub fn soft_label(numbers: &[f64]) -> Result<Vec<f32>, String> {
    if let Some(number) = numbers.iter().find(|number| !(0.0..=1.0).contains(*number)) {
        return Err(format!("{number}"));
    }
    let sum: f64 = numbers.iter().sum();
    if (sum - 1.0).abs() > ROUNDING {
        return Err(format!("shares that sum to {sum}"));
    }
    Ok(numbers.iter().map(|number| (number / sum) as f32).collect())
}

/// The class of the largest share, the first of equal ones.
pub fn largest_of(shares: &[f32]) -> usize {
    let larger = |best: usize, class: usize| if shares[class] > shares[best] { class } else { best };
    (0..shares.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one() {
        assert_eq!(soft_label(&[0.5, 0.25, 0.25]).unwrap(), [0.5, 0.25, 0.25]);
        let thirds = soft_label(&[0.333, 0.333, 0.333]).unwrap();
        assert!(thirds.iter().all(|share| (share - 1.0 / 3.0).abs() < 1e-6));
        assert_eq!(largest_of(&[0.25, 0.5, 0.5]), 1);
        for wrong in [&[0.5, 0.6][..], &[0.5, 0.3], &[1.5, -0.5], &[f64::NAN, 1.0], &[0.0, 0.0]] {
            assert!(soft_label(wrong).is_err(), "{wrong:?}");
        }
    }
}
