//! The definition of the update rules.

use super::{AdamW, Sgd};
use crate::tensor::Element;

#[inline(always)]
pub fn sgd<T: Element>(rule: &Sgd, w: &mut [T], g: &[T], v: &mut [T]) {
    let [rate, momentum, decay] = [rule.learning_rate, rule.momentum, rule.weight_decay].map(T::from_f64);
    for ((w, &g), v) in w.iter_mut().zip(g).zip(v) {
        *v = momentum * *v + (g + decay * *w);
        *w = *w - rate * *v;
    }
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
