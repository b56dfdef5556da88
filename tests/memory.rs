//! The `_into` forms allocate nothing that grows with the rows.
#![allow(unsafe_code, reason = "an allocator that counts can be written in no other way")]

#[path = "support/counting.rs"]
mod counting;

use counting::{Counting, peak};
use llm_operator::{GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The peaks of forward, of backward without and with parameter gradients.
fn peaks(rows: usize, width: usize) -> [usize; 3] {
    let len = rows * width;
    let x: Vec<f32> = (0..len).map(|i| (i % 97) as f32).collect();
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; len]);
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![0.0; rows]);
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![0.0; width]);
    let layer = LayerNorm::new(width);
    let forward = peak(|| {
        let statistics = StatisticsMut { mean: &mut mean, rstd: &mut rstd };
        layer.forward_into(&x, &mut y, Some(statistics)).unwrap();
    });
    let statistics = Statistics { mean: &mean, rstd: &rstd };
    let plain = peak(|| {
        let gradients = GradientsMut { dx: Some(GradientMut::Overwrite(&mut dx)), ..GradientsMut::default() };
        layer.backward_into(&y, &x, statistics, gradients).unwrap();
    });
    let full = peak(|| {
        let gradients = GradientsMut {
            dx: Some(GradientMut::Overwrite(&mut dx)),
            dgamma: Some(GradientMut::Overwrite(&mut dgamma)),
            dbeta: Some(GradientMut::Overwrite(&mut dbeta)),
        };
        layer.backward_into(&y, &x, statistics, gradients).unwrap();
    });
    [forward, plain, full].map(|(bytes, ())| bytes)
}

/// One test, so that no other allocates meanwhile.
#[test]
fn the_into_forms_allocate_nothing_that_grows_with_the_rows() {
    // rayon's own first allocations are not what is measured.
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    peaks(10_000, 100);
    for width in [8, 100, 1000] {
        for rows in [10, 1000, 20_000] {
            let [forward, plain, full] = peaks(rows, width);
            // A few queue blocks of rayon, and for each of two threads what a batch of rows has on its way past the caches
            // (32 KiB and the way to a multiple of 64 bytes), whatever the shape.
            let pool = (16 << 10) + 2 * ((32 << 10) + 64);
            assert!(forward <= pool, "{rows}x{width}: forward allocated {forward} bytes");
            assert!(plain <= pool, "{rows}x{width}: backward allocated {plain} bytes");
            let partials = 64 * 2 * width * size_of::<f32>();
            assert!(full <= partials + pool, "{rows}x{width}: backward with sums allocated {full} bytes");
        }
    }
    // Rows that the two threads share: the sums of their segments, three for each 16 KiB of eight rows, grow with the width.
    for width in [70_000, 500_000] {
        for rows in [1, 3, 5, 24] {
            let [forward, plain, full] = peaks(rows, width);
            let pool = (16 << 10) + 2 * ((32 << 10) + 64) + 8 * 24 * (width * size_of::<f32>()).div_ceil(16 << 10);
            assert!(forward <= pool, "{rows}x{width}: forward allocated {forward} bytes");
            assert!(plain <= pool, "{rows}x{width}: backward allocated {plain} bytes");
            // The parameter gradients of each sixteen rows, those that each of two threads is at, and gamma where there is none.
            let partials = (2 * (rows / 16).max(1) + 2 * 2 + 1) * width * size_of::<f32>() + (1 << 10);
            assert!(full <= partials + pool, "{rows}x{width}: backward with sums allocated {full} bytes");
        }
    }
}
