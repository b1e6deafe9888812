//! The merge on a GPU: `kernels/merge_blend.cu`, `kernels/merge.cu`, and the tables in device memory that they follow.
//!
//! Sums run in an order that the layout alone decides, never the device, so a result has the same bits on all of them; only
//! how a blend, which adds nothing across weights, is cut into chunks depends on the device. Tables are built when a GPU
//! first needs them: a step can be captured as a graph once it has run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::Pod;

use super::{Choice, Segment, Table, Term};
use crate::gpu::{self, Address, Handle};
use crate::tensor::Tensor;
use gradient::GradientTable;

mod blend;
mod constrain;
mod gradient;

pub(super) use blend::{blend, blend_in_parts};
pub(super) use constrain::{Means, constrain, constrain_backward};
pub(super) use gradient::{alpha_gradient, alpha_gradient_of_products, products};

const THREADS: usize = 256;
const WARP: usize = 32;
const FLOAT: usize = size_of::<f32>();

/// Something that is built once for each GPU.
#[derive(Debug)]
struct PerGpu<T>(Mutex<Vec<(Handle, Arc<T>)>>);

impl<T> Default for PerGpu<T> {
    fn default() -> PerGpu<T> {
        PerGpu(Mutex::default())
    }
}

impl<T> PerGpu<T> {
    fn get(&self, gpu: Handle, build: impl FnOnce() -> T) -> Arc<T> {
        let mut known = lock(&self.0);
        if let Some((_, it)) = known.iter().find(|(at, _)| *at == gpu) {
            return it.clone();
        }
        let it = Arc::new(build());
        known.push((gpu, it.clone()));
        it
    }
}

/// Nothing that panics while one of these locks is held leaves its content half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A list in device memory that does not change.
#[derive(Debug)]
struct List {
    buffer: gpu::Buffer,
    len: usize,
}

impl List {
    fn new<T: Pod>(gpu: Handle, entries: &[T]) -> List {
        let bytes: &[u8] = bytemuck::cast_slice(entries);
        let buffer = gpu.allocate(bytes.len());
        if !bytes.is_empty() {
            gpu.upload(buffer.address(), bytes);
        }
        List { buffer, len: entries.len() }
    }

    fn address(&self) -> Address {
        self.buffer.address()
    }
}

/// The tables that a [`Table`] keeps on GPUs.
#[derive(Debug, Default)]
pub(super) struct Tables {
    blend: PerGpu<List>,
    gradient: PerGpu<GradientTable>,
    /// By where products lie, which depends on what the network does with its filters. All are kept: a captured graph reads
    /// them for as long as it lives.
    of_products: PerGpu<Mutex<BTreeMap<Vec<Term>, Arc<GradientTable>>>>,
    /// Lists of the addresses of sources, all kept too.
    sources: PerGpu<Mutex<BTreeMap<Vec<Address>, Arc<List>>>>,
}

impl Tables {
    fn sources(&self, gpu: Handle, sources: &[&Tensor]) -> Arc<List> {
        let addresses: Vec<Address> = sources.iter().map(|source| source.address()).collect();
        let lists = self.sources.get(gpu, Mutex::default);
        let mut lists = lock(&lists);
        lists.entry(addresses).or_insert_with_key(|addresses| Arc::new(List::new(gpu, addresses))).clone()
    }

    fn of_products(&self, gpu: Handle, table: &Table, terms: &[Term]) -> Arc<GradientTable> {
        let known = self.of_products.get(gpu, Mutex::default);
        let mut known = lock(&known);
        if let Some(of_terms) = known.get(terms) {
            return of_terms.clone();
        }
        let of_terms = Arc::new(GradientTable::of_products(gpu, table, terms));
        known.insert(terms.to_vec(), of_terms.clone());
        of_terms
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2³²")
}

/// Where the α of a segment's row lie, and how far apart those of the next row.
fn alpha_of(segment: &Segment) -> Option<(usize, usize, usize)> {
    match segment.choice {
        Choice::Alpha { first, row_step, period } => Some((first, row_step, period)),
        Choice::Source(_) => None,
    }
}

fn is_aligned(addresses: impl IntoIterator<Item = Address>) -> u32 {
    addresses.into_iter().all(|address| address.0.is_multiple_of(16)).into()
}
