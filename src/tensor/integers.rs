//! Whole numbers that accompany tensors: labels, the winners of max pooling, images as bytes.

use super::Device;
use crate::gpu::{self, Address};

/// `u8` or `u32`, on a device.
#[derive(Debug)]
pub struct Integers<T> {
    storage: Storage<T>,
    len: usize,
}

#[derive(Debug)]
enum Storage<T> {
    Cpu(Vec<T>),
    Gpu(gpu::Buffer),
}

impl<T: bytemuck::Pod> Integers<T> {
    pub fn from_vec(data: Vec<T>) -> Integers<T> {
        Integers { len: data.len(), storage: Storage::Cpu(data) }
    }

    /// To be overwritten: zeros on the CPU, anything on a GPU.
    pub fn uninit(len: usize, device: Device) -> Integers<T> {
        match device {
            Device::Cpu => Integers::from_vec(vec![T::zeroed(); len]),
            Device::Gpu(gpu) => Integers { storage: Storage::Gpu(gpu.allocate(len * size_of::<T>())), len },
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Gpu(buffer) => Device::Gpu(buffer.gpu()),
        }
    }

    /// # Panics
    /// If the numbers are on a GPU.
    pub fn data(&self) -> &[T] {
        match &self.storage {
            Storage::Cpu(data) => data,
            Storage::Gpu(_) => panic!("integers on a GPU are read as if they were on the CPU"),
        }
    }

    /// # Panics
    /// If the numbers are on a GPU.
    pub fn data_mut(&mut self) -> &mut [T] {
        match &mut self.storage {
            Storage::Cpu(data) => data,
            Storage::Gpu(_) => panic!("integers on a GPU are written as if they were on the CPU"),
        }
    }

    /// # Panics
    /// If the numbers are on the CPU.
    pub fn address(&self) -> Address {
        match &self.storage {
            Storage::Gpu(buffer) => buffer.address(),
            Storage::Cpu(_) => panic!("integers on the CPU have no address on a GPU"),
        }
    }

    pub fn to_vec(&self) -> Vec<T> {
        match &self.storage {
            Storage::Cpu(data) => data.clone(),
            Storage::Gpu(buffer) => {
                let mut data = vec![T::zeroed(); self.len];
                buffer.gpu().download(buffer.address(), bytemuck::cast_slice_mut(&mut data));
                data
            }
        }
    }

    /// Overwrites the numbers, wherever they are.
    pub fn write(&mut self, data: &[T]) {
        assert_eq!(data.len(), self.len, "integers");
        match &mut self.storage {
            Storage::Cpu(to) => to.copy_from_slice(data),
            Storage::Gpu(buffer) => buffer.gpu().upload(buffer.address(), bytemuck::cast_slice(data)),
        }
    }

    pub fn to_device(&self, device: Device) -> Integers<T> {
        let mut copy = Integers::uninit(self.len, device);
        copy.write(&self.to_vec());
        copy
    }
}
