//! Running statistics follow the batches as on the CPU.

use medmerge::ops::batch_norm::update_running;
use medmerge::tensor::{Device, Tensor};

use crate::common::Numbers;
use crate::devices;

/// Bit for bit: whatever the two differ by would grow from batch to batch.
#[test]
fn running_statistics_have_the_bits_of_the_cpu() {
    let channels = 300;
    let after = |device: Device| {
        let mut numbers = Numbers(4);
        let mut draw = || {
            let values = (0..channels).map(|_| 1.0 + numbers.real().abs() as f32).collect();
            Tensor::from_vec(values, [channels]).to_device(device)
        };
        let mut running = draw();
        for _ in 0..20 {
            update_running(running.view_mut(), &draw(), 0.1, None);
        }
        running.to_vec::<f32>()
    };
    let expected = after(Device::Cpu);
    for gpu in devices() {
        assert_eq!(after(Device::Gpu(gpu)), expected, "on {gpu}");
    }
}
