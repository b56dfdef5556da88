//! The numerical contract of `src/lib.rs`: each of its sentences names the tests that hold it, and what no other test holds
//! stands here.

use crate::support::exact::{self, ulp};
use crate::support::{Case, Framed, Random, backends};
use llm_operator::{Backend, Element, GradientMut, GradientsMut, Statistics};
use std::path::Path;

/// The contract, from its heading to the next.
fn contract() -> Vec<&'static str> {
    let lines =
        include_str!("../../src/lib.rs").lines().map(|line| line.trim_start_matches("//!").trim_start_matches(' '));
    let lines = lines.skip_while(|line| *line != "# The numerical contract").skip(1);
    lines.take_while(|line| !line.starts_with('#')).filter(|line| !line.is_empty()).collect()
}

/// The sentences, each a point of the list.
fn sentences() -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    for line in contract() {
        match (line.strip_prefix("- "), sentences.last_mut()) {
            (Some(start), _) => sentences.push(start.to_owned()),
            (None, Some(sentence)) => *sentence += &format!(" {line}"),
            (None, None) => {}
        }
    }
    sentences
}

/// The tests that a sentence names, as `file::test`.
fn named(sentence: &str) -> Vec<(&str, &str)> {
    sentence.split('`').filter_map(|word| word.split_once("::")).collect()
}

#[test]
fn every_sentence_of_the_contract_names_tests_that_exist() {
    let sentences = sentences();
    assert!(sentences.len() >= 12, "the contract was not found: {sentences:?}");
    for sentence in &sentences {
        let tests = named(sentence);
        assert!(!tests.is_empty(), "no test is named: {sentence}");
        for (file, test) in tests {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
            let paths = [folder.join(format!("{file}.rs")), folder.join("kernels").join(format!("{file}.rs"))];
            let path =
                paths.iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("no file {file}.rs: {sentence}"));
            let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let marked = text.split("#[test]\n").skip(1).any(|rest| rest.starts_with(&format!("fn {test}() {{")));
            assert!(marked, "{file}.rs has no test {test}: {sentence}");
        }
    }
}

/// The greatest error of `found`, in units in the last place of `size`.
fn error<T: Element>(found: &[T], exact: &[exact::Double], size: f64) -> f64 {
    let errors = found.iter().zip(exact).map(|(found, exact)| (found.to_f64() - exact.value()).abs() / ulp::<T>(size));
    errors.fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { f64::max(worst, error) })
}

fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |greatest, value| f64::max(greatest, value.abs()))
}

/// `y` where beta takes away what gamma and xhat give, but for the rounding of that.
fn cancelling_y<T: Element>(backend: Backend, width: usize) -> f64 {
    let mut case = Case::<T>::random(1, width, true, false, width as u64);
    let plain = exact::layer_norm(&case).y;
    case.beta = Some(plain.iter().map(|y| T::from_f64(-y.value())).collect());
    let (found, exact) = (case.run(backend, 0).y, exact::layer_norm(&case).y);
    error(&found, &exact, 2.0 * greatest(plain.iter().map(|y| y.value())))
}

/// `dx` for `dy = y`, which lies along the direction that LayerNorm removes.
fn cancelling_dx<T: Element>(backend: Backend, width: usize) -> f64 {
    let mut case = Case::<T>::random(1, width, false, false, 50 + width as u64);
    case.dy = case.run(backend, 0).y;
    let exact = exact::layer_norm(&case);
    let size = exact.rstd[0].value() * greatest(case.dy.iter().map(|dy| dy.to_f64()));
    error(&case.run(backend, 0).dx, &exact.dx, size)
}

/// `dgamma` and `dbeta` over rows that come twice, with upstream gradients that all but cancel.
fn cancelling_sums<T: Element>(backend: Backend, width: usize) -> [f64; 2] {
    let rows = 300;
    let mut case = Case::<T>::random(2 * rows, width, true, true, 90 + width as u64);
    for row in 0..rows {
        for column in 0..width {
            let (first, second) = (row * width + column, (rows + row) * width + column);
            case.x[second] = case.x[first];
            case.dy[second] = T::from_f64(-case.dy[first].to_f64() * (1.0 + 4.0 * T::UNIT_ROUNDOFF));
        }
    }
    let (found, exact) = (case.run(backend, 0), exact::layer_norm(&case));
    let plain = exact::layer_norm(&Case { gamma: None, beta: None, ..case.clone() });
    let mut worst = [0.0_f64; 2];
    for column in 0..width {
        let of_column = || (0..2 * rows).map(|row| row * width + column);
        let sizes = [
            of_column().map(|i| (case.dy[i].to_f64() * plain.y[i].value()).abs()).sum(),
            of_column().map(|i| case.dy[i].to_f64().abs()).sum(),
        ];
        let pairs = [(&found.dgamma, &exact.dgamma), (&found.dbeta, &exact.dbeta)];
        for ((worst, size), (found, exact)) in worst.iter_mut().zip(sizes).zip(pairs) {
            *worst = worst.max(error(&found[column..=column], &exact[column..=column], size));
        }
    }
    worst
}

fn cancelling_is_within_the_bounds<T: Element>() {
    for width in (2..18).chain([33, 64, 100, 768, 5000]) {
        for backend in backends() {
            let what = format!("{}, {backend:?}, width {width}", T::NAME);
            let y = cancelling_y::<T>(backend, width);
            assert!(y <= 4.0, "{what}: y is off by {y:.2} ULP of its terms");
            let dx = cancelling_dx::<T>(backend, width);
            // The saved rstd is rounded, and stands twice in the term that cancels: that alone is up to 2 ULP, and some six
            // roundings of half an ULP to one are added to it.
            assert!(dx <= 8.0, "{what}: dx is off by {dx:.2} ULP of its terms");
            if width <= 100 {
                let sums = cancelling_sums::<T>(backend, width);
                assert!(
                    sums.iter().all(|error| *error <= 8.0),
                    "{what}: off by {sums:.2?} ULP of the terms' magnitudes"
                );
            }
        }
    }
}

#[test]
fn results_whose_terms_cancel_are_within_the_bounds_beside_the_terms() {
    cancelling_is_within_the_bounds::<f32>();
    cancelling_is_within_the_bounds::<f64>();
}

#[test]
fn dx_of_rows_in_one_call_or_in_many_has_the_same_bits() {
    for width in [5, 16, 100, 5000] {
        let case = Case::<f32>::random(50, width, true, true, 4);
        for backend in backends() {
            let whole = case.run(backend, 0);
            for rows in [1, 3, 7, 49] {
                let mut split = vec![];
                let statistics = whole.mean.chunks(rows).zip(whole.rstd.chunks(rows));
                let arrays = case.x.chunks(rows * width).zip(case.dy.chunks(rows * width));
                for ((x, dy), (mean, rstd)) in arrays.zip(statistics) {
                    let mut dx = Framed::new(x.len(), 0);
                    let gradients =
                        GradientsMut { dx: Some(GradientMut::Overwrite(dx.slice_mut())), ..GradientsMut::default() };
                    case.layer(backend).backward_into(dy, x, Statistics { mean, rstd }, gradients).unwrap();
                    split.extend(dx.finish());
                }
                assert_eq!(split, whole.dx, "{backend:?}, width {width}, {rows} rows a call");
            }
        }
    }
}

#[test]
fn only_a_sum_over_rows_that_leaves_the_range_is_infinite() {
    let (rows, width) = (40, 20);
    for backend in backends() {
        let mut case = Case::<f32>::random(rows, width, false, false, 6);
        case.x = Random(3).normals(rows * width, 0.0, 1e10);
        case.dy = Random(4).normals(rows * width, 0.0, 1e37);
        let sums = |columns: std::ops::Range<usize>, dbeta: &[f32]| dbeta[columns].iter().all(|sum| sum.is_finite());
        let found = case.run(backend, 0);
        assert!(found.arrays().iter().all(|(_, values)| values.iter().all(|value| value.is_finite())), "{backend:?}");
        // Column 7 alone sums up to 40 times 3e38.
        (0..rows).for_each(|row| case.dy[row * width + 7] = 3e38);
        let found = case.run(backend, 0);
        assert_eq!(found.dbeta[7], f32::INFINITY, "{backend:?}");
        assert!(sums(0..7, &found.dbeta) && sums(8..width, &found.dbeta), "{backend:?}: {:?}", found.dbeta);
        assert!(found.y.iter().chain(&found.dx).all(|value| value.is_finite()), "{backend:?}");
    }
}
