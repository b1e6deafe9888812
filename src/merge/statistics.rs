//! The running statistics of a merged network.
//!
//! | | mean and variance of each channel |
//! |---|---|
//! | `anchor` | the anchor's |
//! | `rescale` | what the sources' own let expect of the blend, without images |
//! | `reestimate` | the cumulative average over one pass through the training images |
//!
//! Outputs of filters that have nothing to do with each other are hardly correlated, so that their average varies less than each:
//! by the anchor's statistics it would be taken for nearly constant. What varies less is rescaled by REPAIR (Jordan et al., ICLR
//! 2023) on images. Without any, `rescale` takes what a filter reads for white; then covariances of the sources' outputs are those of
//! their filters w_m, and for the blend Σ c_m·w_m
//!
//! ```text
//! mean = Σ_m c_m·μ_m        variance = Σ_m Σ_n c_m·c_n·cos(w_m, w_n)·σ_m·σ_n
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::methods::Inputs;
use crate::error::{Error, Result};
use crate::nn::{Model, Rows};
use crate::numbers;

/// Where the running statistics of a merged network come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Statistics {
    Anchor,
    Rescale,
    Reestimate,
}

impl Statistics {
    const ALL: [(Statistics, &'static str); 3] =
        [(Statistics::Anchor, "anchor"), (Statistics::Rescale, "rescale"), (Statistics::Reestimate, "reestimate")];
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Statistics::ALL[*self as usize].1)
    }
}

impl FromStr for Statistics {
    type Err = Error;
    fn from_str(name: &str) -> Result<Statistics> {
        let found = Statistics::ALL.into_iter().find(|(_, known)| *known == name);
        let known = Statistics::ALL.map(|(_, name)| name);
        found.map(|(statistics, _)| statistics).ok_or_else(|| Error::unknown("source of statistics", name, known))
    }
}

/// What batch norms normalise by while merge weights are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProbeStatistics {
    /// Mean and variance of the batch.
    #[default]
    Batch,
    /// Running statistics, which are re-estimated after each epoch; dropout is off then, as in every use of a network.
    Running,
}

impl fmt::Display for ProbeStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == ProbeStatistics::Batch { "batch" } else { "running" })
    }
}

impl FromStr for ProbeStatistics {
    type Err = Error;
    fn from_str(name: &str) -> Result<ProbeStatistics> {
        match name {
            "batch" => Ok(ProbeStatistics::Batch),
            "running" => Ok(ProbeStatistics::Running),
            _ => Err(Error::unknown("statistics of a probe", name, ["batch", "running"])),
        }
    }
}

/// Gives a linear merge of sources the running statistics that follow from theirs.
pub fn rescale(model: &mut Model, inputs: &Inputs) {
    let network = model.network.clone();
    let count = inputs.sources.len();
    for (index, norm) in network.batch_norms.iter().enumerate() {
        let running: Vec<[Vec<f32>; 2]> = (0..count)
            .map(|source| {
                let (mean, variance) = inputs.model(source).running(index);
                [mean.to_vec(), variance.to_vec()]
            })
            .collect();
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        for feed in &network.parameters[norm.gamma].feeds {
            for channel in 0..feed.channels {
                // Of several that a sum lets feed a channel, the last one counts, as it does for merge weights.
                let filter = feed.filters.last().map(|rows| Rows { first: rows.first + channel, ..*rows });
                let at = means.len();
                let of_source = |source: usize| {
                    let [mean, variance] = &running[source];
                    let parameter = filter.map_or(norm.gamma, |rows| rows.parameter);
                    let coefficient = inputs.coefficient(source, &network.parameters[parameter]);
                    [coefficient, f64::from(mean[at]), f64::from(variance[at]).sqrt()]
                };
                let sources: Vec<[f64; 3]> = (0..count).map(of_source).collect();
                let cosine = |m: usize, n: usize| match filter {
                    Some(rows) if m != n => cosine(inputs, rows, [m, n]),
                    _ => 1.0,
                };
                let pairs = (0..count).flat_map(|m| (0..count).map(move |n| (m, n)));
                let covariance = |(m, n): (usize, usize)| {
                    let ([a, _, x], [b, _, y]) = (sources[m], sources[n]);
                    a * b * cosine(m, n) * x * y
                };
                means.push(sources.iter().map(|[c, mean, _]| c * mean).sum::<f64>() as f32);
                // Rounding alone can make a variance of nothing negative.
                variances.push(pairs.map(covariance).sum::<f64>().max(0.0) as f32);
            }
        }
        model.set_running(index, &means, &variances);
    }
}

/// Of the angle between two sources' filters; 0 where one of them is zero.
fn cosine(inputs: &Inputs, Rows { parameter, first }: Rows, pair: [usize; 2]) -> f64 {
    let [a, b] = pair.map(|source| {
        let model = inputs.model(source);
        let parameter = &model.network.parameters[parameter];
        &model.numbers(parameter)[first * parameter.pitch..][..parameter.shape.row_len()]
    });
    let cosine = numbers::cosine(a, b);
    if cosine.is_nan() { 0.0 } else { cosine }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::methods::Numbers;
    use crate::merge::{BatchNormPolicy, Sources};
    use crate::nn::{Architecture, NetworkBuilder, Operation};
    use crate::ops::conv2d::Conv2d;

    fn rescaled(models: &[Model], coefficients: &[f64]) -> Model {
        let architecture = Architecture::named("resnet8", None, Some(4)).unwrap();
        let named = |(index, model): (usize, &Model)| (format!("{index}"), architecture.clone(), model.clone());
        let sources = Sources::from_models(models.iter().enumerate().map(named).collect());
        let numbers = Numbers::default();
        let inputs = Inputs {
            sources: &sources,
            anchor: 0,
            batch_norm: BatchNormPolicy::Merge,
            coefficients,
            filtered: &[],
            numbers: &numbers,
            base: None,
        };
        let mut model = models[0].copy();
        rescale(&mut model, &inputs);
        model
    }

    /// One convolution of two filters over two channels, and a batch norm.
    fn normed(filters: [f32; 4], mean: [f32; 2], variance: [f32; 2]) -> Model {
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d("conv", b.input(), 2, 1, Conv2d::new(1, 0));
        let x = b.batch_norm("bn", x);
        let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
        b.linear("head", x, 2);
        let mut model = Model::blank(b.finish());
        let parameter = model.network.parameter("conv.weight").unwrap().clone();
        model.set_parameter(&parameter, &filters);
        model.set_running(0, &mean, &variance);
        model
    }

    #[test]
    fn a_case_by_hand() {
        // The first filters are at right angles, of deviations 2 and 4: (4 + 16)/4. The second ones are the same, of deviations 1
        // and 3: their mean has that of 2.
        let a = normed([1.0, 0.0, 1.0, 1.0], [1.0, -2.0], [4.0, 1.0]);
        let b = normed([0.0, 5.0, 2.0, 2.0], [3.0, 2.0], [16.0, 9.0]);
        let (mean, variance) = rescaled(&[a.clone(), b.clone()], &[0.5, 0.5]).running(0);
        assert_eq!((mean.to_vec::<f32>(), variance.to_vec::<f32>()), (vec![2.0, 0.0], vec![5.0, 4.0]));
        // Opposite filters cancel out.
        let c = normed([-1.0, 0.0, -1.0, -1.0], [-1.0, 2.0], [4.0, 1.0]);
        let (_, variance) = rescaled(&[a, c], &[0.5, 0.5]).running(0);
        assert_eq!(variance.to_vec::<f32>(), [0.0, 0.0]);
    }

    #[test]
    fn equal_sources_keep_their_own() {
        for name in ["resnet8", "densenet121", "vgg11_bn"] {
            let network = Architecture::named(name, None, Some(4)).unwrap().build(3, 5);
            let mut model = Model::initialized(network.clone(), 1);
            for (index, norm) in network.batch_norms.iter().enumerate() {
                let values: Vec<f32> = (0..norm.channels).map(|i| 1.5 + (i as f32).sin()).collect();
                model.set_running(index, &values, &values);
            }
            let after = rescaled(&[model.clone(), model.clone()], &[0.25, 0.75]);
            let [before, after] = [&model, &after].map(|model| model.statistics.to_vec::<f32>());
            let close = before.iter().zip(&after).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1.0));
            assert!(close, "{name}");
        }
    }
}
