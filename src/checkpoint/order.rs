//! The order of a tensor's numbers: PyTorch's in files, ours in memory.

use crate::nn::{Order, Parameter};

/// A parameter's dimensions as files have them.
pub fn file_shape(parameter: &Parameter) -> Vec<usize> {
    match (parameter.order, parameter.shape.dims()) {
        (Order::ChannelsBeforeWindow, &[k, r, s, c]) => vec![k, c, r, s],
        (Order::Matrix, &[k, r, s, c]) => vec![k, c * r * s],
        (_, dims) => dims.to_vec(),
    }
}

/// KCRS, as in files, as a matrix or not, to KRSC; other parameters stay as they are.
pub fn to_our_order<T: Copy>(parameter: &Parameter, values: &[T]) -> Vec<T> {
    let (Order::ChannelsBeforeWindow | Order::Matrix, &[k, r, s, c]) = (parameter.order, parameter.shape.dims()) else {
        return values.to_vec();
    };
    let index = |k: usize, tap: usize, c_: usize| (k * c + c_) * r * s + tap;
    (0..k)
        .flat_map(|k| (0..r * s).flat_map(move |tap| (0..c).map(move |c| index(k, tap, c))))
        .map(|i| values[i])
        .collect()
}

/// KRSC to KCRS, as in files; other parameters stay as they are.
pub fn to_file_order<T: Copy>(parameter: &Parameter, values: &[T]) -> Vec<T> {
    let (Order::ChannelsBeforeWindow | Order::Matrix, &[k, r, s, c]) = (parameter.order, parameter.shape.dims()) else {
        return values.to_vec();
    };
    let index = |k: usize, c_: usize, tap: usize| (k * r * s + tap) * c + c_;
    (0..k)
        .flat_map(|k| (0..c).flat_map(move |c| (0..r * s).map(move |tap| index(k, c, tap))))
        .map(|i| values[i])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;

    #[test]
    fn the_two_orders_undo_each_other() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 2);
        let filters = network.parameter("layer2.0.conv1.weight").unwrap();
        let values: Vec<f32> = (0..filters.shape.len()).map(|i| i as f32).collect();
        let ours = to_our_order(filters, &values);
        assert_ne!(ours, values);
        // K=8, C=4, 3×3: element (k, r, s, c) = (1, 0, 2, 3) stands in a file at ((1·4 + 3)·3 + 0)·3 + 2.
        assert_eq!(ours[((3) + 2) * 4 + 3 + 9 * 4 - 3 * 4], 65.0);
        assert_eq!(to_file_order(filters, &ours), values);
    }
}
