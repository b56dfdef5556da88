//! The numeric gradient of one input, and what is known about its error.

use super::exhaustive::Difference;

/// For each component of one input, in C order.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) numeric: Vec<f64>,
    pub(super) floor: Vec<f64>,
    pub(super) steps: Steps,
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
        Self { numeric: vec![f64::NAN; len], floor: vec![f64::NAN; len], steps }
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
            exponents[element] = found.step.log2() as i16;
        }
    }
}
