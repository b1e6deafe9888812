//! Tensors as values: shape, dtype and device are data, never type parameters.
//!
//! A [`Tensor`] is a reference-counted window into a buffer: cloning it copies no number, and a layer's weights are
//! windows into the one arena that holds a whole network. Its rows (everything behind the first dimension) are
//! contiguous; from row to row lies `pitch`, which exceeds the row's length where an arena pads rows to 16 bytes.
//! Numbers change only through a [`TensorMut`], which exists once at a time.
//!
//! This module knows nothing of operations, networks or files.

mod dtype;
mod pool;
mod shape;

use std::sync::Arc;

pub use dtype::{DType, Element};
pub use pool::Buffer;
pub use shape::Shape;

/// Where a tensor's numbers live, and so which implementation of an op runs on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Host memory. `f32` runs the fast implementations, `f64` the reference.
    Cpu,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

#[derive(Debug)]
enum Storage {
    F32(Buffer<f32>),
    F64(Buffer<f64>),
}

#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    offset: usize,
    shape: Shape,
    pitch: usize,
}

/// The only way to write numbers: a window that nothing else reads while it exists.
pub struct TensorMut<'a> {
    data: DataMut<'a>,
    shape: Shape,
    pitch: usize,
}

enum DataMut<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
}

/// Elements that `shape` spans when its rows lie `pitch` apart; the padding behind the last row is not part of it.
fn span(shape: Shape, pitch: usize) -> usize {
    match shape.rows() {
        0 => 0,
        rows => (rows - 1) * pitch + shape.row_len(),
    }
}

impl Tensor {
    /// A tensor to be overwritten. Its numbers are left over from earlier use (NaN where debug assertions are on, so
    /// that an element nobody wrote shows).
    pub fn uninit(shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        let Device::Cpu = device;
        let storage = match dtype {
            DType::F32 => Storage::F32(Buffer::recycled(shape.len())),
            DType::F64 => Storage::F64(Buffer::recycled(shape.len())),
        };
        Tensor { storage: Arc::new(storage), offset: 0, shape, pitch: shape.row_len() }
    }

    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let mut tensor = Tensor::uninit(shape, dtype, device);
        tensor.view_mut().fill(0.0);
        tensor
    }

    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(data.len(), shape.len(), "{} numbers for shape {shape}", data.len());
        Tensor { storage: Arc::new(T::into_storage(data)), offset: 0, shape, pitch: shape.row_len() }
    }

    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_vec(vec![value], [1])
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    pub fn dtype(&self) -> DType {
        match &*self.storage {
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
        }
    }

    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// Elements from the start of one row to the start of the next.
    pub fn pitch(&self) -> usize {
        self.pitch
    }

    pub fn is_contiguous(&self) -> bool {
        self.pitch == self.shape.row_len() || self.shape.rows() <= 1
    }

    /// The numbers, padding between rows included where there is some.
    ///
    /// # Panics
    /// If the tensor is of another dtype.
    pub fn data<T: Element>(&self) -> &[T] {
        &T::slice(&self.storage)[self.offset..self.offset + span(self.shape, self.pitch)]
    }

    /// A copy of the numbers without padding.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        let (rows, row) = (self.shape.rows(), self.shape.row_len());
        let data = self.data::<T>();
        (0..rows).flat_map(|i| &data[i * self.pitch..i * self.pitch + row]).copied().collect()
    }

    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype() {
            DType::F32 => self.to_vec::<f32>().into_iter().map(f64::from).collect(),
            DType::F64 => self.to_vec::<f64>(),
        }
    }

    pub fn cast(&self, dtype: DType) -> Tensor {
        match dtype {
            DType::F32 => Tensor::from_vec(self.to_f64().into_iter().map(|v| v as f32).collect(), self.shape),
            DType::F64 => Tensor::from_vec(self.to_f64(), self.shape),
        }
    }

    /// A window of `shape` into this tensor that begins `offset` elements in, with rows `pitch` apart.
    pub fn window(&self, offset: usize, shape: impl Into<Shape>, pitch: usize) -> Tensor {
        let shape = shape.into();
        assert!(self.is_contiguous() && pitch >= shape.row_len(), "window {shape} with pitch {pitch}");
        assert!(offset + span(shape, pitch) <= self.shape.len(), "window {shape} at {offset} leaves {}", self.shape);
        Tensor { storage: self.storage.clone(), offset: self.offset + offset, shape, pitch }
    }

    /// The same numbers under another shape.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert!(self.is_contiguous() && shape.len() == self.shape.len(), "reshape {} to {shape}", self.shape);
        Tensor { shape, pitch: shape.row_len(), ..self.clone() }
    }

    /// Whether no other tensor looks into the same buffer.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage).is_some()
    }

    /// # Panics
    /// If another tensor looks into the same buffer: whoever writes must be alone.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        let range = self.offset..self.offset + span(self.shape, self.pitch);
        let storage = Arc::get_mut(&mut self.storage).expect("a tensor is written while another one reads its buffer");
        let data = match storage {
            Storage::F32(buffer) => DataMut::F32(&mut buffer[range]),
            Storage::F64(buffer) => DataMut::F64(&mut buffer[range]),
        };
        TensorMut { data, shape: self.shape, pitch: self.pitch }
    }

    /// Makes the buffer this tensor's own, by a copy if another tensor looks into it.
    pub fn make_unique(&mut self) {
        if !self.is_unique() {
            *self = self.copy();
        }
    }

    /// A tensor with the same numbers in a buffer of its own, without padding.
    pub fn copy(&self) -> Tensor {
        match self.dtype() {
            DType::F32 => self.copied::<f32>(),
            DType::F64 => self.copied::<f64>(),
        }
    }

    fn copied<T: Element>(&self) -> Tensor {
        let mut copy = Tensor::uninit(self.shape, self.dtype(), self.device());
        let row = self.shape.row_len().max(1);
        let source = self.data::<T>().chunks(self.pitch.max(1));
        for (to, from) in copy.view_mut().data::<T>().chunks_mut(row).zip(source) {
            to.copy_from_slice(&from[..to.len()]);
        }
        copy
    }
}

impl<'a> TensorMut<'a> {
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn pitch(&self) -> usize {
        self.pitch
    }

    pub fn dtype(&self) -> DType {
        match self.data {
            DataMut::F32(_) => DType::F32,
            DataMut::F64(_) => DType::F64,
        }
    }

    /// The numbers, padding between rows included where there is some.
    pub fn data<T: Element>(self) -> &'a mut [T] {
        T::slice_mut(self.data)
    }

    pub fn reborrow(&mut self) -> TensorMut<'_> {
        let data = match &mut self.data {
            DataMut::F32(data) => DataMut::F32(data),
            DataMut::F64(data) => DataMut::F64(data),
        };
        TensorMut { data, shape: self.shape, pitch: self.pitch }
    }

    /// A window like [`Tensor::window`].
    pub fn window(self, offset: usize, shape: impl Into<Shape>, pitch: usize) -> TensorMut<'a> {
        let shape = shape.into();
        let range = offset..offset + span(shape, pitch);
        let data = match self.data {
            DataMut::F32(data) => DataMut::F32(&mut data[range]),
            DataMut::F64(data) => DataMut::F64(&mut data[range]),
        };
        TensorMut { data, shape, pitch }
    }

    /// Overwrites this window with the numbers of `source`; neither may have padding.
    pub fn copy_from(self, source: &Tensor) {
        assert_eq!(self.shape, source.shape(), "copy");
        assert!(self.pitch == self.shape.row_len() && source.is_contiguous(), "copy of padded rows");
        match self.data {
            DataMut::F32(data) => data.copy_from_slice(source.data()),
            DataMut::F64(data) => data.copy_from_slice(source.data()),
        }
    }

    pub fn fill(self, value: f64) {
        match self.data {
            DataMut::F32(data) => data.fill(value as f32),
            DataMut::F64(data) => data.fill(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reads_its_rows_and_skips_the_padding() {
        let arena = Tensor::from_vec((0..12).map(|i| i as f32).collect(), [12]);
        let window = arena.window(4, [2, 3], 4);
        assert_eq!(window.to_vec::<f32>(), [4.0, 5.0, 6.0, 8.0, 9.0, 10.0]);
        assert_eq!(window.data::<f32>().len(), 7);
        assert!(!window.is_contiguous());
    }

    #[test]
    #[should_panic(expected = "leaves")]
    fn a_window_cannot_leave_its_tensor() {
        Tensor::from_vec(vec![0f32; 7], [7]).window(4, [2, 2], 2);
    }

    #[test]
    #[should_panic(expected = "another one reads")]
    fn a_shared_buffer_cannot_be_written() {
        let mut tensor = Tensor::from_vec(vec![0f32; 4], [4]);
        let _reader = tensor.window(0, [2], 1);
        tensor.view_mut();
    }

    #[test]
    fn a_written_copy_leaves_the_original_alone() {
        let original = Tensor::from_vec(vec![1f32, 2.0], [2]);
        let mut copy = original.clone();
        copy.make_unique();
        copy.view_mut().fill(7.0);
        assert_eq!(original.to_vec::<f32>(), [1.0, 2.0]);
        assert_eq!(copy.to_vec::<f32>(), [7.0, 7.0]);
    }
}
