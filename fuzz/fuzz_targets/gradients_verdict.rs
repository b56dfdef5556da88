//! The checker never accuses a right gradient, and never passes one that is spoiled beyond its tolerance.
//!
//! The gradients are those of LayerNorm, which the other targets hold to the definition. x, gamma and dy are normal, of
//! any size, and x is as much as 100 deviations from zero; the bytes choose sizes, the shape, `epsilon`, the mode, and what is
//! spoiled. Modes that look at a sample only are left out: there a single wrong element may be missed, as is documented.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use llm_operator::grad_check::{GradCheck, Input, Mode, Operation, Outcome, Report, Verdict};
use llm_operator::{Element, LayerNormOperation};
use llm_operator_fuzz::support::Random;
use llm_operator_fuzz::{power_of_two, with_type};
use ndarray::{ArrayD, IxDyn};
use std::ops::Range;

/// What is done to one of the gradients.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Spoil {
    /// Nothing is left.
    Zero,
    /// Every element is this many 64ths too large.
    Scale(u8),
    /// One element is moved by this many 16ths of its row's size.
    Move {
        place: u16,
        by: i8,
    },
    /// One element has the wrong sign.
    Negate {
        place: u16,
    },
    /// Two elements have each other's place.
    Swap {
        one: u16,
        other: u16,
    },
    /// The elements of a row are those of its neighbour to the left.
    Rotate {
        row: u8,
    },
    /// The last elements of every row are missing.
    DropTail {
        elements: u8,
    },
    /// Every element of a row is off by as much.
    Shift {
        row: u8,
        by: i8,
    },
    NotANumber {
        place: u16,
    },
}

#[derive(Clone, Debug)]
struct Setup {
    f64: bool,
    rows: usize,
    width: usize,
    gamma: bool,
    beta: bool,
    epsilon: f64,
    mode: Mode,
    /// Of x, gamma, beta and dy: the mean in deviations, and the deviation.
    sizes: [(f64, f64); 4],
    seed: u16,
    /// Which input's gradient is spoiled, and how.
    spoil: (u8, Spoil),
}

impl<'a> Arbitrary<'a> for Setup {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let size = |bytes: &mut Unstructured<'a>, mean: f64| -> Result<(f64, f64)> {
            let mean = mean * f64::from(bytes.arbitrary::<i8>()?) / 128.0;
            Ok((mean, power_of_two(i32::from(bytes.arbitrary::<i8>()? % 20))))
        };
        let (has_gamma, epsilon) =
            (bytes.arbitrary()?, [1e-5, 1e-12, 1e-2, 0.0][usize::from(bytes.arbitrary::<u8>()? % 4)]);
        let (x, gamma, dy) = (size(bytes, 100.0)?, size(bytes, 2.0)?, size(bytes, 2.0)?);
        let (mean, deviation) = size(bytes, 2.0)?;
        // A beta far larger than what it is added to leaves no digits of it in y, whose differences are then noise.
        let added_to = x.1 / (x.1 * x.1 + epsilon).sqrt() * if has_gamma { gamma.1 } else { 1.0 };
        let beta = (mean, deviation.min(8.0 * added_to));
        Ok(Self {
            f64: bytes.arbitrary()?,
            rows: usize::from(bytes.arbitrary::<u8>()? % 5 + 1),
            width: usize::from(bytes.arbitrary::<u8>()? % 24 + 1),
            gamma: has_gamma,
            beta: bytes.arbitrary()?,
            epsilon,
            mode: [Mode::Auto, Mode::Local, Mode::Exhaustive][usize::from(bytes.arbitrary::<u8>()? % 3)],
            sizes: [x, gamma, beta, dy],
            seed: bytes.arbitrary()?,
            spoil: bytes.arbitrary()?,
        })
    }
}

fuzz_target!(|setup: Setup| with_type!(setup.f64, |T| check::<T>(&setup)));

fn check<T: Element>(setup: &Setup) {
    let Setup { rows, width, gamma, beta, epsilon, .. } = *setup;
    let mut right = LayerNormOperation::new(&[rows, width]).epsilon(epsilon);
    right = if gamma { right.gamma() } else { right };
    right = if beta { right.beta() } else { right };
    let mut random = Random(setup.seed.into());
    let mut array = |shape: &[usize], (mean, deviation): (f64, f64)| {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || T::from_f64((mean + random.normal()) * deviation))
    };
    let all = [
        Some(array(&[rows, width], setup.sizes[0])),
        gamma.then(|| array(&[width], setup.sizes[1])),
        beta.then(|| array(&[width], setup.sizes[2])),
    ];
    let inputs: Vec<ArrayD<T>> = all.into_iter().flatten().collect();
    let dy = array(&[rows, width], setup.sizes[3]);

    let mut gradients: Vec<ArrayD<T>> =
        inputs.iter().map(|input| ArrayD::from_elem(input.raw_dim(), T::from_f64(0.0))).collect();
    right.backward(&inputs, &dy, &mut gradients).expect("the arguments are right");
    let run = |operation: &dyn Operation<T>| -> Report {
        GradCheck::new().mode(setup.mode).run(operation, &inputs, &dy).expect("the arguments are right")
    };
    let report = run(&right);
    assert!(report.verdict <= Verdict::Inconclusive, "a right gradient is accused: {setup:?}\n{report}");

    let which = usize::from(setup.spoil.0) % gradients.len();
    let spoiled = spoiled(&gradients[which], setup.spoil.1);
    let limit = 20.0 * if T::NAME == "f32" { 1e-3 } else { 1e-6 };
    if differs(&gradients[which], &spoiled, limit) {
        let report = run(&Spoiled { right, which, spoil: setup.spoil.1 });
        assert!(report.verdict != Verdict::Passed, "a wrong gradient passes: {setup:?}\n{report}");
    }
}

/// A gradient with something done to it.
fn spoiled<T: Element>(right: &ArrayD<T>, spoil: Spoil) -> ArrayD<T> {
    let width = right.shape().last().copied().unwrap_or(1);
    let mut values: Vec<f64> = right.iter().map(|value| value.to_f64()).collect();
    let (count, rows) = (values.len(), values.len() / width);
    let size_of_row = |values: &[f64], row: usize| rms(&values[row * width..][..width]);
    match spoil {
        Spoil::Zero => values.fill(0.0),
        Spoil::Scale(by) => values.iter_mut().for_each(|value| *value *= 1.0 + f64::from(by) / 64.0),
        Spoil::Move { place, by } => {
            let place = usize::from(place) % count;
            values[place] += f64::from(by) / 16.0 * size_of_row(&values, place / width);
        }
        Spoil::Negate { place } => values[usize::from(place) % count] *= -1.0,
        Spoil::Swap { one, other } => values.swap(usize::from(one) % count, usize::from(other) % count),
        Spoil::Rotate { row } => values[usize::from(row) % rows * width..][..width].rotate_right(1),
        Spoil::DropTail { elements } => {
            let kept = width - usize::from(elements) % (width + 1);
            values.chunks_exact_mut(width).for_each(|row| row[kept..].fill(0.0));
        }
        Spoil::Shift { row, by } => {
            let row = usize::from(row) % rows;
            let shift = f64::from(by) / 16.0 * size_of_row(&values, row);
            values[row * width..][..width].iter_mut().for_each(|value| *value += shift);
        }
        Spoil::NotANumber { place } => values[usize::from(place) % count] = f64::NAN,
    }
    ArrayD::from_shape_vec(right.raw_dim(), values.into_iter().map(T::from_f64).collect()).expect("the same shape")
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
}

/// Whether an element differs by more than `limit` of the largest size that a tolerance could be relative to.
fn differs<T: Element>(right: &ArrayD<T>, spoiled: &ArrayD<T>, limit: f64) -> bool {
    let values = |array: &ArrayD<T>| -> Vec<f64> { array.iter().map(|value| value.to_f64()).collect() };
    let (right, spoiled) = (values(right), values(spoiled));
    let size = right.iter().fold(0.0, |size, value| value.abs().max(size));
    let far =
        |(right, spoiled): (&f64, &f64)| (right - spoiled).abs() > limit * size.max(spoiled.abs()) || spoiled.is_nan();
    right.iter().zip(&spoiled).any(far)
}

/// LayerNorm with one gradient spoiled after it is computed.
struct Spoiled {
    right: LayerNormOperation,
    which: usize,
    spoil: Spoil,
}

impl<T: Element> Operation<T> for Spoiled {
    fn name(&self) -> String {
        "a spoiled layer_norm".to_owned()
    }

    fn inputs(&self) -> Vec<Input> {
        Operation::<T>::inputs(&self.right)
    }

    fn output_shape(&self) -> Vec<usize> {
        Operation::<T>::output_shape(&self.right)
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        self.right.forward(inputs, output)
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        self.right.backward(inputs, dy, gradients)?;
        gradients[self.which] = spoiled(&gradients[self.which], self.spoil);
        Ok(())
    }

    fn forward_rows(&self, rows: Range<usize>, inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        self.right.forward_rows(rows, inputs, output)
    }
}
