//! Least squares by normal equations: X·(G + λI) = R for a symmetric positive G, in f64 (Cholesky).

use rayon::prelude::*;

/// Columns of the factor that are made at a time.
const PANEL: usize = 64;

/// Solves `(G + λI)·X = R` in place of R: G is d×d, R is k rows of d numbers each, one right-hand side a row.
///
/// # Errors
/// If the matrix is not positive definite, as one with NaN is not.
pub fn solve(gram: &[f64], d: usize, lambda: f64, rhs: &mut [f64]) -> Result<(), NotPositive> {
    assert_eq!((gram.len(), rhs.len() % d.max(1)), (d * d, 0), "normal equations of {d} unknowns");
    if d == 0 {
        return Ok(());
    }
    let factor = cholesky(gram, d, lambda)?;
    rhs.par_chunks_mut(d).for_each(|x| substitute(&factor, d, x));
    Ok(())
}

/// The matrix has a direction in which it is not positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositive;

/// The lower triangle L of `G + λI = L·Lᵀ`, row by row.
fn cholesky(gram: &[f64], d: usize, lambda: f64) -> Result<Vec<f64>, NotPositive> {
    let mut l = gram.to_vec();
    (0..d).for_each(|i| l[i * d + i] += lambda);
    for first in (0..d).step_by(PANEL) {
        let last = (first + PANEL).min(d);
        // The rows above the end of the panel are needed by all others: they are made first, one after the other.
        for row in first..last {
            let (above, this) = l.split_at_mut(row * d);
            for column in first..row {
                let other = &above[column * d..][..column];
                this[column] = (this[column] - dot(&this[..column], other)) / above[column * d + column];
            }
            let square = this[row] - dot(&this[..row], &this[..row]);
            // NaN is not positive either.
            if !(square > 0.0 && square.is_finite()) {
                return Err(NotPositive);
            }
            this[row] = square.sqrt();
        }
        let (above, below) = l.split_at_mut(last * d);
        below.par_chunks_mut(d).for_each(|row| {
            for column in first..last {
                let other = &above[column * d..][..column];
                row[column] = (row[column] - dot(&row[..column], other)) / above[column * d + column];
            }
        });
    }
    Ok(l)
}

/// L·Lᵀ·x = b, in place of b.
fn substitute(l: &[f64], d: usize, x: &mut [f64]) {
    for i in 0..d {
        x[i] = (x[i] - dot(&l[i * d..][..i], &x[..i])) / l[i * d + i];
    }
    for i in (0..d).rev() {
        x[i] /= l[i * d + i];
        let value = x[i];
        x[..i].iter_mut().zip(&l[i * d..][..i]).for_each(|(x, l)| *x -= value * l);
    }
}

/// In eight sums side by side, always in the same order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix AᵀA of rank d, and numbers for solutions.
    fn drawn(d: usize) -> (Vec<f64>, Vec<f64>) {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        let a: Vec<f64> = (0..(d + 3) * d).map(|_| next()).collect();
        let mut gram = vec![0.0; d * d];
        for row in a.chunks(d) {
            for i in 0..d {
                for j in 0..d {
                    gram[i * d + j] += row[i] * row[j];
                }
            }
        }
        (gram, (0..3 * d).map(|_| next()).collect())
    }

    #[test]
    fn what_is_solved_gives_the_right_hand_side_back() {
        for d in [1, 2, 5, 63, 64, 65, 150] {
            let ((gram, x), lambda) = (drawn(d), 0.25);
            let mut rhs: Vec<f64> = x
                .chunks(d)
                .flat_map(|x| (0..d).map(|i| lambda * x[i] + (0..d).map(|j| gram[i * d + j] * x[j]).sum::<f64>()))
                .collect();
            solve(&gram, d, lambda, &mut rhs).unwrap();
            let worst = rhs.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-9, "{d}: {worst}");
        }
    }

    #[test]
    fn a_case_by_hand() {
        // [4 2; 2 3]·x = [2; 5] has x = (-1/2, 2).
        let mut rhs = [2.0, 5.0];
        solve(&[4.0, 2.0, 2.0, 3.0], 2, 0.0, &mut rhs).unwrap();
        assert!((rhs[0] + 0.5).abs() < 1e-15 && (rhs[1] - 2.0).abs() < 1e-15, "{rhs:?}");
    }

    #[test]
    fn what_is_not_positive_is_refused() {
        assert_eq!(solve(&[1.0, 2.0, 2.0, 1.0], 2, 0.0, &mut [1.0, 1.0]), Err(NotPositive));
        assert_eq!(solve(&[f64::NAN], 1, 0.0, &mut [1.0]), Err(NotPositive));
        assert_eq!(solve(&[0.0; 4], 2, 0.0, &mut [1.0, 1.0]), Err(NotPositive));
        // What the rows lack, λ gives.
        assert_eq!(solve(&[0.0; 4], 2, 1.0, &mut [1.0, 1.0]), Ok(()));
    }
}
