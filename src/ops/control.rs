//! The values that a training step reads and decides on a GPU, so that it can be recorded once and replayed: the
//! learning rate's factor, the share that a batch has in an update, the scale of the loss, what clips the gradient, how many
//! updates were made, and whether this one is.
//!
//! A step whose loss or gradient is not finite updates nothing. With activations in f16 the loss is scaled, so that small
//! gradients do not vanish: an overflow halves the scale and costs one step, [`GROWTH`] good steps double it. Without a
//! scale the run has diverged, and nothing is updated any more. The host sees all of this when it next looks.

use bytemuck::{Pod, Zeroable};

use crate::gpu::{Address, Buffer, Handle};

/// Good steps after which the scale doubles, as in PyTorch.
pub const GROWTH: u32 = 2000;

/// The first scale: 2¹⁶, as in PyTorch.
pub const FIRST_SCALE: f32 = 65536.0;

/// Losses that are kept for the host.
pub const LOSSES: usize = 1024;

/// The twin of `Control` in `kernels/control.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Values {
    pub power1: f64,
    pub power2: f64,
    pub factor: f32,
    pub share: f32,
    pub scale: f32,
    pub correction1: f32,
    pub correction2: f32,
    pub norm: f32,
    pub clip: f32,
    pub apply: u32,
    pub updates: u32,
    pub steps: u32,
    pub good_steps: u32,
    pub diverged: u32,
    pub gathered: u32,
    pub padding: u32,
}
const _: () = assert!(size_of::<Values>() == 72);
const FACTOR: usize = std::mem::offset_of!(Values, factor);
const _: () = assert!(std::mem::offset_of!(Values, share) == FACTOR + 4);
const APPLY: usize = std::mem::offset_of!(Values, apply);

#[derive(Debug)]
pub struct Control {
    values: Buffer,
    losses: Buffer,
    is_scaled: bool,
}

impl Control {
    /// A run that has made `updates` updates with these β; `is_scaled` where activations are f16.
    pub fn new(gpu: Handle, updates: u64, beta1: f64, beta2: f64, is_scaled: bool) -> Control {
        let control =
            Control { values: gpu.allocate(size_of::<Values>()), losses: gpu.allocate(4 * LOSSES), is_scaled };
        control.set(&Values {
            power1: beta1.powi(updates as i32),
            power2: beta2.powi(updates as i32),
            factor: 1.0,
            share: 1.0,
            clip: 1.0,
            scale: if is_scaled { FIRST_SCALE } else { 1.0 },
            updates: updates as u32,
            ..Values::default()
        });
        control
    }

    pub fn gpu(&self) -> Handle {
        self.values.gpu()
    }

    pub fn set(&self, values: &Values) {
        self.gpu().upload(self.address(), bytemuck::bytes_of(values));
    }

    /// Sets the factor of the next step's learning rate.
    pub fn set_factor(&self, factor: f64) {
        self.set_turn(factor, 1.0);
    }

    /// The same, and the share of the next batch's gradient in an update.
    pub fn set_turn(&self, factor: f64, share: f64) {
        self.gpu().upload(self.address().offset(FACTOR), bytemuck::bytes_of(&[factor as f32, share as f32]));
    }

    /// Waits for the steps under way.
    pub fn values(&self) -> Values {
        let mut values = Values::default();
        self.gpu().download(self.address(), bytemuck::bytes_of_mut(&mut values));
        values
    }

    /// The losses of the last [`LOSSES`] steps, that of step s (counted from 0) at s mod [`LOSSES`].
    pub fn losses(&self) -> Vec<f32> {
        let mut losses = vec![0f32; LOSSES];
        self.gpu().download(self.losses.address(), bytemuck::cast_slice_mut(&mut losses));
        losses
    }

    pub fn address(&self) -> Address {
        self.values.address()
    }

    pub fn losses_address(&self) -> Address {
        self.losses.address()
    }

    /// A whole number that is 0 where this step's update is not made.
    pub fn gate(&self) -> Address {
        self.address().offset(APPLY)
    }

    pub fn is_scaled(&self) -> bool {
        self.is_scaled
    }
}
