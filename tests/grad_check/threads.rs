//! A report does not depend on the number of threads.

use super::layer_norm::{Bug, LayerNorm};
use super::local::Whole;
use llm_operator::Element;
use llm_operator::grad_check::{GradCheck, Mode, Report};
use llm_operator::numpy_random::default_rng;

fn on_threads<T: Element>(threads: usize, operation: &LayerNorm, mode: Mode, whole: bool) -> Report {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (inputs, dy) = operation.data::<T>(&mut default_rng(5), |row, x| x * (1.0 + row as f64));
    let check = GradCheck::new().mode(mode);
    if whole {
        return pool.install(|| check.run(&Whole(operation.clone()), &inputs, &dy).unwrap());
    }
    pool.install(|| check.run(operation, &inputs, &dy).unwrap())
}

/// Every bit of a report: `Debug` prints the shortest digits that tell each number from all others.
fn bits<T: Element>(threads: usize, operation: &LayerNorm, mode: Mode) -> String {
    let by_blocks = on_threads::<T>(threads, operation, mode, false);
    format!("{by_blocks:?} {:?}", on_threads::<T>(threads, operation, mode, true))
}

#[test]
fn a_local_report_has_the_same_bits_on_any_number_of_threads() {
    for operation in [LayerNorm::affine(&[70, 9]), LayerNorm::new(&[200, 16]).with(Bug::OneElement)] {
        let expected = bits::<f64>(1, &operation, Mode::Local);
        let expected_f32 = bits::<f32>(1, &operation, Mode::Local);
        for threads in [2, 3, 8] {
            assert_eq!(bits::<f64>(threads, &operation, Mode::Local), expected);
            assert_eq!(bits::<f32>(threads, &operation, Mode::Local), expected_f32);
        }
    }
}

#[test]
fn reports_of_all_modes_have_the_same_bits_on_any_number_of_threads() {
    let operation = LayerNorm::affine(&[20, 13]);
    for mode in [Mode::Auto, Mode::Directional, Mode::Line] {
        let expected = bits::<f32>(1, &operation, mode);
        for threads in [2, 3] {
            assert_eq!(bits::<f32>(threads, &operation, mode), expected, "{mode}");
        }
    }
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
