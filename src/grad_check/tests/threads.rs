//! A report does not depend on the number of threads.

use super::super::{GradCheck, Mode, Report};
use super::layer_norm::{Bug, LayerNorm};
use crate::Element;
use crate::numpy_random::default_rng;

fn on_threads<T: Element>(threads: usize, operation: &LayerNorm, mode: Mode) -> Report {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (inputs, dy) = operation.data::<T>(&mut default_rng(5), |row, x| x * (1.0 + row as f64));
    pool.install(|| GradCheck::new().mode(mode).run(operation, &inputs, &dy).unwrap())
}

/// Every bit of a report: `Debug` prints the shortest digits that tell each number from all others.
fn bits<T: Element>(threads: usize, operation: &LayerNorm, mode: Mode) -> String {
    format!("{:?}", on_threads::<T>(threads, operation, mode))
}

#[test]
fn an_exhaustive_report_has_the_same_bits_on_any_number_of_threads() {
    for operation in [LayerNorm::affine(&[7, 9]), LayerNorm::new(&[5, 16]).with(Bug::OneElement)] {
        let expected = bits::<f64>(1, &operation, Mode::Exhaustive);
        let expected_f32 = bits::<f32>(1, &operation, Mode::Exhaustive);
        for threads in [2, 3, 8] {
            assert_eq!(bits::<f64>(threads, &operation, Mode::Exhaustive), expected);
            assert_eq!(bits::<f32>(threads, &operation, Mode::Exhaustive), expected_f32);
        }
    }
}
