//! Which learning rate to take: a short run in which it rises from far too small to far too large, and what the loss does on the way
//! (the range test of Smith, "Cyclical Learning Rates for Training Neural Networks", 2017).

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::training::{End, Training};
use super::{Observer, Schedule, Subject, Target, TrainOptions};
use crate::error::{Error, Result};
use crate::interrupt::Listener;
use crate::nn::Model;

/// Losses in a row whose mean ends the search, where it is so many times the least such mean.
const IN_A_ROW: usize = 5;
const TOO_LARGE: f64 = 4.0;

/// The rates that are tried: `updates` of them, each the same multiple of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateSearch {
    pub low: f64,
    pub high: f64,
    pub updates: usize,
}

impl Default for RateSearch {
    fn default() -> RateSearch {
        RateSearch { low: 1e-7, high: 10.0, updates: 100 }
    }
}

impl RateSearch {
    pub fn check(&self) -> Result<()> {
        let RateSearch { low, high, updates } = *self;
        if !(low > 0.0 && low < high && high.is_finite()) {
            return Err(Error::usage(
                format!("learning rates from {low} to {high}"),
                "give a low and a high one: 1e-7,10",
            ));
        }
        if updates < 20 {
            let message = format!("{updates} updates to find a learning rate in");
            return Err(Error::usage(message, "give --steps 20 or more; 100 is usual"));
        }
        Ok(())
    }

    fn rate(&self, update: usize) -> f64 {
        self.low * (self.high / self.low).powf(update as f64 / (self.updates - 1) as f64)
    }
}

/// An update of the search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    pub learning_rate: f64,
    /// Of its batches, before it.
    pub loss: f64,
}

/// What the loss did while the rate rose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateCurve {
    pub search: RateSearch,
    /// Up to the last update whose loss is a number.
    pub points: Vec<RatePoint>,
    /// Whether the loss became too large, or no number, before the highest rate.
    pub ended_early: bool,
}

impl RateCurve {
    fn new(search: RateSearch) -> RateCurve {
        RateCurve { search, points: Vec::new(), ended_early: false }
    }

    /// The rate in the middle of the stretch in which the loss falls fastest with the logarithm of the rate, by least squares;
    /// `None` where it falls nowhere. A stretch is a sixth of the search, so that a single batch decides nothing.
    pub fn steepest(&self) -> Option<f64> {
        let half = self.half();
        // Of the line through losses at −half … half; positive where they fall.
        let fall = |stretch: &[RatePoint]| {
            let moments = stretch.iter().enumerate().map(|(i, point)| (half as f64 - i as f64) * point.loss);
            moments.sum::<f64>()
        };
        let falls = self.points.windows(2 * half + 1).map(|stretch| (fall(stretch), stretch[half].learning_rate));
        falls.filter(|(fall, _)| *fall > 0.0).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, rate)| rate)
    }

    /// The rate at which the [smoothed](RateCurve::smoothed) loss is least.
    pub fn least(&self) -> Option<f64> {
        let losses = self.smoothed().into_iter().zip(&self.points);
        losses.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, point)| point.learning_rate)
    }

    /// The loss of each update as the mean of those around it, a twelfth of the search, which does not lag behind.
    pub fn smoothed(&self) -> Vec<f64> {
        let reach = self.half() / 2;
        let around = |i: usize| &self.points[i.saturating_sub(reach)..(i + reach + 1).min(self.points.len())];
        (0..self.points.len()).map(|i| mean(around(i))).collect()
    }

    fn half(&self) -> usize {
        (self.search.updates / 12).max(2)
    }

    /// Takes in the loss of another update, and says whether to go on.
    fn add(&mut self, learning_rate: f64, loss: f64) -> ControlFlow<()> {
        if !loss.is_finite() {
            self.ended_early = true;
            return ControlFlow::Break(());
        }
        self.points.push(RatePoint { learning_rate, loss });
        let means = self.points.windows(IN_A_ROW).map(mean);
        let least = means.clone().fold(f64::INFINITY, f64::min);
        self.ended_early = means.into_iter().next_back().is_some_and(|last| last > TOO_LARGE * least);
        let is_over = self.ended_early || self.points.len() == self.search.updates;
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn mean(points: &[RatePoint]) -> f64 {
    points.iter().map(|point| point.loss).sum::<f64>() / points.len() as f64
}

/// Runs the updates of `search` from `model`, which stays as it is, with the options as they are except for rates. Where the head, stages of the trunk or
/// merge weights have rates of their own, these are multiplied alike; the rate of a point is `learning_rate`'s.
pub fn find_rate(
    model: &Model,
    subject: &mut Subject,
    target: Target,
    options: &TrainOptions,
    search: &RateSearch,
    observer: &mut dyn Observer,
) -> Result<RateCurve> {
    search.check()?;
    if options.learning_rate == 0.0 {
        return Err(Error::usage("a learning rate of 0, which stays 0 whatever multiplies it", "give another"));
    }
    let images = target.data.train.len();
    // Nothing is measured between epochs.
    let usual = TrainOptions { warmup: 0, patience: None, ema: 0.0, ..options.clone() };
    let usual = TrainOptions { schedule: Schedule::Constant, plateau_patience: None, ..usual };
    let options = TrainOptions { steps: Some(search.updates), ..usual }.for_images(images);
    options.check()?;
    let _listener = Listener::new();
    let (start, mut model) = (subject.merge_weights(), model.clone());
    let (mut training, trunks) = Training::new(&mut model, subject, target, &options, observer, None)?;
    training.steps = training.steps.min(search.updates * options.accumulate);
    let mut curve = RateCurve::new(*search);
    let mut of_update = 0.0;
    for epoch in 0..options.epochs {
        let factor = |update| search.rate(update) / options.learning_rate;
        let end = training.run(epoch, factor, |turn, loss| {
            of_update += turn.share * f64::from(loss);
            if !turn.is_last {
                return ControlFlow::Continue(());
            }
            curve.add(turn.factor * options.learning_rate, std::mem::take(&mut of_update))
        })?;
        match end {
            End::Epoch => {}
            End::Asked(_) => break,
            End::Diverged => {
                curve.ended_early = true;
                break;
            }
        }
    }
    training.finish(trunks)?;
    subject.restore(start);
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve_of(updates: usize, loss: impl Fn(f64) -> f64) -> RateCurve {
        let mut curve = RateCurve::new(RateSearch { updates, ..RateSearch::default() });
        let search = curve.search;
        let ends = (0..).map(|update| search.rate(update)).find(|&rate| curve.add(rate, loss(rate)).is_break());
        assert!(ends.is_some());
        curve
    }

    #[test]
    fn rates_rise_by_the_same_factor_from_the_low_to_the_high() {
        let search = RateSearch { low: 1e-5, high: 1.0, updates: 51 };
        assert!(search.rate(0) == 1e-5 && (search.rate(50) - 1.0).abs() < 1e-12);
        assert!((0..50).all(|i| (search.rate(i + 1) / search.rate(i) / 10f64.powf(0.1) - 1.0).abs() < 1e-12));
    }

    /// A loss that falls fastest at 10⁻³, is least near 10⁻² and bursts: 2 − 1/(1 + (10⁻³/r)) + (10·r)³.
    #[test]
    fn a_valley_is_found_where_it_is() {
        for updates in [100, 400] {
            let curve = curve_of(updates, |rate| 2.0 - 1.0 / (1.0 + 1e-3 / rate) + (10.0 * rate).powi(3));
            assert!(curve.ended_early && curve.points.len() < updates);
            let (steepest, least) = (curve.steepest().unwrap(), curve.least().unwrap());
            assert!((0.5e-3..2e-3).contains(&steepest), "{steepest}");
            // The derivative of both terms is 0 at 1.35·10⁻².
            assert!((0.7e-2..2e-2).contains(&least), "{least}");
        }
    }

    /// One batch that is like no other does not decide.
    #[test]
    fn an_outlier_is_not_what_is_found() {
        let curve = curve_of(100, |rate| {
            let outlier = if (1e-6..1.3e-6).contains(&rate) { 0.2 } else { 0.0 };
            2.0 - 1.0 / (1.0 + 1e-3 / rate) - outlier
        });
        assert!(!curve.ended_early && curve.points.len() == 100);
        assert!((0.5e-3..2e-3).contains(&curve.steepest().unwrap()), "{:?}", curve.steepest());
        assert!(curve.least().unwrap() > 1.0);
    }

    #[test]
    fn a_loss_that_never_falls_has_no_steepest_place() {
        let curve = curve_of(30, |rate| 20.0 + rate.ln());
        assert_eq!((curve.steepest(), curve.least()), (None, Some(1e-7)));
        let none = curve_of(30, |_| f64::NAN);
        assert_eq!((none.steepest(), none.least(), none.points.len(), none.ended_early), (None, None, 0, true));
    }

    #[test]
    fn searches_that_cannot_be_are_refused() {
        for (low, high, updates) in [(0.0, 1.0, 100), (1.0, 1.0, 100), (1e-3, f64::INFINITY, 100), (1e-3, 1.0, 19)] {
            assert!(RateSearch { low, high, updates }.check().is_err(), "{low} {high} {updates}");
        }
    }
}
