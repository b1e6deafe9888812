//! The vector instructions that the matrix products of the CPU are made of: one trait, and an implementation for each instruction set.
//!
//! Where there are fused multiply-adds, every instruction set gives the same bits: the order of a sum does not depend on the width of a
//! vector. Without them each product is rounded before it is added.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Avx512,
    Avx2,
    Neon,
    /// What the compiler makes of plain loops, without fused multiply-adds.
    Portable,
}

impl Isa {
    pub const ALL: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// Whether this processor has it.
    pub fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            Isa::Portable => true,
            _ => false,
        }
    }

    /// Runs a job in its vectors.
    ///
    /// # Panics
    /// If this processor does not have it.
    pub fn run(self, job: impl Job) {
        assert!(self.is_here(), "no {self} here");
        // SAFETY: the instructions are there.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::avx512(job),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2(job),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => job.run::<std::arch::aarch64::float32x4_t>(),
                _ => job.run::<[f32; 4]>(),
            }
        }
    }

    /// Those that this processor has, the widest first.
    pub fn here() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_here())
    }

    /// The one that matrix products use: [`Isa::choose`]'s, or the widest.
    pub fn chosen() -> Isa {
        *CHOSEN.get_or_init(|| Isa::here().next().expect("every processor runs plain loops"))
    }

    /// Matrix products use this one from now on.
    ///
    /// # Errors
    /// If this processor does not have it.
    ///
    /// # Panics
    /// If products have been made already.
    pub fn choose(self) -> Result<()> {
        if !self.is_here() {
            let here: Vec<String> = Isa::here().map(|isa| isa.to_string()).collect();
            let hint = format!("it has {}", here.join(", "));
            return Err(Error::usage(format!("this processor has no {self}"), hint));
        }
        assert_eq!(*CHOSEN.get_or_init(|| self), self, "instruction sets are chosen before they are used");
        Ok(())
    }
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(name: &str) -> Result<Isa> {
        let known = || Isa::ALL.map(|isa| isa.to_string());
        Isa::ALL
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .ok_or_else(|| Error::unknown("instruction set", name, known()))
    }
}

/// Work that is done in vectors, of whichever instruction set.
pub trait Job {
    /// # Safety
    /// As of [`Vector`]'s methods. It is to be inlined always, which is what compiles it for the instructions.
    unsafe fn run<V: Vector>(self);
}

/// A vector of f32.
///
/// # Safety
/// Whoever calls a method runs on a processor that has the instructions, from a function compiled for them; pointers are valid for `LANES`
/// numbers, of any alignment.
// Its safety is told once, above, for all methods.
#[expect(clippy::missing_safety_doc)]
pub unsafe trait Vector: Copy {
    const ISA: Isa;
    const LANES: usize;

    unsafe fn splat(number: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Brings a line into the first level of the cache, if it is one.
    #[inline(always)]
    fn prefetch(from: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: of any address, it is a hint.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = from;
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · by + to`.
    unsafe fn mul_add(self, by: Self, to: Self) -> Self;
    /// 0 in place of what is not above it, but NaN stays.
    unsafe fn relu(self) -> Self;
}

/// Vectors of an instruction set: a type, its lanes, and the intrinsics in the order of the trait's methods.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! vector {
    (
        $isa:ident, $type:ty, $lanes:literal, $splat:path, $load:path, $store:path, $add:path, $sub:path, $mul:path,
        |$a:ident, $b:ident, $c:ident| $fma:expr, |$x:ident| $relu:expr
    ) => {
        // SAFETY: each method is one instruction, or two.
        unsafe impl Vector for $type {
            const ISA: Isa = Isa::$isa;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(number: f32) -> Self {
                // SAFETY: as the trait demands.
                unsafe { $splat(number) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as the trait demands.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as the trait demands.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: as the trait demands.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                // SAFETY: as the trait demands.
                unsafe { $sub(self, other) }
            }

            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: as the trait demands.
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, by: Self, to: Self) -> Self {
                let ($a, $b, $c) = (self, by, to);
                // SAFETY: as the trait demands.
                unsafe { $fma }
            }

            #[inline(always)]
            unsafe fn relu(self) -> Self {
                let $x = self;
                // SAFETY: as the trait demands.
                unsafe { $relu }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Isa, Job, Vector};

    vector!(
        Avx2,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        |a, b, c| _mm256_fmadd_ps(a, b, c),
        |x| _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(x, _mm256_setzero_ps()), x)
    );
    vector!(
        Avx512,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        |a, b, c| _mm512_fmadd_ps(a, b, c),
        |x| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(x, _mm512_setzero_ps()), x)
    );

    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(job: impl Job) {
        // SAFETY: the caller's promise.
        unsafe { job.run::<__m512>() }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(job: impl Job) {
        // SAFETY: the caller's promise.
        unsafe { job.run::<__m256>() }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Isa, Vector};

    vector!(
        Neon,
        float32x4_t,
        4,
        vdupq_n_f32,
        vld1q_f32,
        vst1q_f32,
        vaddq_f32,
        vsubq_f32,
        vmulq_f32,
        |a, b, c| vfmaq_f32(c, a, b),
        |x| vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcleq_f32(x, vdupq_n_f32(0.0))))
    );
}

// SAFETY: plain loops run everywhere.
unsafe impl<const N: usize> Vector for [f32; N] {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn splat(number: f32) -> Self {
        [number; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the trait demands.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] - other[lane])
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * other[lane])
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * by[lane] + to[lane])
    }

    #[inline(always)]
    unsafe fn relu(self) -> Self {
        self.map(|x| if x <= 0.0 { 0.0 } else { x })
    }
}
