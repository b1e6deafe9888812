//! The definition of the update rules.

use super::{AdamW, Sgd};
use crate::tensor::Element;

#[inline(always)]
pub fn sgd<T: Element>(rule: &Sgd, w: &mut [T], g: &[T], v: &mut [T]) {
    let [rate, momentum, decay] = [rule.learning_rate, rule.momentum, rule.weight_decay].map(T::from_f64);
    for ((w, &g), v) in w.iter_mut().zip(g).zip(v) {
        let g = g + decay * *w;
        *v = momentum * *v + g;
        *w = *w - rate * if rule.nesterov { g + momentum * *v } else { *v };
    }
}

#[inline(always)]
pub fn gather<T: Element>(sum: &mut [T], g: &[T], share: f64, is_first: bool) {
    let share = T::from_f64(share);
    for (sum, &g) in sum.iter_mut().zip(g) {
        *sum = if is_first { share * g } else { *sum + share * g };
    }
}

/// In f64, whatever the numbers are.
#[inline(always)]
pub fn square_sum<T: Element>(g: &[T]) -> f64 {
    g.iter().map(|g| g.to_f64() * g.to_f64()).sum()
}

#[inline(always)]
pub fn scale<T: Element>(g: &mut [T], factor: f64) {
    let factor = T::from_f64(factor);
    g.iter_mut().for_each(|g| *g = *g * factor);
}

#[inline(always)]
pub fn adamw<T: Element>(rule: &AdamW, w: &mut [T], g: &[T], m: &mut [T], u: &mut [T]) {
    let (decay, rate, correction) = rule.factors();
    let [decay, rate, correction, epsilon] = [decay, rate, correction, rule.epsilon].map(T::from_f64);
    let [beta1, beta2] = [rule.beta1, rule.beta2].map(T::from_f64);
    let [rest1, rest2] = [1.0 - rule.beta1, 1.0 - rule.beta2].map(T::from_f64);
    for (((w, &g), m), u) in w.iter_mut().zip(g).zip(m).zip(u) {
        *m = beta1 * *m + rest1 * g;
        *u = beta2 * *u + rest2 * (g * g);
        *w = decay * *w - rate * (*m / (u.sqrt() / correction + epsilon));
    }
}
