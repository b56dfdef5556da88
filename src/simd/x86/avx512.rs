//! AVX-512: a logical register is one zmm; tails are masked.

use crate::simd::{BATCH, Isa, Kernel, Lanes};

macro_rules! avx512_features {
    ($macro:ident! { $($rest:tt)* }) => {
        $macro! { ["avx512f" "avx512dq" "avx512bw" "avx512vl" "avx2" "fma"] $($rest)* }
    };
}

avx512_features! { token! {
    /// Proof that the CPU has AVX-512 (F, DQ, BW, VL) and FMA.
    Avx512 { f32: F32x16, f64: F64x8, registers: 32 }
} }

register!(F32x16(std::arch::x86_64::__m512), Avx512, f32, 16, f32x16);

mod f32x16 {
    use super::{Avx512, BATCH};
    use std::arch::x86_64::*;

    avx512_features! { functions! { Avx512 as isa;
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn load(chunk: &[f32; 16]) -> __m512 {
            // SAFETY: the reference is to 64 readable bytes, and the load asks for no alignment.
            unsafe { _mm512_loadu_ps(chunk.as_ptr()) }
        }
        fn load_tail(tail: &[f32], fill: __m512) -> __m512 {
            let mask = first(tail.len());
            // SAFETY: the mask covers at most the slice's elements; others are not touched.
            unsafe { _mm512_mask_loadu_ps(fill, mask, tail.as_ptr()) }
        }
        fn store(a: __m512, chunk: &mut [f32; 16]) {
            // SAFETY: the reference is to 64 writable bytes, and the store asks for no alignment.
            unsafe { _mm512_storeu_ps(chunk.as_mut_ptr(), a) }
        }
        fn store_tail(a: __m512, tail: &mut [f32]) {
            let mask = first(tail.len());
            // SAFETY: the mask covers at most the slice's elements; others are not touched.
            unsafe { _mm512_mask_storeu_ps(tail.as_mut_ptr(), mask, a) }
        }
        fn stream(a: __m512, chunk: &mut [f32; 16]) {
            assert!(chunk.as_ptr().addr().is_multiple_of(64));
            // SAFETY: the reference is to 64 writable bytes, aligned as just asserted; `Isa::fence` orders
            // the store before the result is handed to another thread.
            unsafe { _mm512_stream_ps(chunk.as_mut_ptr(), a) }
        }
        fn rotated(a: __m512, by: usize) -> __m512 {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            // Of each index the instruction takes what is left of it modulo lanes.
            _mm512_permutexvar_ps(_mm512_sub_epi32(lanes, _mm512_set1_epi32(by as i32)), a)
        }
        fn with_first(a: __m512, b: __m512, count: usize) -> __m512 { _mm512_mask_blend_ps(first(count), a, b) }
        fn sum(a: __m512) -> f64 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let four = _mm256_cvtps_pd(four);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn sums(registers: &[super::F32x16; BATCH]) -> __m512d {
            // The halves of each register, added: where a register lies in memory each is a load, and nothing is moved between lanes.
            let mut halves = [_mm256_setzero_ps(); BATCH];
            for i in 0..BATCH {
                let register = registers[i].0;
                halves[i] = _mm256_add_ps(_mm512_castps512_ps256(register), _mm512_extractf32x8_ps::<1>(register));
            }
            // Four lanes each of registers 0 and 4, 2 and 6, 1 and 5, 3 and 7.
            let mut fours = [_mm512_setzero_pd(); 4];
            for i in 0..4 {
                let first = i / 2 + i % 2 * 2;
                let (a, b) = (halves[first], halves[first + 4]);
                let (lower, upper) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                fours[i] = _mm512_cvtps_pd(_mm256_add_ps(lower, upper));
            }
            super::f64x8::sums_of_fours(isa, fours)
        }
    } }

    /// The mask of the first `len` lanes; of all where `len` is more.
    #[inline(always)]
    fn first(len: usize) -> __mmask16 {
        ((1_u32 << len.min(16)) - 1) as __mmask16
    }
}

register!(F64x8(std::arch::x86_64::__m512d), Avx512, f64, 8, f64x8);

mod f64x8 {
    use super::{Avx512, BATCH};
    use std::arch::x86_64::*;

    avx512_features! { functions! { Avx512 as isa;
        fn splat(value: f64) -> __m512d { _mm512_set1_pd(value) }
        fn add(a: __m512d, b: __m512d) -> __m512d { _mm512_add_pd(a, b) }
        fn sub(a: __m512d, b: __m512d) -> __m512d { _mm512_sub_pd(a, b) }
        fn mul(a: __m512d, b: __m512d) -> __m512d { _mm512_mul_pd(a, b) }
        fn mul_add(a: __m512d, b: __m512d, c: __m512d) -> __m512d { _mm512_fmadd_pd(a, b, c) }
        fn neg_mul_add(a: __m512d, b: __m512d, c: __m512d) -> __m512d { _mm512_fnmadd_pd(a, b, c) }
        fn load(chunk: &[f64; 8]) -> __m512d {
            // SAFETY: the reference is to 64 readable bytes, and the load asks for no alignment.
            unsafe { _mm512_loadu_pd(chunk.as_ptr()) }
        }
        fn load_tail(tail: &[f64], fill: __m512d) -> __m512d {
            let mask = first(tail.len());
            // SAFETY: the mask covers at most the slice's elements; others are not touched.
            unsafe { _mm512_mask_loadu_pd(fill, mask, tail.as_ptr()) }
        }
        fn store(a: __m512d, chunk: &mut [f64; 8]) {
            // SAFETY: the reference is to 64 writable bytes, and the store asks for no alignment.
            unsafe { _mm512_storeu_pd(chunk.as_mut_ptr(), a) }
        }
        fn store_tail(a: __m512d, tail: &mut [f64]) {
            let mask = first(tail.len());
            // SAFETY: the mask covers at most the slice's elements; others are not touched.
            unsafe { _mm512_mask_storeu_pd(tail.as_mut_ptr(), mask, a) }
        }
        fn stream(a: __m512d, chunk: &mut [f64; 8]) {
            assert!(chunk.as_ptr().addr().is_multiple_of(64));
            // SAFETY: the reference is to 64 writable bytes, aligned as just asserted; `Isa::fence` orders
            // the store before the result is handed to another thread.
            unsafe { _mm512_stream_pd(chunk.as_mut_ptr(), a) }
        }
        fn rotated(a: __m512d, by: usize) -> __m512d {
            let lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
            // Of each index the instruction takes what is left of it modulo lanes.
            _mm512_permutexvar_pd(_mm512_sub_epi64(lanes, _mm512_set1_epi64(by as i64)), a)
        }
        fn with_first(a: __m512d, b: __m512d, count: usize) -> __m512d { _mm512_mask_blend_pd(first(count), a, b) }
        fn sum(a: __m512d) -> f64 {
            let four = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd::<1>(a));
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn sums(registers: &[super::F64x8; BATCH]) -> __m512d {
            // Halves of two registers side by side, added.
            let pair = |a: __m512d, b: __m512d| {
                _mm512_add_pd(_mm512_shuffle_f64x2::<0x44>(a, b), _mm512_shuffle_f64x2::<0xee>(a, b))
            };
            let mut fours = [_mm512_setzero_pd(); 4];
            for i in 0..2 {
                fours[2 * i] = pair(registers[i].0, registers[i + 4].0);
                fours[2 * i + 1] = pair(registers[i + 2].0, registers[i + 6].0);
            }
            sums_of_fours(isa, fours)
        }
        fn transposed(rows: [super::F64x8; BATCH]) -> [super::F64x8; BATCH] {
            let lower_pairs = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let upper_pairs = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            let mut found = rows;
            for half in 0..2 {
                // Four columns of rows i and i + 4 side by side; then pairs of those; then the four.
                let mut fours = [_mm512_setzero_pd(); 4];
                for i in 0..4 {
                    let (a, b) = (rows[i].0, rows[i + 4].0);
                    fours[i] =
                        if half == 0 { _mm512_shuffle_f64x2::<0x44>(a, b) } else { _mm512_shuffle_f64x2::<0xee>(a, b) };
                }
                let even = [_mm512_unpacklo_pd(fours[0], fours[1]), _mm512_unpacklo_pd(fours[2], fours[3])];
                let odd = [_mm512_unpackhi_pd(fours[0], fours[1]), _mm512_unpackhi_pd(fours[2], fours[3])];
                found[4 * half].0 = _mm512_permutex2var_pd(even[0], lower_pairs, even[1]);
                found[4 * half + 1].0 = _mm512_permutex2var_pd(odd[0], lower_pairs, odd[1]);
                found[4 * half + 2].0 = _mm512_permutex2var_pd(even[0], upper_pairs, even[1]);
                found[4 * half + 3].0 = _mm512_permutex2var_pd(odd[0], upper_pairs, odd[1]);
            }
            found
        }
        fn sums_of_fours(fours: [__m512d; 4]) -> __m512d {
            // Four lanes each of registers 0 and 4, 2 and 6, 1 and 5, 3 and 7: halves of four registers side by side, added.
            let mut quarters = [_mm512_setzero_pd(); 2];
            for i in 0..2 {
                let (a, b) = (fours[2 * i], fours[2 * i + 1]);
                quarters[i] = _mm512_add_pd(_mm512_shuffle_f64x2::<0x88>(a, b), _mm512_shuffle_f64x2::<0xdd>(a, b));
            }
            // Lanes of quarters[i]: two each of registers i, i + 4, i + 2, i + 6.
            let (a, b) = (quarters[0], quarters[1]);
            let sums = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            // Lanes: registers 0, 1, 4, 5, 2, 3, 6, 7.
            _mm512_shuffle_f64x2::<0b11_01_10_00>(sums, sums)
        }
    } }

    /// The mask of the first `len` lanes; of all where `len` is more.
    #[inline(always)]
    fn first(len: usize) -> __mmask8 {
        ((1_u32 << len.min(8)) - 1) as __mmask8
    }
}
