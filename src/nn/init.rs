//! Initial parameters, as PyTorch's ResNet has them: filters normal with variance 2/(K·R·S) (He et al., fan out), γ = 1,
//! β = 0; linear weights and biases uniform in ±1/√C.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{Kind, Model, Network, Region};

/// Overwrites the parameters of `region`, in their order, from one stream of random numbers.
pub fn initialize(model: &mut Model, region: Region, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(match region {
        Region::Trunk => 1,
        Region::Head => 2,
    });
    let network = model.network.clone();
    for parameter in network.region(region) {
        let values = values(&network, parameter.kind, parameter.shape.dims(), &mut random);
        model.set_parameter(parameter, &values);
    }
}

fn values(network: &Network, kind: Kind, dims: &[usize], random: &mut ChaCha8Rng) -> Vec<f32> {
    let count: usize = dims.iter().product();
    match kind {
        Kind::Filters => {
            let fan_out = (dims[0] * dims[1] * dims[2]) as f32;
            let normal = Normal::new(0.0, (2.0 / fan_out).sqrt()).expect("a finite deviation");
            normal.sample_iter(random).take(count).collect()
        }
        Kind::Gamma(_) => vec![1.0; count],
        Kind::Beta(_) => vec![0.0; count],
        Kind::Matrix | Kind::Bias => {
            // A bias has its matrix's bound; the head is the one matrix there is.
            let inputs = network.region(Region::Head).find(|p| p.kind == Kind::Matrix).map_or(1, |p| p.shape.row_len());
            let bound = 1.0 / (inputs as f32).sqrt();
            (0..count).map(|_| random.random_range(-bound..=bound)).collect()
        }
    }
}
