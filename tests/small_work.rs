//! Small work stays on the calling thread.
#![cfg(target_os = "linux")]

use llm_operator::LayerNorm;

/// The threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn forward(rows: usize, width: usize) {
    let (x, mut y) = (vec![1.5_f32; rows * width], vec![0.0_f32; rows * width]);
    LayerNorm::new(width).forward_into(&x, &mut y, None).unwrap();
}

/// One test: rayon starts its threads when it is first asked for one, and never ends them.
#[test]
fn small_work_starts_no_thread() {
    let before = threads();
    for (rows, width) in [(1, 1), (1, 768), (16, 64), (7, 1000), (256, 8)] {
        forward(rows, width);
        assert_eq!(threads(), before, "{rows}x{width}");
    }
    // Large work does, where there is more than one processor: so the count above can be seen to change.
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
        forward(4096, 1024);
        assert!(threads() > before);
    }
}
