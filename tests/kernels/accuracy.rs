//! Each backend is within its stated bound of the exact answer, on ordinary and on hard rows.
//!
//! Bounds are in units in the last place (ULP) of the largest exact value: of the row for y and dx, of the array for
//! the parameter gradients.

use crate::support::exact::{self, Double, ulps};
use crate::support::{Case, Random, backends, boundary_widths};
use llm_operator::Element;

/// y and dx, of the row's largest value.
const ROW_ULPS: f64 = 4.0;
/// rstd.
const RSTD_ULPS: f64 = 4.0;
/// dgamma and dbeta, of the largest value of each.
const PARAMETER_ULPS: f64 = 8.0;

/// Runs a case on every backend; gives the worst errors of y and dx, rstd, and the parameter gradients.
fn check<T: Element>(case: &Case<T>, what: &str) -> [f64; 3] {
    let exact = exact::layer_norm(case);
    let mut worst = [0.0_f64; 3];
    for backend in backends() {
        let found = case.run(backend, 1);
        let rows = |found: &[T], exact: &[Double]| {
            let rows = found.chunks(case.width).zip(exact.chunks(case.width));
            rows.map(|(found, exact)| ulps(found, exact)).fold(0.0, f64::max)
        };
        let each = |found: &[T], exact: &[Double]| {
            found.iter().zip(exact).map(|(found, exact)| ulps(&[*found], &[*exact])).fold(0.0, f64::max)
        };
        let errors = [
            ("y", rows(&found.y, &exact.y), ROW_ULPS),
            ("dx", rows(&found.dx, &exact.dx), ROW_ULPS),
            ("rstd", each(&found.rstd, &exact.rstd), RSTD_ULPS),
            ("dgamma", ulps(&found.dgamma, &exact.dgamma), PARAMETER_ULPS),
            ("dbeta", ulps(&found.dbeta, &exact.dbeta), PARAMETER_ULPS),
        ];
        for (i, (name, error, bound)) in errors.into_iter().enumerate() {
            assert!(
                error <= bound,
                "{} {backend:?}, {what}: {name} is off by {error:.2} ULP, the bound is {bound}",
                T::NAME
            );
            let kind = [0, 0, 1, 2, 2][i];
            worst[kind] = worst[kind].max(error);
        }
    }
    worst
}

#[test]
fn ordinary_rows_of_every_width_are_within_the_bounds() {
    for width in boundary_widths() {
        // Of one element, dx is exactly 0, and there is no largest value to compare with.
        if width == 1 {
            continue;
        }
        check(&Case::<f32>::random(5, width, true, true, 1), &format!("width {width}"));
        check(&Case::<f64>::random(5, width, true, true, 2), &format!("width {width}"));
        check(&Case::<f32>::random(5, width, false, false, 3), &format!("width {width}, plain"));
        check(&Case::<f64>::random(5, width, false, false, 4), &format!("width {width}, plain"));
    }
}

/// The pilot of a short row is the mean of 16 elements in the middle, that of a longer one of its four quarters' first chunks.
#[test]
fn rows_far_from_their_pilot_are_within_the_bounds() {
    fn check_far<T: Element>(width: usize) {
        let mut case = Case::<T>::random(11, width, true, true, 9);
        for row in case.x.chunks_mut(width).step_by(2) {
            let places = if width < 1024 / size_of::<T>() {
                vec![width / 2 - 8]
            } else {
                (0..4).map(|k| k * (width / 4)).collect()
            };
            for place in places {
                for x in &mut row[place..place + 16] {
                    *x = T::from_f64(x.to_f64() + 1000.0);
                }
            }
        }
        check(&case, &format!("{} of width {width}, far", T::NAME));
    }
    for width in [48, 64, 100, 200, 256, 300, 768, 2000] {
        check_far::<f32>(width);
        check_far::<f64>(width);
    }
}

#[test]
fn wide_rows_are_within_the_bounds() {
    for width in [16_384, 65_536, 100_000] {
        let worst = check(&Case::<f32>::random(2, width, true, true, 1), &format!("width {width}"));
        println!("f32, width {width}: {worst:.2?} ULP (rows, rstd, parameters)");
        let worst = check(&Case::<f64>::random(2, width, true, true, 2), &format!("width {width}"));
        println!("f64, width {width}: {worst:.2?} ULP (rows, rstd, parameters)");
    }
}

/// So long that several threads share it.
#[test]
fn a_row_of_ten_million_elements_is_within_the_bounds() {
    let case = Case::<f32>::random(1, 10_000_000, true, true, 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let worst = pool.install(|| check(&case, "ten million elements"));
    println!("f32, width 10,000,000: {worst:.2?} ULP (rows, rstd, parameters)");
}

#[test]
fn rows_far_from_zero_are_within_the_bounds() {
    for width in [3, 17, 64, 768, 5000, 100_000] {
        for mean in [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, -1e8] {
            let mut case = Case::<f32>::random(3, width, true, true, 7);
            // At 1e8 the spacing of f32 is 8: the row needs a spread of more than that to be a row at all.
            let deviation = if f64::abs(mean) > 1e6 { 40.0 } else { 1.0 };
            case.x = Random(8).normals(3 * width, mean, deviation);
            check(&case, &format!("width {width}, mean {mean}"));
            let mut case = Case::<f64>::random(3, width, true, true, 9);
            case.x = Random(10).normals(3 * width, mean, 1.0);
            check(&case, &format!("width {width}, mean {mean}"));
        }
    }
}

#[test]
fn huge_and_tiny_rows_are_within_the_bounds() {
    // Of width 2 and without epsilon, dx is exactly 0: there is no largest value to compare with.
    for width in [3, 5, 16, 100, 768] {
        for scale in [1e-37, 1e-30, 1e-25, 1e-20, 1e-15, 1e10, 1e15, 1e19, 1e25, 1e30, 1e37] {
            let mut case = Case::<f32>::random(3, width, true, true, 11);
            case.epsilon = 0.0;
            // dx is of the size of dy / scale: dy brings it back into the range of the type.
            let dy_scale = f64::clamp(scale, 1e-30, 1e30);
            case.x = Random(12).normals(3 * width, scale, scale);
            case.dy = Random(13).normals(3 * width, 0.0, dy_scale);
            let exact = exact::layer_norm(&case);
            for backend in backends() {
                let found = case.run(backend, 0);
                for (name, found, exact) in [("y", &found.y, &exact.y), ("dx", &found.dx, &exact.dx)] {
                    for (found, exact) in found.chunks(width).zip(exact.chunks(width)) {
                        let error = ulps(found, exact);
                        assert!(
                            error <= ROW_ULPS,
                            "{backend:?}, width {width}, scale {scale}: {name} is off by {error} ULP"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn parameter_gradients_of_many_rows_are_within_the_bounds() {
    for (rows, width) in [(1000, 33), (10_000, 9), (100_000, 8)] {
        let worst = check(&Case::<f32>::random(rows, width, true, true, 21), &format!("{rows} rows"));
        println!("f32, {rows}x{width}: {worst:.2?} ULP (rows, rstd, parameters)");
        let worst = check(&Case::<f64>::random(rows, width, true, true, 22), &format!("{rows} rows"));
        println!("f64, {rows}x{width}: {worst:.2?} ULP (rows, rstd, parameters)");
    }
}

#[test]
fn parameter_gradients_of_equal_rows_are_within_the_bounds() {
    // Every addition of a constant rounds the same way: the worst case for a running sum.
    for value in [0.1, 0.3, 1.1, 2.0 / 3.0] {
        let mut case = Case::<f32>::random(100_000, 8, true, true, 23);
        case.dy.fill(value as f32);
        let exact = exact::layer_norm(&case);
        for backend in backends() {
            let found = case.run(backend, 0);
            let error = ulps(&found.dbeta, &exact.dbeta);
            println!("{backend:?}, dy {value}: dbeta is off by {error:.2} ULP");
            assert!(error <= PARAMETER_ULPS, "{backend:?}, dy {value}: dbeta is off by {error} ULP");
        }
    }
}
