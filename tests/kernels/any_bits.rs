//! Rows of any bits: results are within a bound that follows from the arithmetic, whatever the size of the elements, with NaN
//! and infinities where they are documented to be. The fuzz targets ask the same oracle, and print tests for this file.

use crate::support::call::{Bits, Call, Layout};
use crate::support::number::Number;
use crate::support::{Case, Outcome, Random, backends, bounds};
use llm_operator::{Element, Streaming, reference};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A row is one of these: of all finite bits, around one power of two, or neighbours of one number.
fn row<T: Bits>(random: &mut Random, width: usize) -> Vec<T> {
    let (least, most) = if T::NAME == "f32" { (-140, 126) } else { (-1060, 1022) };
    let exponent = least + (random.next() % (most - least) as u64) as i32;
    let kind = random.next() % 3;
    let size =
        if exponent < -1022 { 2.0_f64.powi(-1022) * 2.0_f64.powi(exponent + 1022) } else { 2.0_f64.powi(exponent) };
    let any = || match kind {
        0 => T::from_bits(random.next()),
        1 => T::from_f64(random.normal() * size),
        _ => T::from_bits(T::from_f64(size).to_bits() + random.next() % 5),
    };
    std::iter::repeat_with(any).filter(|value: &T| value.to_f64().is_finite()).take(width).collect()
}

fn random_call<T: Bits>(seed: u64, width: usize) -> Call<T> {
    let random = &mut Random(seed);
    let mut rows = |rows: usize| -> Vec<T> { (0..rows).flat_map(|_| row(random, width)).collect() };
    let (x, dy) = (rows(9), rows(9));
    let (gamma, beta) = (seed.is_multiple_of(2).then(|| rows(1)), seed.is_multiple_of(3).then(|| rows(1)));
    Call {
        case: Case { width, x, dy, gamma, beta, epsilon: [1e-5, 0.0, 1e-300, 1e20][seed as usize % 4] },
        backend: "portable",
        offset: seed as usize % 16,
        layout: [Layout::C, Layout::Fortran, Layout::Gaps(3), Layout::Steps(2), Layout::Reversed][seed as usize % 5],
        streaming: [Streaming::Auto, Streaming::Always][seed as usize % 2],
    }
}

const WIDTHS: [usize; 16] = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 129, 256, 300, 1025];

/// A call that failed, as a test to paste.
struct PrintedOnFailure<'a, T: Bits>(&'a Call<T>);

impl<T: Bits> Drop for PrintedOnFailure<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}", self.0);
        }
    }
}

fn any_finite_bits<T: Bits>() {
    for width in WIDTHS {
        for seed in 0..30 {
            for backend in backends() {
                let call = Call { backend: backend.name(), ..random_call::<T>(seed, width) };
                let _printed = PrintedOnFailure(&call);
                call.assert_forward_is_within_bounds();
                call.assert_backward_is_within_bounds();
            }
        }
    }
}

#[test]
fn any_finite_bits_in_f32_are_within_the_bounds() {
    any_finite_bits::<f32>();
}

#[test]
fn any_finite_bits_in_f64_are_within_the_bounds() {
    any_finite_bits::<f64>();
}

fn backends_agree(seeds: Range<u64>) {
    for width in WIDTHS {
        for seed in seeds.clone() {
            random_call::<f32>(seed, width).assert_backends_agree();
            random_call::<f64>(seed, width).assert_backends_agree();
        }
    }
}

#[test]
fn backends_agree_on_any_bits_in_any_layout() {
    backends_agree(0..2);
}

#[test]
fn backends_agree_on_any_bits_of_more_seeds() {
    backends_agree(2..10);
}

#[test]
fn nan_and_infinities_stay_where_they_are_documented_to_stay() {
    for width in [1, 2, 15, 16, 33, 300] {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for column in [0, width / 2, width - 1] {
                for backend in backends() {
                    let case = Case::<f32>::random(9, width, true, true, 3);
                    let (layout, streaming) = (Layout::C, Streaming::Never);
                    let mut call = Call { case, backend: backend.name(), offset: 0, layout, streaming };
                    call.case.x[2 * width + column] = value as f32;
                    call.case.dy[5 * width + column] = value as f32;
                    call.assert_forward_is_within_bounds();
                    call.assert_backward_is_within_bounds();
                    call.case.gamma.as_mut().unwrap()[column] = value as f32;
                    call.case.beta.as_mut().unwrap()[width - 1 - column] = value as f32;
                    call.assert_forward_is_within_bounds();
                    call.assert_backward_is_within_bounds();
                }
            }
        }
    }
}

/// Whether the oracle refuses an outcome with something done to it.
fn is_refused(case: &Case<f32>, found: &Outcome<f32>, spoil: impl Fn(&mut Outcome<f32>)) -> bool {
    let mut spoiled = found.clone();
    spoil(&mut spoiled);
    assert_ne!(&spoiled, found, "nothing was spoiled");
    let judged = catch_unwind(AssertUnwindSafe(|| {
        bounds::assert_forward(case, &spoiled, "spoiled");
        bounds::assert_backward(case, &spoiled, "spoiled");
    }));
    judged.is_err()
}

/// An oracle that accepts everything would make every test of it pass.
#[test]
fn the_oracle_refuses_what_is_wrong() {
    for width in [2, 15, 16, 17, 100, 300] {
        let case = Case::<f32>::random(9, width, true, true, 7);
        for backend in backends() {
            let right = case.run(backend, 0);
            bounds::assert_forward(&case, &right, "right");
            bounds::assert_backward(&case, &right, "right");
            let refused = |spoil: &dyn Fn(&mut Outcome<f32>)| is_refused(&case, &right, spoil);
            let last = 8 * width;
            assert!(refused(&|found| found.y[last] *= 1.001));
            assert!(refused(&|found| found.y[last..].fill(0.0)), "a dropped tail");
            assert!(refused(&|found| found.y.swap(last, last + 1)), "swapped lanes");
            assert!(refused(&|found| found.y[3] = f32::NAN));
            assert!(refused(&|found| found.mean[4] += 0.001));
            assert!(refused(&|found| found.rstd[4] *= 0.999));
            assert!(refused(&|found| found.dgamma[1] *= 1.001));
            assert!(refused(&|found| found.dbeta[0] *= -1.0));
            assert!(refused(&|found| found.dbeta[1] = f32::INFINITY));
            // Of two elements dx is all but 0.
            if width > 2 {
                assert!(refused(&|found| found.dx[last] *= -1.0));
                assert!(refused(&|found| found.dx.swap(last, last + 1)), "swapped lanes");
                assert!(refused(&|found| found.dx[last..].fill(0.0)), "a dropped tail");
            }
        }
    }
}

#[test]
fn numbers_hold_what_f64_cannot() {
    let huge = Number::of(1e308);
    let square = huge * huge;
    assert_eq!((square * square / square).sqrt().value(), 1e308);
    let tiny = Number::of(f64::from_bits(3));
    assert_eq!((tiny * tiny / tiny).value(), f64::from_bits(3));
    // (2^50 + 1)^2 - 2^100 = 2^51 + 1: 102 bits are held.
    let power = Number::power(50);
    let one = Number::of(1.0);
    assert!((power + one).squared() - power.squared() == Number::power(51) + one);
    assert!(Number::of(-2.0) < Number::ZERO && Number::ZERO < tiny && tiny < one && one < huge);
    assert_eq!(Number::of(2.0).sqrt().value(), std::f64::consts::SQRT_2);
    assert!((Number::of(2.0).sqrt().squared() - Number::of(2.0)).abs() < Number::power(-100));
    assert!((one / Number::of(3.0) * Number::of(3.0) - one).abs() < Number::power(-100));
}

/// The definition itself, where plain f64 loops are right.
#[test]
fn the_oracle_is_the_definition() {
    for width in [1, 2, 3, 16, 33, 300] {
        let case = Case::<f32>::random(9, width, true, true, 11);
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| value.to_f64()).collect() };
        let (x, dy, gamma) = (wide(&case.x), wide(&case.dy), case.gamma.as_deref().map(wide));
        let beta = case.beta.as_deref().map(wide);
        let forward = reference::forward(&x, width, gamma.as_deref(), beta.as_deref(), case.epsilon);
        let backward = reference::backward(&dy, &x, width, gamma.as_deref(), case.epsilon);
        let found = Outcome {
            y: forward.y,
            mean: forward.mean,
            rstd: forward.rstd,
            dx: if width == 1 { vec![0.0; 9] } else { backward.dx },
            dgamma: backward.dgamma,
            dbeta: backward.dbeta,
        };
        let case = Case { width, x, dy, gamma, beta, epsilon: case.epsilon };
        bounds::assert_forward(&case, &found, "reference");
        bounds::assert_backward(&case, &found, "reference");
    }
}

/// A product of elements that are nothing beside others of dy and gamma: found by `forward_matches_reference`.
#[test]
fn a_subnormal_y_is_rounded_as_subnormal_numbers_are() {
    let call = Call::<f64> {
        case: Case {
            width: 16,
            x: (0..16).map(|i| f64::from_bits(0x1920_0000_0000_0000 + i % 4)).collect(),
            dy: vec![1.0; 16],
            gamma: Some((0..16).map(|i| f64::from_bits(0x2a0e_951e_b39e_8d61 + (i << 52))).collect()),
            beta: None,
            epsilon: f64::EPSILON,
        },
        backend: "portable",
        offset: 0,
        layout: Layout::C,
        streaming: Streaming::Never,
    };
    call.assert_forward_is_within_bounds();
    call.assert_backward_is_within_bounds();
    call.assert_backends_agree();
}
