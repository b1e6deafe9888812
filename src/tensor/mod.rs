//! Tensors as values: shape, dtype and device are data, never type parameters.
//!
//! A [`Tensor`] is a reference-counted window into a buffer: cloning it copies no number, and a layer's weights are
//! windows into the one arena that holds a whole network. Its rows (everything behind the first dimension) are
//! contiguous; from row to row lies `pitch`, which exceeds the row's length where an arena pads rows to 16 bytes.
//! Numbers change only through a [`TensorMut`], which exists once at a time.
//!
//! This module knows nothing of operations, networks or files.

mod arena;
mod buffer;
mod dtype;
mod integers;
mod shape;

use std::marker::PhantomData;
use std::sync::Arc;

use crate::gpu::{self, Address};

pub use crate::dtype::DType;
pub(crate) use arena::release;
pub use buffer::Buffer;
pub use dtype::Element;
pub use integers::Integers;
pub use shape::Shape;

/// Where a tensor's numbers live, and so which implementation of an op runs on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Host memory. `f32` runs the fast implementations, `f64` the reference.
    Cpu,
    /// A GPU's memory, or the emulator's.
    Gpu(gpu::Handle),
}

/// Which of an op's implementations runs on a tensor.
#[derive(Clone, Copy, Debug)]
pub enum Implementation {
    Cpu,
    Reference,
    Gpu(gpu::Handle),
}

impl Device {
    /// The first failure of the device, if there was one.
    pub fn check(self) -> Result<(), gpu::Failure> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => gpu.check(),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(gpu) => gpu.fmt(f),
        }
    }
}

#[derive(Debug)]
enum Storage {
    F32(Buffer<f32>),
    F64(Buffer<f64>),
    Gpu(gpu::Buffer),
}

#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
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
    Gpu { gpu: gpu::Handle, address: Address, dtype: DType, alone: PhantomData<&'a mut ()> },
}

/// What parts of a buffer on a GPU begin at multiples of, in bytes: a vector's size.
const PART_ALIGNMENT: usize = 16;

/// Bytes from the beginning of a part of a buffer on a GPU to the next one's.
pub fn part_bytes(numbers: usize, dtype: DType) -> usize {
    (numbers * dtype.size()).next_multiple_of(PART_ALIGNMENT)
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
        let storage = match (device, dtype) {
            (Device::Cpu, DType::F32) => Storage::F32(Buffer::recycled(shape.len())),
            (Device::Cpu, DType::F64) => Storage::F64(Buffer::recycled(shape.len())),
            (Device::Cpu, _) => panic!("{dtype} lives on GPUs only"),
            (Device::Gpu(_), DType::F64) => panic!("f64 lives on the CPU only"),
            (Device::Gpu(gpu), _) => Storage::Gpu(gpu.allocate(shape.len() * dtype.size())),
        };
        Tensor { storage: Arc::new(storage), dtype, offset: 0, shape, pitch: shape.row_len() }
    }

    /// Tensors to be overwritten, each on its own. On a GPU they lie one behind the other in one buffer, so that a kernel finds
    /// them all by its address; on the CPU, where a list of slices serves as well, each has its own.
    pub fn parts(shapes: &[Shape], dtype: DType, device: Device) -> Vec<Tensor> {
        let Device::Gpu(gpu) = device else {
            return shapes.iter().map(|&shape| Tensor::uninit(shape, dtype, device)).collect();
        };
        let sizes = shapes.iter().map(|shape| part_bytes(shape.len(), dtype));
        let buffers = gpu.allocate(sizes.clone().sum()).into_parts(sizes);
        let part = |(&shape, buffer): (&Shape, gpu::Buffer)| {
            let storage = Arc::new(Storage::Gpu(buffer));
            Tensor { storage, dtype, offset: 0, shape, pitch: shape.row_len() }
        };
        shapes.iter().zip(buffers).map(part).collect()
    }

    /// Whether tensors without padding lie as [`Tensor::parts`] makes them.
    pub fn are_parts(tensors: &[Tensor]) -> bool {
        let follows = |pair: &[Tensor]| match pair[0].device() {
            Device::Cpu => true,
            Device::Gpu(_) => {
                pair[0].address().offset(part_bytes(pair[0].shape.len(), pair[0].dtype)) == pair[1].address()
            }
        };
        let alike = |tensor: &Tensor| tensor.is_contiguous() && tensor.dtype == tensors[0].dtype;
        tensors.iter().all(alike) && tensors.windows(2).all(follows)
    }

    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let mut tensor = Tensor::uninit(shape, dtype, device);
        tensor.view_mut().fill(0.0);
        tensor
    }

    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(data.len(), shape.len(), "{} numbers for shape {shape}", data.len());
        let storage = Arc::new(T::into_storage(data));
        Tensor { storage, dtype: T::DTYPE, offset: 0, shape, pitch: shape.row_len() }
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

    /// Bytes of the numbers, without padding.
    pub fn bytes(&self) -> usize {
        self.shape.len() * self.dtype().size()
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> Device {
        match &*self.storage {
            Storage::F32(_) | Storage::F64(_) => Device::Cpu,
            Storage::Gpu(buffer) => Device::Gpu(buffer.gpu()),
        }
    }

    pub fn implementation(&self) -> Implementation {
        match &*self.storage {
            Storage::F32(_) => Implementation::Cpu,
            Storage::F64(_) => Implementation::Reference,
            Storage::Gpu(buffer) => Implementation::Gpu(buffer.gpu()),
        }
    }

    /// Where the first number lies in a GPU's memory.
    ///
    /// # Panics
    /// If the tensor is on the CPU.
    pub fn address(&self) -> Address {
        match &*self.storage {
            Storage::Gpu(buffer) => buffer.address().offset(self.offset * self.dtype.size()),
            _ => panic!("a tensor on the CPU has no address on a GPU"),
        }
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
    /// If the tensor is of another dtype, or not on the CPU.
    pub fn data<T: Element>(&self) -> &[T] {
        &T::slice(&self.storage)[self.offset..self.offset + span(self.shape, self.pitch)]
    }

    /// A copy of the numbers without padding.
    ///
    /// From a GPU they come as `f32`, whatever they are stored as; NaN if the device has failed.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        if let Device::Gpu(_) = self.device() {
            return self.to_cpu().to_vec();
        }
        let (rows, row) = (self.shape.rows(), self.shape.row_len());
        let data = self.data::<T>();
        (0..rows).flat_map(|i| &data[i * self.pitch..i * self.pitch + row]).copied().collect()
    }

    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype() {
            DType::F64 => self.to_vec::<f64>(),
            _ => self.to_vec::<f32>().into_iter().map(f64::from).collect(),
        }
    }

    /// The numbers as another dtype, on the same device, without padding.
    pub fn cast(&self, dtype: DType) -> Tensor {
        match (self.device(), dtype) {
            (Device::Gpu(gpu), _) => {
                let packed = if self.is_contiguous() { self.clone() } else { self.copy() };
                if self.dtype() == dtype {
                    return packed;
                }
                // What tensor cores may round is stored as f32.
                if matches!((self.dtype, dtype), (DType::F32, DType::TF32) | (DType::TF32, DType::F32)) {
                    return Tensor { dtype, ..packed };
                }
                let mut cast = Tensor::uninit(self.shape, dtype, self.device());
                let y = cast.view_mut().address();
                gpu.convert(packed.address(), self.dtype(), y, dtype, self.shape.len());
                cast
            }
            (Device::Cpu, DType::F32) => {
                Tensor::from_vec(self.to_f64().into_iter().map(|v| v as f32).collect(), self.shape)
            }
            (Device::Cpu, DType::F64) => Tensor::from_vec(self.to_f64(), self.shape),
            (Device::Cpu, _) => panic!("{dtype} lives on GPUs only"),
        }
    }

    /// The same numbers on another device; itself if it is there already. To the CPU they come as `f32`.
    pub fn to_device(&self, device: Device) -> Tensor {
        if self.device() == device {
            return self.clone();
        }
        match (self.device(), device) {
            (_, Device::Cpu) => self.to_cpu(),
            (Device::Cpu, Device::Gpu(_)) => {
                let mut tensor = Tensor::uninit(self.shape, DType::F32, device);
                tensor.view_mut().copy_from(&self.copy());
                tensor
            }
            (Device::Gpu(_), Device::Gpu(_)) => self.to_cpu().to_device(device),
        }
    }

    fn to_cpu(&self) -> Tensor {
        let Device::Gpu(gpu) = self.device() else { panic!("a tensor on the CPU is downloaded") };
        // In one piece, padding and all: a copy per row would take longer than the numbers.
        let count = span(self.shape, self.pitch);
        let whole = Tensor { shape: [count].into(), pitch: 1, ..self.clone() }.cast(DType::F32);
        let mut numbers = vec![0f32; count];
        gpu.download(whole.address(), bytemuck::cast_slice_mut(&mut numbers));
        match self.is_contiguous() {
            true => Tensor::from_vec(numbers, self.shape),
            false => Tensor::from_vec(numbers, [count]).window(0, self.shape, self.pitch).copy(),
        }
    }

    /// A window of `shape` into this tensor that begins `offset` elements in, with rows `pitch` apart.
    pub fn window(&self, offset: usize, shape: impl Into<Shape>, pitch: usize) -> Tensor {
        let shape = shape.into();
        assert!(self.is_contiguous() && pitch >= shape.row_len(), "window {shape} with pitch {pitch}");
        assert!(offset + span(shape, pitch) <= self.shape.len(), "window {shape} at {offset} leaves {}", self.shape);
        Tensor { offset: self.offset + offset, shape, pitch, ..self.clone() }
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
            Storage::Gpu(buffer) => {
                let address = buffer.address().offset(range.start * self.dtype.size());
                DataMut::Gpu { gpu: buffer.gpu(), address, dtype: self.dtype, alone: PhantomData }
            }
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
        match self.implementation() {
            Implementation::Cpu => self.copied::<f32>(),
            Implementation::Reference => self.copied::<f64>(),
            Implementation::Gpu(gpu) => {
                let mut copy = Tensor::uninit(self.shape, self.dtype(), self.device());
                let (to, size) = (copy.view_mut().address(), self.dtype().size());
                if self.is_contiguous() {
                    gpu.copy(to, self.address(), self.shape.len() * size);
                } else {
                    let row = self.shape.row_len();
                    for i in 0..self.shape.rows() {
                        gpu.copy(to.offset(i * row * size), self.address().offset(i * self.pitch * size), row * size);
                    }
                }
                copy
            }
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

    /// Bytes of the numbers, without padding.
    pub fn bytes(&self) -> usize {
        self.shape.len() * self.dtype().size()
    }

    pub fn pitch(&self) -> usize {
        self.pitch
    }

    pub fn is_contiguous(&self) -> bool {
        self.pitch == self.shape.row_len() || self.shape.rows() <= 1
    }

    pub fn dtype(&self) -> DType {
        match self.data {
            DataMut::F32(_) => DType::F32,
            DataMut::F64(_) => DType::F64,
            DataMut::Gpu { dtype, .. } => dtype,
        }
    }

    pub fn implementation(&self) -> Implementation {
        match self.data {
            DataMut::F32(_) => Implementation::Cpu,
            DataMut::F64(_) => Implementation::Reference,
            DataMut::Gpu { gpu, .. } => Implementation::Gpu(gpu),
        }
    }

    /// Where the first number lies in a GPU's memory.
    ///
    /// # Panics
    /// If the tensor is on the CPU.
    pub fn address(&self) -> Address {
        match self.data {
            DataMut::Gpu { address, .. } => address,
            _ => panic!("a tensor on the CPU has no address on a GPU"),
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
            DataMut::Gpu { gpu, address, dtype, .. } => {
                DataMut::Gpu { gpu, address: *address, dtype: *dtype, alone: PhantomData }
            }
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
            DataMut::Gpu { gpu, address, dtype, alone } => {
                assert!(range.end <= span(self.shape, self.pitch), "window {shape} at {offset} leaves {}", self.shape);
                DataMut::Gpu { gpu, address: address.offset(range.start * dtype.size()), dtype, alone }
            }
        };
        TensorMut { data, shape, pitch }
    }

    /// The first `at` elements and the rest, as vectors. There may be no padding.
    pub fn split_at(self, at: usize) -> (TensorMut<'a>, TensorMut<'a>) {
        let len = self.shape.len();
        assert!(self.pitch == self.shape.row_len() && at <= len, "split of {} at {at}", self.shape);
        let (first, second) = match self.data {
            DataMut::F32(data) => {
                let (first, second) = data.split_at_mut(at);
                (DataMut::F32(first), DataMut::F32(second))
            }
            DataMut::F64(data) => {
                let (first, second) = data.split_at_mut(at);
                (DataMut::F64(first), DataMut::F64(second))
            }
            DataMut::Gpu { gpu, address, dtype, alone } => {
                let second = address.offset(at * dtype.size());
                (DataMut::Gpu { gpu, address, dtype, alone }, DataMut::Gpu { gpu, address: second, dtype, alone })
            }
        };
        let vector = |data, len: usize| TensorMut { data, shape: [len].into(), pitch: 1 };
        (vector(first, at), vector(second, len - at))
    }

    /// Overwrites this window with the numbers of `source`, which has the same dtype and may be on the CPU; neither may
    /// have padding.
    pub fn copy_from(self, source: &Tensor) {
        assert_eq!(self.shape, source.shape(), "copy");
        assert!(self.pitch == self.shape.row_len() && source.is_contiguous(), "copy of padded rows");
        match self.data {
            DataMut::F32(data) => data.copy_from_slice(source.data()),
            DataMut::F64(data) => data.copy_from_slice(source.data()),
            DataMut::Gpu { gpu, address, dtype, .. } => {
                assert_eq!(dtype, source.dtype(), "copy to another dtype");
                match source.device() {
                    Device::Cpu => gpu.upload(address, bytemuck::cast_slice(source.data::<f32>())),
                    Device::Gpu(_) => gpu.copy(address, source.address(), self.shape.len() * dtype.size()),
                }
            }
        }
    }

    pub fn fill(self, value: f64) {
        match self.data {
            DataMut::F32(data) => data.fill(value as f32),
            DataMut::F64(data) => data.fill(value),
            DataMut::Gpu { gpu, address, dtype, .. } => {
                let count = span(self.shape, self.pitch);
                if value == 0.0 {
                    gpu.fill(address, 0, count * dtype.size());
                } else {
                    gpu.fill_numbers(address, dtype, count, value);
                }
            }
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

    /// A window without padding need not begin at a multiple of 16 bytes, as the arenas' rows do in f32 but not in bf16.
    #[cfg(feature = "emulator")]
    #[test]
    fn a_window_on_a_gpu_is_read_wherever_it_begins() {
        let gpu = gpu::Gpu::emulator(1).unwrap();
        let arena = Tensor::from_vec((0..40).map(|i| i as f32).collect(), [40]).to_device(Device::Gpu(gpu));
        let expected: Vec<f32> = (4..36).map(|i| i as f32).collect();
        for (dtype, to) in [(DType::BF16, DType::F32), (DType::F16, DType::F32), (DType::F32, DType::BF16)] {
            assert_eq!(arena.cast(dtype).window(4, [32], 1).cast(to).to_vec::<f32>(), expected, "{dtype}");
            assert_eq!(arena.cast(dtype).window(5, [31], 1).cast(to).to_vec::<f32>(), expected[1..], "{dtype}");
        }
        gpu.check().unwrap();
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
