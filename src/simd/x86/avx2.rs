//! AVX2 with FMA: a logical register is two ymm, the lower lanes first; tails are masked.

use crate::simd::{BATCH, Isa, Kernel, Lanes};

macro_rules! avx2_features {
    ($macro:ident! { $($rest:tt)* }) => {
        $macro! { ["avx2" "fma"] $($rest)* }
    };
}

avx2_features! { token! {
    /// Proof that the CPU has AVX2 and FMA.
    Avx2 { f32: F32x16, f64: F64x8, registers: 8 }
} }

register!(F32x16([std::arch::x86_64::__m256; 2]), Avx2, f32, 16, f32x16);

mod f32x16 {
    use super::{Avx2, BATCH};
    use std::arch::x86_64::*;

    avx2_features! { functions! { Avx2 as isa;
        fn splat(value: f32) -> [__m256; 2] { [_mm256_set1_ps(value); 2] }
        fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn neg_mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])]
        }
        fn load(chunk: &[f32; 16]) -> [__m256; 2] {
            let (halves, _) = chunk.as_chunks::<8>();
            // SAFETY: each reference is to 32 readable bytes, and the load asks for no alignment.
            unsafe { [_mm256_loadu_ps(halves[0].as_ptr()), _mm256_loadu_ps(halves[1].as_ptr())] }
        }
        fn load_tail(tail: &[f32], fill: [__m256; 2]) -> [__m256; 2] {
            let (lower, upper) = tail.split_at(tail.len().min(8));
            let masks = [mask(isa, lower.len()), mask(isa, upper.len())];
            // SAFETY: each mask covers at most the elements of its half of the slice; others are not touched.
            let found = unsafe {
                [_mm256_maskload_ps(lower.as_ptr(), masks[0]), _mm256_maskload_ps(upper.as_ptr(), masks[1])]
            };
            [
                _mm256_blendv_ps(fill[0], found[0], _mm256_castsi256_ps(masks[0])),
                _mm256_blendv_ps(fill[1], found[1], _mm256_castsi256_ps(masks[1])),
            ]
        }
        fn store(a: [__m256; 2], chunk: &mut [f32; 16]) {
            let (halves, _) = chunk.as_chunks_mut::<8>();
            // SAFETY: each reference is to 32 writable bytes, and the store asks for no alignment.
            unsafe {
                _mm256_storeu_ps(halves[0].as_mut_ptr(), a[0]);
                _mm256_storeu_ps(halves[1].as_mut_ptr(), a[1]);
            }
        }
        fn store_tail(a: [__m256; 2], tail: &mut [f32]) {
            let (lower, upper) = tail.split_at_mut(tail.len().min(8));
            // SAFETY: each mask covers at most the elements of its half of the slice; others are not touched.
            unsafe {
                _mm256_maskstore_ps(lower.as_mut_ptr(), mask(isa, lower.len()), a[0]);
                _mm256_maskstore_ps(upper.as_mut_ptr(), mask(isa, upper.len()), a[1]);
            }
        }
        fn stream(a: [__m256; 2], chunk: &mut [f32; 16]) {
            assert!(chunk.as_ptr().addr().is_multiple_of(64));
            let (halves, _) = chunk.as_chunks_mut::<8>();
            // SAFETY: each reference is to 32 writable bytes, aligned as just asserted; `Isa::fence` orders
            // the stores before the result is handed to another thread.
            unsafe {
                _mm256_stream_ps(halves[0].as_mut_ptr(), a[0]);
                _mm256_stream_ps(halves[1].as_mut_ptr(), a[1]);
            }
        }
        fn rotated(a: [__m256; 2], by: usize) -> [__m256; 2] {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            // Of each index the instruction takes what is left of it modulo 8.
            let index = _mm256_sub_epi32(lanes, _mm256_set1_epi32(by as i32));
            let [lower, upper] = [_mm256_permutevar8x32_ps(a[0], index), _mm256_permutevar8x32_ps(a[1], index)];
            let crossed = _mm256_castsi256_ps(crossed(isa, by));
            [_mm256_blendv_ps(lower, upper, crossed), _mm256_blendv_ps(upper, lower, crossed)]
        }
        fn crossed(by: usize) -> __m256i {
            // Lanes that come from the other half: the first of each, or all others where `by` is a half or more.
            _mm256_xor_si256(mask(isa, by % 8), _mm256_set1_epi32(if by < 8 { 0 } else { -1 }))
        }
        fn with_first(a: [__m256; 2], b: [__m256; 2], count: usize) -> [__m256; 2] {
            let masks = [mask(isa, count), mask(isa, count.saturating_sub(8))].map(|mask| _mm256_castsi256_ps(mask));
            [_mm256_blendv_ps(a[0], b[0], masks[0]), _mm256_blendv_ps(a[1], b[1], masks[1])]
        }
        fn sum(a: [__m256; 2]) -> f64 {
            let four = four_sums(isa, a);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn sums(registers: &[super::F32x16; BATCH]) -> [__m256d; 2] {
            let mut fours = [_mm256_setzero_pd(); BATCH];
            for i in 0..BATCH {
                fours[i] = four_sums(isa, registers[i].0);
            }
            super::f64x8::sums_of_fours(isa, fours)
        }
        fn four_sums(a: [__m256; 2]) -> __m256d {
            let eight = _mm256_add_ps(a[0], a[1]);
            _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)))
        }
        fn mask(len: usize) -> __m256i {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(len.min(8) as i32), lanes)
        }
    } }
}

register!(F64x8([std::arch::x86_64::__m256d; 2]), Avx2, f64, 8, f64x8);

mod f64x8 {
    use super::{Avx2, BATCH};
    use std::arch::x86_64::*;

    avx2_features! { functions! { Avx2 as isa;
        fn splat(value: f64) -> [__m256d; 2] { [_mm256_set1_pd(value); 2] }
        fn add(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] { [_mm256_add_pd(a[0], b[0]), _mm256_add_pd(a[1], b[1])] }
        fn sub(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] { [_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])] }
        fn mul(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] { [_mm256_mul_pd(a[0], b[0]), _mm256_mul_pd(a[1], b[1])] }
        fn mul_add(a: [__m256d; 2], b: [__m256d; 2], c: [__m256d; 2]) -> [__m256d; 2] {
            [_mm256_fmadd_pd(a[0], b[0], c[0]), _mm256_fmadd_pd(a[1], b[1], c[1])]
        }
        fn neg_mul_add(a: [__m256d; 2], b: [__m256d; 2], c: [__m256d; 2]) -> [__m256d; 2] {
            [_mm256_fnmadd_pd(a[0], b[0], c[0]), _mm256_fnmadd_pd(a[1], b[1], c[1])]
        }
        fn load(chunk: &[f64; 8]) -> [__m256d; 2] {
            let (halves, _) = chunk.as_chunks::<4>();
            // SAFETY: each reference is to 32 readable bytes, and the load asks for no alignment.
            unsafe { [_mm256_loadu_pd(halves[0].as_ptr()), _mm256_loadu_pd(halves[1].as_ptr())] }
        }
        fn load_tail(tail: &[f64], fill: [__m256d; 2]) -> [__m256d; 2] {
            let (lower, upper) = tail.split_at(tail.len().min(4));
            let masks = [mask(isa, lower.len()), mask(isa, upper.len())];
            // SAFETY: each mask covers at most the elements of its half of the slice; others are not touched.
            let found = unsafe {
                [_mm256_maskload_pd(lower.as_ptr(), masks[0]), _mm256_maskload_pd(upper.as_ptr(), masks[1])]
            };
            [
                _mm256_blendv_pd(fill[0], found[0], _mm256_castsi256_pd(masks[0])),
                _mm256_blendv_pd(fill[1], found[1], _mm256_castsi256_pd(masks[1])),
            ]
        }
        fn store(a: [__m256d; 2], chunk: &mut [f64; 8]) {
            let (halves, _) = chunk.as_chunks_mut::<4>();
            // SAFETY: each reference is to 32 writable bytes, and the store asks for no alignment.
            unsafe {
                _mm256_storeu_pd(halves[0].as_mut_ptr(), a[0]);
                _mm256_storeu_pd(halves[1].as_mut_ptr(), a[1]);
            }
        }
        fn store_tail(a: [__m256d; 2], tail: &mut [f64]) {
            let (lower, upper) = tail.split_at_mut(tail.len().min(4));
            // SAFETY: each mask covers at most the elements of its half of the slice; others are not touched.
            unsafe {
                _mm256_maskstore_pd(lower.as_mut_ptr(), mask(isa, lower.len()), a[0]);
                _mm256_maskstore_pd(upper.as_mut_ptr(), mask(isa, upper.len()), a[1]);
            }
        }
        fn stream(a: [__m256d; 2], chunk: &mut [f64; 8]) {
            assert!(chunk.as_ptr().addr().is_multiple_of(64));
            let (halves, _) = chunk.as_chunks_mut::<4>();
            // SAFETY: each reference is to 32 writable bytes, aligned as just asserted; `Isa::fence` orders
            // the stores before the result is handed to another thread.
            unsafe {
                _mm256_stream_pd(halves[0].as_mut_ptr(), a[0]);
                _mm256_stream_pd(halves[1].as_mut_ptr(), a[1]);
            }
        }
        fn rotated(a: [__m256d; 2], by: usize) -> [__m256d; 2] {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            // Pairs of 32 bits; of each index the instruction takes what is left of it modulo 8.
            let index = _mm256_sub_epi32(lanes, _mm256_set1_epi32(2 * by as i32));
            let turned =
                a.map(|half| _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(half), index)));
            let crossed = _mm256_castsi256_pd(crossed(isa, by));
            [_mm256_blendv_pd(turned[0], turned[1], crossed), _mm256_blendv_pd(turned[1], turned[0], crossed)]
        }
        fn crossed(by: usize) -> __m256i {
            // Lanes that come from the other half: the first of each, or all others where `by` is a half or more.
            _mm256_xor_si256(mask(isa, by % 4), _mm256_set1_epi64x(if by < 4 { 0 } else { -1 }))
        }
        fn with_first(a: [__m256d; 2], b: [__m256d; 2], count: usize) -> [__m256d; 2] {
            let masks = [mask(isa, count), mask(isa, count.saturating_sub(4))].map(|mask| _mm256_castsi256_pd(mask));
            [_mm256_blendv_pd(a[0], b[0], masks[0]), _mm256_blendv_pd(a[1], b[1], masks[1])]
        }
        fn sum(a: [__m256d; 2]) -> f64 {
            let four = _mm256_add_pd(a[0], a[1]);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn sums(registers: &[super::F64x8; BATCH]) -> [__m256d; 2] {
            let mut fours = [_mm256_setzero_pd(); BATCH];
            for i in 0..BATCH {
                let [a, b] = registers[i].0;
                fours[i] = _mm256_add_pd(a, b);
            }
            sums_of_fours(isa, fours)
        }
        fn transposed(rows: [super::F64x8; BATCH]) -> [super::F64x8; BATCH] {
            let mut found = rows;
            for half in 0..2 {
                for i in 0..2 {
                    // Four rows of four columns: neighbours, and then pairs of them, side by side.
                    let (a, b) = (rows[4 * i].0[half], rows[4 * i + 1].0[half]);
                    let (c, d) = (rows[4 * i + 2].0[half], rows[4 * i + 3].0[half]);
                    let (even, odd) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
                    let (next_even, next_odd) = (_mm256_unpacklo_pd(c, d), _mm256_unpackhi_pd(c, d));
                    found[4 * half].0[i] = _mm256_permute2f128_pd::<0x20>(even, next_even);
                    found[4 * half + 1].0[i] = _mm256_permute2f128_pd::<0x20>(odd, next_odd);
                    found[4 * half + 2].0[i] = _mm256_permute2f128_pd::<0x31>(even, next_even);
                    found[4 * half + 3].0[i] = _mm256_permute2f128_pd::<0x31>(odd, next_odd);
                }
            }
            found
        }
        fn sums_of_fours(fours: [__m256d; BATCH]) -> [__m256d; 2] {
            let mut found = [_mm256_setzero_pd(); 2];
            for i in 0..2 {
                // Halves of two registers side by side, added; then the halves of those: register r ends in lane r.
                let pair = |a: __m256d, b: __m256d| {
                    _mm256_add_pd(_mm256_permute2f128_pd::<0x20>(a, b), _mm256_permute2f128_pd::<0x31>(a, b))
                };
                let (a, b) = (pair(fours[4 * i], fours[4 * i + 2]), pair(fours[4 * i + 1], fours[4 * i + 3]));
                found[i] = _mm256_add_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            }
            found
        }
        fn mask(len: usize) -> __m256i {
            let lanes = _mm256_setr_epi64x(0, 1, 2, 3);
            _mm256_cmpgt_epi64(_mm256_set1_epi64x(len.min(4) as i64), lanes)
        }
    } }
}
