//! Two networks beside each other: what differs, and whether they can be merged.

use crate::checkpoint::Checkpoint;
use crate::nn::{Parameter, Region, Role};
use crate::numbers::{cosine, dot};

/// How two networks differ, parameter by parameter of the trunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Parameters with the same numbers, bit for bit.
    pub same: usize,
    /// Parameters of one shape whose numbers differ, in the order of their layers.
    pub changed: Vec<Changed>,
    /// Names and shapes (K, R, S, C) of those that have no other of their shape.
    pub unlike: Vec<String>,
}

/// A parameter that two networks have with different numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    pub name: String,
    pub role: Role,
    /// Cosine of the angle between both, all numbers of each taken as one vector; near 1 for networks of one origin, near 0 for
    /// filters that were trained from different initialisations.
    pub cosine: f64,
    /// ‖a − b‖ / ‖a‖.
    pub distance: f64,
}

impl Difference {
    pub fn between(first: &Checkpoint, second: &Checkpoint) -> Difference {
        let mut difference = Difference::default();
        let (a, b) = (&first.model, &second.model);
        for parameter in a.network.region(Region::Trunk) {
            match b.network.parameter(&parameter.name).filter(|other| other.shape == parameter.shape) {
                Some(other) => {
                    let [x, y] = [a.parameter(parameter), b.parameter(other)].map(|tensor| tensor.to_vec::<f32>());
                    difference.add(parameter, &x, &y);
                }
                None => difference.unlike.push(named(parameter, "first")),
            }
        }
        let alone = |p: &&Parameter| a.network.parameter(&p.name).is_none_or(|other| other.shape != p.shape);
        difference.unlike.extend(b.network.region(Region::Trunk).filter(alone).map(|p| named(p, "second")));
        difference
    }

    fn add(&mut self, parameter: &Parameter, x: &[f32], y: &[f32]) {
        if x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits()) {
            self.same += 1;
            return;
        }
        let difference: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        let distance = (dot(&difference, &difference) / dot(x, x)).sqrt();
        let (name, role) = (parameter.name.clone(), parameter.role);
        self.changed.push(Changed { name, role, cosine: cosine(x, y), distance });
    }

    /// The mean cosine of the banks of filters that differ; `None` where none do.
    pub fn mean_cosine(&self) -> Option<f64> {
        let of_filters = self.changed.iter().filter(|changed| changed.role == Role::Filters);
        let cosines: Vec<f64> = of_filters.map(|changed| changed.cosine).filter(|cosine| cosine.is_finite()).collect();
        (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
    }
}

fn named(parameter: &Parameter, of: &str) -> String {
    format!("{} {} of the {of}", parameter.name, parameter.shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::Sources;
    use crate::nn::{Architecture, Model};

    fn checkpoints(models: [(&str, usize, u64); 2]) -> [Checkpoint; 2] {
        let of = |(name, width, seed): (&str, usize, u64)| {
            let architecture = Architecture::named(name, None, Some(width)).unwrap();
            let model = Model::initialized(architecture.build(1, 3), seed);
            (name.to_string(), architecture, model)
        };
        let sources = Sources::from_models(models.map(of).to_vec());
        [0, 1].map(|index| sources.get(index).checkpoint.clone())
    }

    #[test]
    fn networks_of_one_origin_and_of_two() {
        let [a, b] = checkpoints([("resnet8", 4, 1), ("resnet8", 4, 1)]);
        let same = Difference::between(&a, &b);
        assert!(same.changed.is_empty() && same.unlike.is_empty() && same.same > 20);
        let [a, b] = checkpoints([("resnet8", 4, 1), ("resnet8", 4, 2)]);
        let other = Difference::between(&a, &b);
        // Batch norms begin alike, filters do not.
        assert_eq!((other.changed.len(), other.unlike.len()), (9, 0));
        assert!(other.mean_cosine().unwrap().abs() < 0.2);
        assert!(other.changed.iter().all(|changed| (0.8..2.0).contains(&changed.distance)));
    }

    #[test]
    fn what_only_one_of_them_has() {
        let [a, b] = checkpoints([("resnet8", 4, 1), ("resnet8", 6, 1)]);
        let difference = Difference::between(&a, &b);
        assert_eq!(difference.unlike.len(), 2 * a.model.network.region(Region::Trunk).count());
        assert!(difference.unlike[0].starts_with("conv1.weight") && difference.unlike[0].ends_with("of the first"));
    }
}
