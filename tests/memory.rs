//! The `_into` forms allocate nothing that grows with the rows.
#![allow(unsafe_code, reason = "an allocator that counts can be written in no other way")]

use llm_operator::{GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes that are alive, and the most that were.
struct Counting;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let alive = ALIVE.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(alive, Ordering::SeqCst);
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise about `pointer` and `layout` is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `call` had allocated at a time.
fn peak(call: impl FnOnce()) -> usize {
    let before = ALIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    call();
    PEAK.load(Ordering::SeqCst) - before
}

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
    [forward, plain, full]
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
            // A few queue blocks of rayon, and for each of two threads a batch of rows on its way past the caches (12 KiB),
            // whatever the shape.
            let pool = (16 << 10) + 2 * (12 << 10);
            assert!(forward <= pool, "{rows}x{width}: forward allocated {forward} bytes");
            assert!(plain <= pool, "{rows}x{width}: backward allocated {plain} bytes");
            let partials = 64 * 2 * width * size_of::<f32>();
            assert!(full <= partials + pool, "{rows}x{width}: backward with sums allocated {full} bytes");
        }
    }
}
