//! Dropout: `y = x / (1 − p)` where a number is kept, 0 where it is dropped, each with probability p by itself. Backward does the
//! same to `dy`: what was dropped is drawn again, not stored.
//!
//! Whether element i is kept is a matter of i alone, and of a key and a stream: word i mod 4 of Philox4x32-10 (Salmon et al.,
//! 2011) at the counter (i / 4, stream), at least p·2³² or not. So the same elements are dropped on every device, in every
//! precision and by any number of threads.

pub mod cpu;
mod gpu;
pub mod reference;

use std::sync::Arc;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Integers, Tensor, TensorMut};

/// The key of a batch: two words, on the device that works on it.
pub type Key = Arc<Integers<u32>>;

/// The chance of being dropped, and where chances come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Numbers below this are dropped: p·2³².
    pub threshold: u32,
    /// 1 / (1 − p).
    pub scale: f32,
    /// A number of the layer's own.
    pub stream: u32,
}

impl Dropout {
    /// # Panics
    /// If `p` is not at least 0 and below 1.
    pub fn new(p: f32, stream: u32) -> Dropout {
        assert!((0.0..1.0).contains(&p), "dropout of {p}");
        let threshold = (f64::from(p) * 2f64.powi(32)).round() as u32;
        Dropout { threshold, scale: 1.0 / (1.0 - p), stream }
    }
}

/// Ten rounds of Philox4x32: four words that look random for each counter.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [0xD251_1F53u64 * u64::from(counter[0]), 0xCD9E_8D57u64 * u64::from(counter[2])];
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The four words of elements 4·quad to 4·quad + 3.
#[inline(always)]
fn words(quad: u64, stream: u32, key: [u32; 2]) -> [u32; 4] {
    philox([quad as u32, (quad >> 32) as u32, stream, 0], key)
}

/// `x` and `y` are of one dtype, without padding.
pub fn dropout(dropout: &Dropout, key: &Integers<u32>, x: &Tensor, y: TensorMut) {
    assert_eq!(x.shape(), y.shape(), "dropout");
    assert_eq!(key.len(), 2, "the key of dropout");
    let words = || [key.data()[0], key.data()[1]];
    match x.implementation() {
        Implementation::Cpu => cpu::dropout(dropout, words(), x.data(), y.data()),
        Implementation::Reference => reference::dropout::<f64>(dropout, words(), x.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::dropout(gpu, dropout, key, x, y),
    }
}

impl Tape {
    pub fn dropout(&mut self, of: Dropout, key: &Key, x: &Var) -> Var {
        let mut y = Tensor::uninit(x.shape(), x.value().dtype(), x.value().device());
        dropout(&of, key, x.value(), y.view_mut());
        let (id, key) = (x.id(), Arc::clone(key));
        self.record(y, &[id], || {
            Box::new(move |dy, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                gradients.contribute(id, |dx| dropout(&of, &key, &dy, dx));
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their code.
    #[test]
    fn philox_gives_its_known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    /// As many are dropped as the chance says, others in each stream and under each key, and the sum stays what it was.
    #[test]
    fn a_share_is_dropped_and_the_rest_scaled() {
        let x = Tensor::from_vec(vec![1f32; 100_003], [100_003]);
        let run = |p: f32, stream: u32, key: u32| {
            let mut y = Tensor::uninit(x.shape(), x.dtype(), x.device());
            dropout(&Dropout::new(p, stream), &Integers::from_vec(vec![key, 7]), &x, y.view_mut());
            y.to_vec::<f32>()
        };
        for p in [0.0, 0.2, 0.5, 0.9] {
            let y = run(p, 1, 2);
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f32 / y.len() as f32;
            assert!((dropped - p).abs() < 0.01, "{p}: {dropped}");
            assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / (1.0 - p)));
        }
        let first = run(0.5, 1, 2);
        assert_eq!(run(0.5, 1, 2), first);
        for other in [run(0.5, 2, 2), run(0.5, 1, 3)] {
            let alike = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f32 / first.len() as f32;
            assert!((alike - 0.5).abs() < 0.01, "{alike}");
        }
    }
}
