//! AVX2 with FMA, and AVX-512: the only unsafe code of the crate.
//!
//! Two things here are unsafe. To *enter* a function that is compiled for an instruction set, the CPU must
//! have it: the token that every entry takes is the proof, because [`detect`](Avx2::detect) alone makes
//! one. And the *memory* intrinsics take raw pointers: each gets one made from a reference to as many
//! bytes as it touches, or a mask that covers no more elements than the slice has.
//!
//! Each instruction set has one list of its features (`avx2_features!`, `avx512_features!`). It feeds both
//! the detection and every function compiled for it, so they cannot differ.
#![expect(unsafe_code, reason = "instruction sets chosen at run time can be entered in no other way")]

/// Defines a token: detection, and the entry to kernels compiled for its features.
macro_rules! token {
    ([$($feature:tt)*] $(#[$attribute:meta])* $token:ident { f32: $f32:ident, f64: $f64:ident, registers: $registers:literal }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $token(());

        impl $token {
            /// The token, if this CPU has every feature of the list.
            pub(crate) fn detect() -> Option<Self> {
                ($(std::arch::is_x86_feature_detected!($feature))&&*).then_some(Self(()))
            }
        }

        impl Isa for $token {
            type F32 = $f32;
            type F64 = $f64;
            const SPECIALIZED: bool = true;
            const REGISTERS: usize = $registers;
            const FUSED: bool = true;

            #[inline]
            fn run<K: Kernel>(self, kernel: K) -> K::Output {
                $(#[target_feature(enable = $feature)])*
                #[inline(never)]
                fn enter<K: Kernel>(isa: $token, kernel: K) -> K::Output {
                    kernel.run(isa)
                }
                // SAFETY: `self` comes from `detect`, which saw every feature that `enter` is compiled for.
                unsafe { enter(self, kernel) }
            }

            #[inline(always)]
            fn transposed(self, rows: [$f64; BATCH]) -> [$f64; BATCH] {
                f64x8::transposed(self, rows)
            }

            #[inline(always)]
            fn prefetch<V>(self, value: &V) {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of every x86-64 CPU.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
            }

            #[inline(always)]
            fn fence(self) {
                // SAFETY: `sfence` is part of SSE, which every x86-64 CPU has.
                unsafe { std::arch::x86_64::_mm_sfence() };
            }
        }
    };
}

/// Defines functions compiled for a token's features, safe to call because they take the token, which their
/// bodies see by the name given.
macro_rules! functions {
    ($features:tt $token:ident as $isa:ident; $(fn $name:ident $arguments:tt $(-> $result:ty)? $body:block)*) => {
        $(function! { $features $token as $isa; $name $arguments ($($result)?) $body })*
    };
}

/// One of [`functions`].
macro_rules! function {
    ([$($feature:tt)*] $token:ident as $isa:ident; $name:ident($($argument:ident: $type:ty),*) ($($result:ty)?) $body:block) => {
        #[inline(always)]
        pub(super) fn $name($isa: $token, $($argument: $type),*) $(-> $result)? {
            $(#[target_feature(enable = $feature)])*
            #[inline]
            fn inner($isa: $token, $($argument: $type),*) $(-> $result)? {
                let _ = $isa;
                $body
            }
            // SAFETY: the token comes from `detect`, which saw every feature that `inner` is compiled for.
            unsafe { inner($isa, $($argument),*) }
        }
    };
}

/// Implements the arithmetic of a register by functions named after it.
macro_rules! register {
    ($register:ident($inner:ty), $token:ident, $element:ident, $lanes:literal, $functions:ident) => {
        /// A logical register with the token that proves its instruction set.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $register($inner, $token);

        impl std::ops::Add for $register {
            type Output = Self;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self($functions::add(self.1, self.0, other.0), self.1)
            }
        }

        impl std::ops::Sub for $register {
            type Output = Self;
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                Self($functions::sub(self.1, self.0, other.0), self.1)
            }
        }

        impl std::ops::Mul for $register {
            type Output = Self;
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self($functions::mul(self.1, self.0, other.0), self.1)
            }
        }

        impl Lanes<$element, $token> for $register {
            #[inline(always)]
            fn splat(isa: $token, value: $element) -> Self {
                Self($functions::splat(isa, value), isa)
            }

            #[inline(always)]
            fn load(isa: $token, chunk: &[$element; $lanes]) -> Self {
                Self($functions::load(isa, chunk), isa)
            }

            #[inline(always)]
            fn load_tail(isa: $token, tail: &[$element], fill: Self) -> Self {
                Self($functions::load_tail(isa, tail, fill.0), isa)
            }

            #[inline(always)]
            fn store(self, chunk: &mut [$element; $lanes]) {
                $functions::store(self.1, self.0, chunk);
            }

            #[inline(always)]
            fn store_tail(self, tail: &mut [$element]) {
                $functions::store_tail(self.1, self.0, tail);
            }

            #[inline(always)]
            fn stream(self, chunk: &mut [$element; $lanes]) {
                $functions::stream(self.1, self.0, chunk);
            }

            #[inline(always)]
            fn rotated(self, by: usize) -> Self {
                Self($functions::rotated(self.1, self.0, by), self.1)
            }

            #[inline(always)]
            fn with_first(self, other: Self, count: usize) -> Self {
                Self($functions::with_first(self.1, self.0, other.0, count), self.1)
            }

            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                Self($functions::mul_add(self.1, self.0, factor.0, addend.0), self.1)
            }

            #[inline(always)]
            fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                Self($functions::neg_mul_add(self.1, self.0, factor.0, addend.0), self.1)
            }

            #[inline(always)]
            fn sum(self) -> f64 {
                $functions::sum(self.1, self.0)
            }

            #[inline(always)]
            fn sums(isa: $token, registers: &[Self; BATCH]) -> F64x8 {
                F64x8($functions::sums(isa, registers), isa)
            }
        }
    };
}

/// Whether the CPU is one of AMD's.
pub(crate) fn is_amd() -> bool {
    // In a virtual machine the instruction takes microseconds.
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    })
}

/// Pages of 4 KiB whose addresses the second-level table of data (L2 DTLB) holds, where one of AMD's CPUs says.
///
/// (AMD64 Architecture Programmer's Manual, volume 3, appendix E.4.5: function `8000_0006h`, EBX, bits 27 to 16.)
pub(crate) fn addressed_pages() -> Option<usize> {
    const FUNCTION: u32 = 0x8000_0006;
    if !is_amd() || std::arch::x86_64::__cpuid(0x8000_0000).eax < FUNCTION {
        return None;
    }
    let pages = std::arch::x86_64::__cpuid(FUNCTION).ebx >> 16 & 0xfff;
    (pages > 0).then_some(pages as usize)
}

mod avx2;
mod avx512;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
