//! Initial parameters: each as its layer has it, all of a region from one stream of random numbers.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{Initial, Model, Region};

/// Overwrites the parameters of `region`, in their order, from one stream of random numbers.
pub fn initialize(model: &mut Model, region: Region, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(match region {
        Region::Trunk => 1,
        Region::Head => 2,
    });
    let network = model.network.clone();
    for parameter in network.region(region) {
        let values = values(parameter.initial, parameter.shape.len(), &mut random);
        model.set_parameter(parameter, &values);
    }
}

fn values(initial: Initial, count: usize, random: &mut impl Rng) -> Vec<f32> {
    match initial {
        Initial::Constant(value) => vec![value; count],
        Initial::Normal { deviation } => {
            let normal = Normal::new(0.0, deviation).expect("a finite deviation");
            normal.sample_iter(random).take(count).collect()
        }
        Initial::Uniform { bound } => (0..count).map(|_| random.random_range(-bound..=bound)).collect(),
    }
}
