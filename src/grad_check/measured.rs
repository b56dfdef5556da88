//! The numeric gradient of one input, and what is known about its error.

use super::exhaustive::Difference;
use super::judge::{Judge, rms};
use super::step::NEAR;

/// For each component of one input, in C order.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) numeric: Vec<f64>,
    pub(super) floor: Vec<f64>,
    pub(super) steps: Steps,
    /// What is already known of the gradient under test, in words.
    pub(super) note: Option<String>,
}

/// The step of each component. A balanced step is a power of two: two bytes are enough.
#[derive(Debug, Clone)]
pub(super) enum Steps {
    Fixed(f64),
    PowersOfTwo(Vec<i16>),
}

impl Measured {
    /// Room for the differences of `len` components, all unknown.
    pub(super) fn unknown(len: usize, fixed: Option<f64>) -> Self {
        let steps = match fixed {
            Some(eps) => Steps::Fixed(eps),
            None => Steps::PowersOfTwo(vec![0; len]),
        };
        Self { numeric: vec![f64::NAN; len], floor: vec![f64::NAN; len], steps, note: None }
    }

    /// The same where not all components are going to be looked at: an infinite floor says so.
    pub(super) fn not_looked_at(len: usize, fixed: Option<f64>) -> Self {
        let mut unknown = Self::unknown(len, fixed);
        unknown.floor.fill(f64::INFINITY);
        unknown
    }

    /// Calls what is still unknown not looked at.
    pub(super) fn forget_unknown(&mut self) {
        let unknown =
            self.numeric.iter().zip(&mut self.floor).filter(|(numeric, floor)| numeric.is_nan() && floor.is_nan());
        unknown.for_each(|(_, floor)| *floor = f64::INFINITY);
    }

    pub(super) fn step(&self, element: usize) -> f64 {
        match &self.steps {
            Steps::Fixed(eps) => *eps,
            Steps::PowersOfTwo(exponents) => f64::from(exponents[element]).exp2(),
        }
    }

    pub(super) fn set(&mut self, element: usize, found: &Difference) {
        self.numeric[element] = found.numeric;
        self.floor[element] = found.floor();
        if let Steps::PowersOfTwo(exponents) = &mut self.steps {
            exponents[element] = found.exponent();
        }
    }
}

impl Measured {
    /// Takes a value over that is no difference quotient.
    pub(super) fn set_known(&mut self, element: usize, numeric: f64, floor: f64, step: f64) {
        self.numeric[element] = numeric;
        self.floor[element] = floor;
        if let Steps::PowersOfTwo(exponents) = &mut self.steps {
            exponents[element] = step.log2() as i16;
        }
    }
}

impl Measured {
    /// Raises floors that a fixed step beyond a row's scale has made too low: out there `D` no longer follows the
    /// square of the step, so `|D(2h) - D(h)|` may be small by chance. Where the function is a straight line it is
    /// small for good.
    pub(super) fn distrust_far_steps(&mut self, judge: &Judge, scales: &[f64], eps: f64) {
        let len = judge.row_len();
        let rows = self.numeric.chunks(len).zip(self.floor.chunks_mut(len));
        for (row, (numeric, floors)) in rows.enumerate() {
            let far = eps / scales[row];
            if far <= NEAR {
                continue;
            }
            let rms = rms(numeric);
            for (floor, numeric) in floors.iter_mut().zip(numeric).filter(|(floor, _)| floor.is_finite()) {
                let size = rms.max(numeric.abs());
                if *floor > judge.tolerance().at(size) {
                    *floor = floor.max(4.0 * far * far * size);
                }
            }
        }
    }
}

/// A whole number of rows of [`Measured`], to be written by one task.
pub(super) struct MeasuredRows<'a> {
    pub(super) numeric: &'a mut [f64],
    pub(super) floor: &'a mut [f64],
    fixed: f64,
    exponents: &'a mut [i16],
}

impl Measured {
    /// Consecutive pieces of `len` components.
    pub(super) fn rows_mut(&mut self, len: usize) -> Vec<MeasuredRows<'_>> {
        let Self { numeric, floor, steps, .. } = self;
        let (fixed, exponents) = match steps {
            Steps::Fixed(eps) => (*eps, &mut [][..]),
            Steps::PowersOfTwo(exponents) => (0.0, &mut exponents[..]),
        };
        let mut exponents = exponents.chunks_mut(len);
        let pieces = numeric.chunks_mut(len).zip(floor.chunks_mut(len));
        pieces
            .map(|(numeric, floor)| {
                let exponents = exponents.next().unwrap_or_default();
                MeasuredRows { numeric, floor, fixed, exponents }
            })
            .collect()
    }
}

impl MeasuredRows<'_> {
    pub(super) fn step(&self, element: usize) -> f64 {
        self.exponents.get(element).map_or(self.fixed, |&exponent| f64::from(exponent).exp2())
    }

    pub(super) fn set(&mut self, element: usize, found: &Difference) {
        self.numeric[element] = found.numeric;
        self.floor[element] = found.floor();
        if let Some(exponent) = self.exponents.get_mut(element) {
            *exponent = found.exponent();
        }
    }

    /// Takes a difference over if it is sharper than the one that is known.
    pub(super) fn improve(&mut self, element: usize, found: &Difference) {
        if found.floor() < self.floor[element] {
            self.set(element, found);
        }
    }
}
