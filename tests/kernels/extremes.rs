//! Finite input at the ends of the range gives finite output within the same bounds: subnormal and huge x, dy and
//! gamma, constant rows of any size, widths at which the terms of dx cancel.

use crate::support::exact::{self, Double, ulps};
use crate::support::{Case, Random, backends};
use llm_operator::Element;

/// The worst error of the rows of an array on any backend, in ULP of the row's largest exact value.
fn worst<T: Element>(case: &Case<T>, dx: bool) -> f64 {
    let exact = exact::layer_norm(case);
    let mut worst = 0.0_f64;
    for backend in backends() {
        let found = case.run(backend, 0);
        let (found, exact) = if dx { (&found.dx, &exact.dx) } else { (&found.y, &exact.y) };
        for (found, exact) in found.chunks(case.width).zip(exact.chunks(case.width)) {
            worst = worst.max(ulps(found, exact));
        }
    }
    worst
}

#[test]
fn subnormal_rows_with_an_ordinary_epsilon() {
    for width in [5, 64, 300] {
        for scale in [1e-20, 1e-30, 1e-37, 1e-39, 1e-41, 1e-43] {
            let mut case = Case::<f32>::random(4, width, true, false, 1);
            case.x = Random(2).normals(4 * width, 0.0, scale);
            let error = worst(&case, false);
            assert!(error <= 4.0, "f32, width {width}, scale {scale}: y is off by {error} ULP");
        }
    }
}

#[test]
fn tiny_gradients() {
    for width in [5, 64, 300] {
        for (dy, gamma, x) in [(1e-40, 1.0, 1e-2), (1e-40, 1.0, 1e-5), (1e-42, 1.0, 1.0), (1e-30, 1e-12, 1e-5)] {
            let mut case = Case::<f32>::random(4, width, false, false, 1);
            case.epsilon = 1e-12;
            case.x = Random(2).normals(4 * width, 0.0, x);
            case.dy = Random(3).normals(4 * width, 0.0, dy);
            case.gamma = Some(Random(4).normals(width, gamma, gamma / 3.0));
            let error = worst(&case, true);
            assert!(error <= 4.0, "width {width}, dy {dy}, gamma {gamma}, x {x}: dx is off by {error} ULP");
        }
    }
}

/// dx of rows times 2^`x` and gradients times 2^`dy` is 2^`dy - x` times that of the rows and gradients themselves: without
/// `epsilon` that is exact, wherever all of them are normal numbers.
fn dx_takes_powers_of_two<T: Element>(powers: impl Fn(i32, i32) -> bool, largest: i32, step: usize) {
    for (width, gamma) in [(16, true), (33, false), (33, true), (300, true)] {
        let mut case = Case::<T>::random(9, width, gamma, false, 1);
        case.epsilon = 0.0;
        let exact = exact::layer_norm(&case).dx;
        let times = |values: &[T], power: i32| -> Vec<T> {
            // In two steps: each is a normal number.
            let half = 2.0_f64.powi(power / 2);
            let rest = 2.0_f64.powi(power - power / 2);
            values.iter().map(|value| T::from_f64(value.to_f64() * half * rest)).collect()
        };
        for x in (-largest..=largest).step_by(step) {
            for dy in (-largest..=largest).step_by(step).filter(|&dy| powers(x, dy)) {
                let scaled = Case { x: times(&case.x, x), dy: times(&case.dy, dy), ..case.clone() };
                for backend in backends() {
                    let found = scaled.run(backend, 0).dx;
                    let found = times(&found, x - dy);
                    for (row, (found, exact)) in found.chunks(width).zip(exact.chunks(width)).enumerate() {
                        let error = ulps(found, exact);
                        assert!(
                            error <= 4.0,
                            "{backend:?}, width {width}, x 2^{x}, dy 2^{dy}, row {row}: off by {error} ULP"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn dx_of_rows_and_gradients_of_all_sizes() {
    dx_takes_powers_of_two::<f32>(|x, dy| (-110..=120).contains(&(dy - x)), 110, 10);
    dx_takes_powers_of_two::<f64>(|x, dy| (-900..=1000).contains(&(dy - x)), 900, 60);
}

#[test]
fn constant_rows_of_any_size_keep_their_epsilon() {
    for width in [1, 2, 4, 15, 16, 64] {
        for value in [1e-300, 1e100, 1e155, 1e160, 1e300, 1e308] {
            for epsilon in [1e-5, 1e-280] {
                let mut case = Case::<f64>::random(2, width, true, true, 3);
                case.epsilon = epsilon;
                case.x.fill(value);
                for backend in backends() {
                    let found = case.run(backend, 0);
                    let rstd = 1.0 / epsilon.sqrt();
                    assert!((found.rstd[0] / rstd - 1.0).abs() < 1e-15, "width {width}, {value}: {}", found.rstd[0]);
                    assert_eq!(found.mean[0], value);
                    assert_eq!(found.y[..width], case.beta.as_ref().unwrap()[..]);
                    // xhat is 0: dx = rstd (g - mean(g)).
                    let gamma = case.gamma.as_ref().unwrap();
                    let g: Vec<Double> =
                        (0..width).map(|j| Double::from(case.dy[j]) * Double::from(gamma[j])).collect();
                    let sum = g.iter().fold(Double::default(), |sum, &g| sum + g);
                    let mean = sum / Double::from(width as f64);
                    let expected: Vec<Double> = g.iter().map(|&g| (g - mean) * Double::from(rstd)).collect();
                    if width > 1 {
                        assert!(ulps(&found.dx[..width], &expected) <= 4.0, "width {width}, {value}, {epsilon}");
                    }
                }
            }
        }
    }
}

#[test]
fn huge_parameters_and_gradients() {
    for width in [4, 15, 16, 64] {
        for scale in [1e300, 1e307] {
            let mut case = Case::<f64>::random(1, width, true, true, 5);
            case.gamma = Some(Random(6).normals(width, 0.0, scale));
            assert!(worst(&case, false) <= 4.0, "width {width}, gamma {scale}");
            let mut case = Case::<f64>::random(1, width, false, false, 7);
            case.dy = Random(8).normals(width, 0.0, scale);
            // dx is as large as dy / deviation.
            case.x = Random(9).normals(width, 0.0, 1e3);
            let expected = reduced(&case, scale);
            for backend in backends() {
                let found = case.run(backend, 0);
                let dx: Vec<f64> = found.dx.iter().map(|dx| dx / scale).collect();
                assert!(ulps(&dx, &expected.dx) <= 6.0, "{backend:?}, width {width}, dy {scale}: dx");
                let dgamma: Vec<f64> = found.dgamma.iter().map(|value| value / scale).collect();
                assert!(ulps(&dgamma, &expected.dgamma) <= 8.0, "{backend:?}, width {width}, dy {scale}: dgamma");
            }
        }
    }
}

/// The exact answer for dy / scale: the pairs of the test's own arithmetic overflow where dy is huge.
fn reduced(case: &Case<f64>, scale: f64) -> crate::support::Outcome<Double> {
    let mut reduced = case.clone();
    for dy in &mut reduced.dy {
        *dy /= scale;
    }
    exact::layer_norm(&reduced)
}

/// `g - mean(g) - xhat mean(g xhat)` is out of the range, though neither its terms are nor dx, and the sums of `g` cancel, in
/// one lane or in several.
#[test]
fn dx_is_finite_where_what_it_is_made_of_is_not() {
    // Eight times what is just in the range is what is added up; beside it others vanish, or take the sum out of the range.
    let [quarter, eighth] = [4.0, 8.0].map(|part| f32::MAX / part);
    let sizes = [
        (f32::MAX, 1e37),
        (quarter, 1e37),
        (quarter.next_up(), 1e37),
        (eighth, 1e37),
        (eighth, 1e29),
        (eighth.next_up(), 1e29),
    ];
    for width in [16, 20, 64, 256, 768, 5000] {
        for (column, partner) in [(0, 7), (width / 3, 16), (width - 1, 64)] {
            for (gamma, (size, others)) in [false, true].into_iter().flat_map(|gamma| sizes.map(|size| (gamma, size))) {
                let mut case = Case::<f32>::random(12, width, gamma, false, 15);
                case.epsilon = 2.0;
                case.dy = Random(16).normals(12 * width, 0.0, others);
                if let Some(gamma) = &mut case.gamma {
                    gamma.fill(if size == f32::MAX { 0.99 } else { 1.0 });
                }
                for row in 0..12 {
                    let dy = if row % 2 == 0 { size } else { -size };
                    // So that the sum of all stays in the range.
                    case.dy[row * width + (column + partner) % width] = -dy;
                    case.dy[row * width + column] = dy;
                }
                let error = worst(&case, true);
                assert!(error <= 4.0, "width {width}, column {column}, gamma {gamma}: dx is off by {error} ULP");
                // Of f64 the same, by numbers that are larger by a power of two.
                let scale = 2.0_f64.powi(1023 - 127);
                let double = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
                let mut small = Case::<f64>::random(12, width, gamma, false, 15);
                small.epsilon = 2.0;
                small.gamma = case.gamma.as_deref().map(double);
                small.dy = double(&case.dy);
                let mut huge = small.clone();
                huge.dy.iter_mut().for_each(|dy| *dy *= scale);
                for backend in backends() {
                    let (small, huge) = (small.run(backend, 0), huge.run(backend, 0));
                    for (small, huge) in small.dx.iter().zip(&huge.dx) {
                        let error = (huge / scale - small).abs();
                        assert!(error <= 1e-15 * f64::from(f32::MAX), "{backend:?}, width {width}: {huge}");
                    }
                }
            }
        }
    }
}

/// The same of long rows, which eight threads share.
#[test]
fn dx_of_shared_rows_is_finite_where_what_it_is_made_of_is_not() {
    let width = 70_000;
    let mut case = Case::<f32>::random(3, width, true, false, 17);
    case.epsilon = 2.0;
    case.dy = Random(18).normals(3 * width, 0.0, 1e35);
    case.dy[width + 5] = f32::MAX;
    case.dy[width + 5 + 16] = -f32::MAX;
    case.gamma.as_mut().unwrap().fill(1.0);
    // So that the sum of the products stays in the range, too.
    case.x[width + 5 + 16] = case.x[width + 5];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
    let error = pool.install(|| worst(&case, true));
    assert!(error <= 4.0, "dx is off by {error} ULP");
}

#[test]
fn of_two_elements_dx_is_what_epsilon_leaves() {
    // dx = +-rstd^3 epsilon (g0 - g1) / 2: PyTorch and others give rounding noise.
    for (x, epsilon) in [([1e3, -1e3], 1e-5), ([1e4, 3e4], 1e-5), ([1e10, 3e10], 1e-5), ([1.0, 1.5], 1e-12)] {
        let deviation: f64 = (f64::from(x[1] as f32) - f64::from(x[0] as f32)) / 2.0;
        let rstd = 1.0 / (deviation * deviation + epsilon).sqrt();
        let expected = rstd.powi(3) * epsilon * (1.25 - 0.5) / 2.0;
        for backend in backends() {
            let case = Case::<f32> {
                width: 2,
                x: x.map(|x| x as f32).to_vec(),
                dy: vec![1.25, 0.5],
                gamma: None,
                beta: None,
                epsilon,
            };
            let found = case.run(backend, 0).dx.iter().map(|&dx| f64::from(dx)).collect::<Vec<_>>();
            let bound = 1e-6 * expected + 1e-45;
            assert!((found[0] - expected).abs() <= bound, "{backend:?} {x:?}: {found:?}, {expected}");
            assert!((found[1] + expected).abs() <= bound, "{backend:?} {x:?}: {found:?}, {expected}");
        }
    }
}

#[test]
fn rows_of_zeros_are_ordinary() {
    // Padding: x, dy or both are 0.
    for width in [5, 16, 100, 5000] {
        let mut case = Case::<f32>::random(3, width, true, true, 9);
        case.x[..width].fill(0.0);
        case.dy[width..2 * width].fill(0.0);
        for backend in backends() {
            let found = case.run(backend, 0);
            assert_eq!(found.y[..width], case.beta.as_ref().unwrap()[..]);
            assert!(found.dx[width..2 * width].iter().all(|&dx| dx == 0.0));
            assert!(found.dx.iter().chain(&found.dgamma).all(|value| value.is_finite()));
        }
    }
}
