//! The blend's last bit.

use medmerge::ops::merge::{Choice, Segment, Table, blend};
use medmerge::tensor::{DType, Device, Tensor};

use crate::devices;

/// Other checks take the two zeros for one number.
#[test]
fn a_blend_keeps_the_sign_of_zero() {
    let len = 11;
    let choice = Choice::Alpha { first: 0, row_step: 0, period: 1 };
    let table = Table::new(vec![Segment { offset: 0, rows: 1, row_len: len, pitch: len, choice }], 1, len);
    let sources = [-0.0f32, -1e-3].map(|w| Tensor::from_vec(vec![w; len], [len]));
    let alpha = Tensor::from_vec(vec![1f32, 0.0], [2, 1]);
    let blended = |device: Device| {
        let sources = sources.each_ref().map(|source| source.to_device(device));
        let mut to = Tensor::uninit([len], DType::F32, device);
        blend(&table, &sources.each_ref(), &alpha.to_device(device), to.view_mut());
        to.to_vec::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let expected = blended(Device::Cpu);
    assert_eq!(expected, vec![(-0.0f32).to_bits(); len]);
    for gpu in devices() {
        assert_eq!(blended(Device::Gpu(gpu)), expected, "on {gpu}");
    }
}
