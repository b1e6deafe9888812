//! Splits that are drawn: of each class its share, and never a group (a patient, a lesion, an eye) in two.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::data::SplitName;

/// The split of each image, by its label and its group. Groups are drawn class by class, that of most of their images, until test
/// and then validation have `shares` of the class's images; of a class with two groups or more training keeps one.
pub(super) fn draw(labels: &[u32], groups: &[usize], shares: [f64; 2], seed: u64) -> Vec<SplitName> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (image, &group) in groups.iter().enumerate() {
        members.entry(group).or_default().push(image);
    }
    let mut of_class: BTreeMap<u32, Vec<Vec<usize>>> = BTreeMap::new();
    for images in members.into_values() {
        of_class.entry(most_frequent(images.iter().map(|&image| labels[image]))).or_default().push(images);
    }
    let mut splits = vec![SplitName::Train; labels.len()];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for groups in of_class.values_mut() {
        groups.shuffle(&mut rng);
        let all: usize = groups.iter().map(Vec::len).sum();
        // How many images each split should have, and has.
        let [val, test] = shares.map(|share| share * all as f64);
        let mut left: Vec<(SplitName, f64)> = vec![(SplitName::Test, test), (SplitName::Val, val)];
        let count = groups.len();
        for (index, images) in groups.iter().enumerate() {
            let is_last = index + 1 == count;
            let size = images.len() as f64;
            // By no more than half a group too many.
            let open = left.iter_mut().find(|(_, open)| *open > 0.0 && *open >= 0.5 * size);
            if let Some((split, open)) = open.filter(|_| !is_last) {
                *open -= size;
                images.iter().for_each(|&image| splits[image] = *split);
            }
        }
    }
    splits
}

/// The first of equals.
fn most_frequent(labels: impl Iterator<Item = u32>) -> u32 {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    labels.for_each(|label| *counts.entry(label).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or(0);
    counts.into_iter().find(|&(_, count)| count == most).map_or(0, |(label, _)| label)
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    fn count(splits: &[SplitName], of: SplitName) -> usize {
        splits.iter().filter(|&&split| split == of).count()
    }

    #[test]
    fn each_class_has_its_share_in_each_split() {
        let labels: Vec<u32> = (0..1000).map(|image| u32::from(image % 10 == 0)).collect();
        let groups: Vec<usize> = (0..1000).collect();
        let splits = draw(&labels, &groups, [0.1, 0.2], 3);
        for class in [0, 1] {
            let of_class: Vec<SplitName> =
                splits.iter().zip(&labels).filter(|(_, label)| **label == class).map(|(split, _)| *split).collect();
            let of = |split| count(&of_class, split) as f64 / of_class.len() as f64;
            assert!((of(SplitName::Test) - 0.2).abs() < 0.01 && (of(SplitName::Val) - 0.1).abs() < 0.01, "{class}");
        }
        assert_eq!(splits, draw(&labels, &groups, [0.1, 0.2], 3));
        assert_ne!(splits, draw(&labels, &groups, [0.1, 0.2], 4));
        assert_eq!(count(&draw(&labels, &groups, [0.0, 0.0], 3), SplitName::Train), 1000);
    }

    #[test]
    fn no_group_is_in_two_splits() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for seed in 0..50 {
            let count_of_groups = rng.random_range(1..60);
            let groups: Vec<usize> = (0..200).map(|_| rng.random_range(0..count_of_groups)).collect();
            let labels: Vec<u32> = (0..200).map(|_| rng.random_range(0..4)).collect();
            let splits = draw(&labels, &groups, [0.15, 0.25], seed);
            for group in 0..count_of_groups {
                let of_group: Vec<SplitName> =
                    splits.iter().zip(&groups).filter(|(_, g)| **g == group).map(|(split, _)| *split).collect();
                assert!(of_group.windows(2).all(|pair| pair[0] == pair[1]), "{group} of {seed}");
            }
            let test = count(&splits, SplitName::Test) as f64 / 200.0;
            // Groups are few and large, the more so the fewer there are.
            assert!(count_of_groups < 30 || (test - 0.25).abs() < 0.1, "{count_of_groups} groups: {test}");
        }
    }

    #[test]
    fn a_class_of_one_group_is_for_training() {
        assert_eq!(draw(&[0, 0, 1], &[0, 0, 1], [0.1, 0.5], 1), [SplitName::Train; 3]);
        let two = draw(&[0, 0], &[0, 1], [0.0, 0.5], 1);
        assert_eq!((count(&two, SplitName::Train), count(&two, SplitName::Test)), (1, 1));
    }
}
