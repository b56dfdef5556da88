//! Eight rows at a time have the bits of one at a time, on every backend.

use crate::kernel::backward::{Backward, GROUP, ParameterSums};
use crate::kernel::careful::{CarefulRow, NARROW};
use crate::kernel::forward::{Forward, Parameters, Place};
use crate::kernel::wide::Wide;
use crate::simd::{Isa, Kernel};
use crate::{Backend, Element};

/// Forward, but the loops over wider rows, which would be compiled for nothing.
struct NarrowForward<'a, T>(Forward<'a, T>);

impl<T: Element> Kernel for NarrowForward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        self.0.narrow_rows(isa);
    }
}

/// Backward, but those loops.
struct NarrowBackward<'a, T>(Backward<'a, T>);

impl<T: Element> Kernel for NarrowBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        self.0.narrow_rows(isa);
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1, of all the digits that a type has.
    fn number<T: Element>(&mut self) -> T {
        T::from_f64((self.next() >> 11) as f64 * 2.0_f64.powi(-52) - 1.0)
    }

    fn numbers<T: Element>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| self.number()).collect()
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What the rows of a test are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// All ordinary.
    Ordinary,
    /// All far from zero.
    Far,
    /// Elements of any ordinary size beside each other, and zeros.
    OfAnySize,
    /// Some rows constant, subnormal, huge, or with NaN or an infinity.
    Hard,
}

fn row<T: Element>(random: &mut Random, kind: Kind, width: usize) -> Vec<T> {
    let mut row: Vec<f64> = random.numbers::<T>(width).iter().map(|value| value.to_f64()).collect();
    let column = random.below(width as u64) as usize;
    let size = 2.0_f64.powi(random.below(250) as i32 - 125);
    match (kind, random.below(24)) {
        (Kind::Ordinary, _) => {}
        (Kind::Far, _) => row.iter_mut().for_each(|value| *value += 1e8),
        (Kind::OfAnySize, 0) => row.fill(0.0),
        (Kind::OfAnySize, 1) => row.fill(size),
        // Neighbours: all but the last digits cancel.
        (Kind::OfAnySize, 2..8) => {
            let step = if T::HAS_WIDE_RANGE { f64::EPSILON } else { f32::EPSILON.into() };
            row.iter_mut().for_each(|value| *value = size * (1.0 + step * (*value * 3.0).round()));
        }
        (Kind::OfAnySize, _) => {
            for value in &mut row {
                *value *= 2.0_f64.powi(random.below(250) as i32 - 125);
                if random.below(8) == 0 {
                    *value = 0.0;
                }
            }
        }
        (Kind::Hard, 0) => row[column] = f64::NAN,
        (Kind::Hard, 1) => row[column] = f64::INFINITY,
        (Kind::Hard, 2) => row[column] = f64::NEG_INFINITY,
        (Kind::Hard, 3) => row.fill(size),
        (Kind::Hard, 4) => row.fill(0.0),
        (Kind::Hard, 5) => row.iter_mut().for_each(|value| *value *= 1e-40),
        (Kind::Hard, 6) => row.iter_mut().for_each(|value| *value *= 1e-310),
        (Kind::Hard, 7) => row.iter_mut().for_each(|value| *value *= 3e38),
        (Kind::Hard, 8) => row.iter_mut().for_each(|value| *value *= if T::HAS_WIDE_RANGE { 1.7e308 } else { 1e-45 }),
        (Kind::Hard, 9) => row[column] = if T::HAS_WIDE_RANGE { 1e308 } else { 3e38 },
        (Kind::Hard, 10) => row[column] = 1e-200,
        (Kind::Hard, _) => {}
    }
    row.into_iter().map(T::from_f64).collect()
}

fn rows<T: Element>(random: &mut Random, kind: Kind, rows: usize, width: usize) -> Vec<T> {
    (0..rows).flat_map(|_| row::<T>(random, kind, width)).collect()
}

/// Rows with parameters.
#[derive(Debug)]
struct Case<T> {
    width: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    epsilon: f64,
    accumulate: bool,
}

/// All that forward and backward give.
#[derive(Debug)]
struct Found<T>([(&'static str, Vec<T>); 6]);

impl<T: Element> Case<T> {
    fn random(seed: u64, kind: Kind, count: usize, width: usize) -> Self {
        let random = &mut Random(seed);
        let (x, dy) = (rows(random, kind, count, width), rows(random, kind, count, width));
        let of_parameters = if kind == Kind::Far { Kind::Ordinary } else { kind };
        let gamma = (random.below(4) > 0).then(|| row(random, of_parameters, width));
        let beta = (random.below(3) > 0).then(|| row(random, of_parameters, width));
        let epsilon = [1e-5, 0.0, 1e-300, 1e20, 1e-12, 1e-70][random.below(6) as usize];
        Self { width, x, dy, gamma, beta, epsilon, accumulate: random.below(2) == 0 }
    }

    fn parameters(&self) -> Parameters<'_, T> {
        let (gamma, beta) = (self.gamma.as_deref(), self.beta.as_deref());
        Parameters { width: self.width, gamma, beta, epsilon: self.epsilon }
    }

    /// By the kernels.
    fn run(&self, backend: Backend) -> Found<T> {
        let poison = T::from_f64(f64::NAN);
        let count = self.x.len() / self.width;
        let (mut y, mut mean, mut rstd) = (vec![poison; self.x.len()], vec![poison; count], vec![poison; count]);
        let mut staged = Vec::new();
        let kernel = Forward {
            parameters: self.parameters(),
            x: &self.x,
            y: &mut y,
            mean: Some(&mut mean),
            rstd: Some(&mut rstd),
            place: Place::Cache,
            is_amd: false,
            staged: &mut staged,
        };
        backend.run(NarrowForward(kernel));
        let len = ParameterSums::<T>::len(self.width);
        let [mut total, mut lost, mut group] = [(); 3].map(|()| vec![T::ZERO; len]);
        let mut dx = if self.accumulate { self.dy.clone() } else { vec![poison; self.x.len()] };
        let sums =
            ParameterSums { total: &mut total, lost: &mut lost, group: &mut group, is_first: true, is_zero: true };
        let kernel = Backward {
            parameters: self.parameters(),
            x: &self.x,
            dy: &self.dy,
            mean: &mean,
            rstd: &rstd,
            dx: Some((&mut dx, self.accumulate)),
            sums: Some(sums),
            place: Place::Cache,
            is_amd: false,
            staged: &mut staged,
            block: &mut Vec::new(),
        };
        backend.run(NarrowBackward(kernel));
        // Without sums, dx is the same.
        let mut dx_alone = if self.accumulate { self.dy.clone() } else { vec![poison; self.x.len()] };
        let kernel = Backward {
            parameters: self.parameters(),
            x: &self.x,
            dy: &self.dy,
            mean: &mean,
            rstd: &rstd,
            dx: Some((&mut dx_alone, self.accumulate)),
            sums: None,
            place: Place::Cache,
            is_amd: false,
            staged: &mut staged,
            block: &mut Vec::new(),
        };
        backend.run(NarrowBackward(kernel));
        assert!(same_bits(&dx, &dx_alone), "{self:?}");
        Found([("y", y), ("mean", mean), ("rstd", rstd), ("dx", dx), ("sums", total), ("lost", lost)])
    }

    /// By the scalar code, row by row.
    fn definition(&self) -> Found<T> {
        let nan = T::from_f64(f64::NAN);
        let width = self.width;
        let (mut y, mut mean, mut rstd) = (self.x.clone(), vec![], vec![]);
        let mut dx = self.dy.clone();
        let start_of_dbeta = ParameterSums::<T>::len(width) / 2;
        let [mut total, mut lost] = [(); 2].map(|()| vec![T::ZERO; 2 * start_of_dbeta]);
        let mut lanes = vec![[T::Wide::new(0.0); 8]; 2 * start_of_dbeta];
        let count = self.x.len() / width;
        for i in 0..count {
            let span = i * width..(i + 1) * width;
            let (x, dy) = (&self.x[span.clone()], &self.dy[span.clone()]);
            let row = CarefulRow::new(x, self.epsilon);
            match &row {
                Some(row) => row.normalize(self.gamma.as_deref(), self.beta.as_deref(), &mut y[span.clone()]),
                None => y[span.clone()].fill(nan),
            }
            mean.push(row.as_ref().map_or(nan, CarefulRow::mean));
            rstd.push(row.as_ref().map_or(nan, CarefulRow::rstd));
            let of_row = row.as_ref().and_then(|row| row.dx(dy, self.gamma.as_deref()));
            for column in 0..width {
                let value = of_row.as_ref().map_or(nan, |found| found.value(column));
                let before = self.dy[span.start + column].to_f64();
                dx[span.start + column] = if self.accumulate { T::from_f64(before + value.to_f64()) } else { value };
                let xhat = row.as_ref().map_or(T::Wide::new(f64::NAN), |row| row.xhat(column));
                let dy = T::Wide::new(dy[column].to_f64());
                let (of_gamma, of_beta) = (column, start_of_dbeta + column);
                lanes[of_gamma][i % 8] = lanes[of_gamma][i % 8] + xhat * dy;
                lanes[of_beta][i % 8] = lanes[of_beta][i % 8] + dy;
            }
            if (i + 1).is_multiple_of(GROUP) || i + 1 == count {
                for k in 0..2 * start_of_dbeta {
                    let [a, b, c, d, e, f, g, h] = lanes[k];
                    let part = ((a + e) + (c + g)) + ((b + f) + (d + h));
                    let part = T::from_f64((T::Wide::new(0.0) + part).value()).to_f64();
                    if i < GROUP {
                        total[k] = T::from_f64(part);
                    } else {
                        let of_type = |value: f64| T::from_f64(value).to_f64();
                        let before = total[k].to_f64();
                        let sum = of_type(before + part);
                        let of_part = of_type(sum - before);
                        let error = of_type(of_type(before - of_type(sum - of_part)) + of_type(part - of_part));
                        total[k] = T::from_f64(sum);
                        lost[k] = T::from_f64(lost[k].to_f64() + error);
                    }
                    lanes[k] = [T::Wide::new(0.0); 8];
                }
            }
        }
        Found([("y", y), ("mean", mean), ("rstd", rstd), ("dx", dx), ("sums", total), ("lost", lost)])
    }

    fn assert_kernels_have_the_bits_of_the_definition(&self) {
        let expected = self.definition();
        for backend in Backend::available().into_iter().chain([Backend::model()]) {
            let found = self.run(backend);
            for ((name, found), (_, expected)) in found.0.iter().zip(&expected.0) {
                assert!(
                    same_bits(found, expected),
                    "{} {backend:?}, {name}: {found:?}, but {expected:?}, of {self:?}",
                    T::NAME
                );
            }
        }
    }
}

/// The same numbers and signs of zeros; one NaN is like another.
fn same_bits<T: Element>(a: &[T], b: &[T]) -> bool {
    let bits = |value: &T| if value.to_f64().is_nan() { 0 } else { !value.to_f64().to_bits() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bits(a) == bits(b))
}

fn narrow_rows_have_the_bits_of_the_definition<T: Element>() {
    for width in 1..NARROW {
        for count in 0..=33 {
            for (k, kind) in [Kind::Ordinary, Kind::Far, Kind::OfAnySize, Kind::Hard].into_iter().enumerate() {
                let seed = (width * 64 + count) as u64 * 4 + k as u64;
                Case::<T>::random(seed, kind, count, width).assert_kernels_have_the_bits_of_the_definition();
            }
        }
    }
}

#[test]
fn narrow_f32_rows_have_the_bits_of_the_scalar_definition_on_every_backend() {
    narrow_rows_have_the_bits_of_the_definition::<f32>();
}

#[test]
fn narrow_f64_rows_have_the_bits_of_the_scalar_definition_on_every_backend() {
    narrow_rows_have_the_bits_of_the_definition::<f64>();
}

#[test]
fn narrow_rows_of_any_ordinary_size_have_the_bits_of_the_scalar_definition() {
    for seed in 0..400 {
        let (count, width) = (8 + seed as usize % 9, 1 + seed as usize % 15);
        Case::<f64>::random(seed, Kind::OfAnySize, count, width).assert_kernels_have_the_bits_of_the_definition();
        Case::<f32>::random(seed, Kind::OfAnySize, count, width).assert_kernels_have_the_bits_of_the_definition();
    }
}

#[test]
fn groups_with_hard_rows_among_them_have_the_bits_of_the_scalar_definition() {
    for width in [1, 2, 3, 7, 8, 15] {
        for count in [127, 128, 129, 300, 523] {
            for (hard, seed) in [(50, 1), (130, 2), (300, 3)] {
                let mut f32_case = Case::<f32>::random(seed, Kind::Ordinary, count, width);
                let mut f64_case = Case::<f64>::random(seed, Kind::Ordinary, count, width);
                if hard < count {
                    f32_case.x[hard * width] = 3e38;
                    f64_case.x[hard * width] = 1e308;
                    f32_case.dy[hard * width] = f32::NEG_INFINITY;
                    f64_case.dy[hard * width] = f64::MAX;
                    f64_case.dy[(hard - 8) * width] = f64::MAX;
                }
                f32_case.assert_kernels_have_the_bits_of_the_definition();
                f64_case.assert_kernels_have_the_bits_of_the_definition();
            }
        }
    }
}
