//! The engine's interface to a device: memory, copies, launches, events and graphs, all in the order of one stream.
//!
//! There are two devices behind this interface: the NVIDIA driver (`cuda`) and the emulator
//! (`emulator`), which runs the same kernel sources on the CPU. Nothing above knows which one it talks to.

use std::fmt;

use super::Failure;
use super::tensor_map::{Mapped, TensorMap};
use crate::dtype::DType;

/// A place in a device's memory; what kernels get as a pointer.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Address(pub u64);

impl Address {
    pub const NULL: Address = Address(0);

    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// An entry point: kernel `name` of `kernels/<file>.cu`, compiled for activations stored as `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub file: &'static str,
    pub name: &'static str,
    pub dtype: DType,
}

impl Kernel {
    /// As the compiled code names it: `conv2d_fprop_bf16`.
    pub fn symbol(&self) -> String {
        format!("{}_{}", self.name, self.dtype)
    }
}

/// The blocks of a launch. Most kernels need no more than a number of threads, which converts into them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Threads of each, along one dimension.
    pub threads: u32,
    /// Bytes of shared memory of each, beyond what the kernel declares: its `DYNAMIC_SHARED`.
    pub dynamic_shared: u32,
    /// Blocks that run side by side as a cluster, by dimension of the grid, whose sizes are multiples of these. Clusters of
    /// more than one need compute capability 9.0, of more than [`Blocks::CLUSTER`] the kernel's consent.
    pub cluster: [u32; 3],
}

impl Blocks {
    /// The most bytes of shared memory that a block may have, declared and dynamic: of compute capability 9.0, as the CUDA
    /// programming guide's table says. Others have less (sm_80 163 KiB, sm_86 and sm_89 99 KiB).
    pub const SHARED: usize = 227 << 10;
    /// The most blocks of a cluster that every GPU with clusters takes.
    pub const CLUSTER: u32 = 8;

    pub fn with_dynamic_shared(self, bytes: u32) -> Blocks {
        Blocks { dynamic_shared: bytes, ..self }
    }

    pub fn in_clusters(self, cluster: [u32; 3]) -> Blocks {
        Blocks { cluster, ..self }
    }

    pub fn are_clustered(&self) -> bool {
        self.cluster != [1; 3]
    }
}

impl From<u32> for Blocks {
    fn from(threads: u32) -> Blocks {
        Blocks { threads, dynamic_shared: 0, cluster: [1; 3] }
    }
}

/// `4×1×1 blocks of 256`, with what else there is to say of them.
impl fmt::Display for Launch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([x, y, z], Blocks { threads, dynamic_shared, cluster: [a, b, c] }) = (self.grid, self.blocks);
        write!(f, "{x}×{y}×{z} blocks of {threads}")?;
        if dynamic_shared > 0 {
            write!(f, " with {dynamic_shared} bytes of dynamic shared memory")?;
        }
        if self.blocks.are_clustered() {
            write!(f, " in clusters of {a}×{b}×{c}")?;
        }
        write!(f, " of {}", self.kernel.symbol())
    }
}

/// One launch.
pub struct Launch<'a> {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub blocks: Blocks,
    /// The kernel's one parameter, a `#[repr(C)]` struct.
    pub parameters: &'a [u8],
}

/// The description of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub name: String,
    /// `sm_90a`; "host" for the emulator.
    pub architecture: String,
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    pub tensor_cores: TensorCores,
    /// Whether it runs what only sm_90a has: bulk copies by tensor maps, and products of warpgroups.
    pub warpgroups: bool,
}

/// How tensor cores add up products, which are exact.
///
/// A few products and the sum so far are brought to the largest exponent of them, cut off some bits behind those of a float, added, and
/// cut off to a float: nothing is rounded to nearest. How many at a time, and how many bits, depends on the architecture
/// (Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores", 2025, and their models A100TC, AdaTC, H100TC and B200TC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorCores {
    /// Each product is added by itself and rounded, as no tensor core does it.
    #[default]
    Rounding,
    /// sm_80 to sm_89: 8 products of 16 bits or 4 of tf32 at a time, one more bit.
    Ampere,
    /// sm_90 on: 16 products of 16 bits or 8 of tf32 at a time, two more bits.
    Hopper,
}

impl TensorCores {
    /// Those of a GPU. Of one that the sources do not know, the less exact.
    pub fn of(architecture: &str) -> TensorCores {
        match architecture {
            "sm_90" | "sm_90a" | "sm_100" => TensorCores::Hopper,
            _ => TensorCores::Ampere,
        }
    }

    /// Products of numbers of `dtype` that are added at a time.
    pub fn products(self, dtype: DType) -> usize {
        let of_16_bits = match self {
            TensorCores::Rounding => return 1,
            TensorCores::Ampere => 8,
            TensorCores::Hopper => 16,
        };
        if dtype.size() == 2 { of_16_bits } else { of_16_bits / 2 }
    }
}

/// A mark in the stream, to measure time with. Numbered by the driver that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub u64);

/// The two queues of a device, each of which does its work in order: everything, and uploads that run beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Work,
    Copies,
}

/// A point in a stream, which the other can wait for. Numbered by the driver that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u64);

/// The most bytes that are uploaded beside the work at a time.
pub const PIECE: usize = 4 << 20;

/// Recorded work, to be replayed. Numbered by the driver that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphId(pub u64);

/// Every function may be called from any thread; work is done in the order of the calls, asynchronously where the device
/// can; [`Driver::upload_beside`] alone goes by another queue. An error is final: whoever gets one does not use the device again.
pub trait Driver: Send + Sync {
    fn describe(&self) -> Description;

    /// At least `bytes`, aligned to 16 bytes or more.
    fn allocate(&self, bytes: usize) -> Result<Address, Failure>;

    fn free(&self, address: Address, bytes: usize);

    /// Memory of `bytes` that was in use is handed out again: a device that checks poisons it, in stream order.
    fn recycle(&self, _address: Address, _bytes: usize) -> Result<(), Failure> {
        Ok(())
    }

    /// Copies to the device. `bytes` may be reused when this returns.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Failure>;

    /// Copies at most [`PIECE`] bytes to the device in the order of [`Stream::Copies`], also while work is recorded. Until
    /// [`Stream::Work`] has waited for a mark behind it, `to` holds nothing.
    fn upload_beside(&self, to: Address, bytes: &[u8]) -> Result<(), Failure>;

    /// A mark behind all that a stream was given.
    fn mark(&self, of: Stream) -> Result<Mark, Failure>;

    /// Makes a stream wait for a mark of the other before what it is given from now on. Of the oldest marks a later one may take the
    /// place.
    fn wait(&self, stream: Stream, mark: Mark) -> Result<(), Failure>;

    /// Waits until uploads beside the work are done, also while work is recorded.
    fn settle_copies(&self) -> Result<(), Failure>;

    /// Waits for all earlier work and copies its result to the host.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Failure>;

    /// Copies on the device.
    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Failure>;

    /// Sets every byte.
    fn fill(&self, to: Address, byte: u8, bytes: usize) -> Result<(), Failure>;

    /// Compiles and loads what the kernel needs, if that has not happened yet.
    fn prepare(&self, kernel: Kernel) -> Result<(), Failure>;

    /// Whether it compiles kernels and keeps them.
    fn compiles_ahead(&self) -> bool {
        false
    }

    /// Compiles, side by side, what these kernels need, where that can be kept.
    fn compile_ahead(&self, _kernels: &[Kernel]) {}

    fn launch(&self, launch: &Launch) -> Result<(), Failure>;

    /// The tensor map of something that [`Mapped::check`] has passed; for a device with [`Description::warpgroups`].
    fn encode(&self, mapped: &Mapped) -> Result<TensorMap, Failure>;

    /// Waits for all work; an asynchronous fault of a kernel shows here at the latest.
    fn synchronize(&self) -> Result<(), Failure>;

    fn record_event(&self) -> Result<Event, Failure>;

    /// Waits for `to`.
    fn milliseconds(&self, from: Event, to: Event) -> Result<f32, Failure>;

    /// From here to [`Driver::end_capture`], launches, fills and copies on the device are recorded and not run; uploads,
    /// downloads and synchronising are errors.
    fn begin_capture(&self) -> Result<(), Failure>;

    fn end_capture(&self) -> Result<GraphId, Failure>;

    fn replay(&self, graph: GraphId) -> Result<(), Failure>;

    fn drop_graph(&self, graph: GraphId);
}
