//! The threads that ops on the CPU are spread over.

use crate::tensor::Device;

/// Does `work` on one of them, where its ops begin at once: from any other thread each op would wake one and wait for it. What computes on a
/// GPU stays on this thread.
pub fn within<R: Send>(device: Device, work: impl FnOnce() -> R + Send) -> R {
    if device == Device::Cpu && rayon::current_thread_index().is_none() { rayon::scope(|_| work()) } else { work() }
}
