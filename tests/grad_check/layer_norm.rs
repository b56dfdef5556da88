//! A plain LayerNorm, one row after the other, and the bugs that are planted into its backward.

use ndarray::{ArrayD, IxDyn};

use llm_operator::Element;
use llm_operator::grad_check::{Input, Operation, Outcome};
use llm_operator::numpy_random::Generator;

/// What is wrong with a backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bug {
    Zeros,
    OneElement,
    RowZeroed,
    TwoSwapped,
    Scale,
    OneSign,
    TailDropped,
    RowsShifted,
    RowOffset,
    OneNan,
    DegreesOfFreedom,
    GammaForgotten,
    MeanTermDropped,
    VarianceTermDropped,
    RowMissingInDgamma,
    DbetaDoubled,
}

/// LayerNorm over the last dimension, every operation rounded to `T`; with `gamma` and `beta` where it is affine.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    pub(super) shape: Vec<usize>,
    pub(super) affine: bool,
    pub(super) bug: Option<Bug>,
    /// Whether rows are declared independent.
    pub(super) rows: bool,
    /// The row that is made to depend on the row before it.
    pub(super) leaking_row: Option<usize>,
}

const EPSILON: f64 = 1e-5;

impl LayerNorm {
    pub(super) fn new(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), affine: false, bug: None, rows: true, leaking_row: None }
    }

    pub(super) fn affine(shape: &[usize]) -> Self {
        Self { affine: true, ..Self::new(shape) }
    }

    pub(super) fn with(self, bug: Bug) -> Self {
        Self { bug: Some(bug), ..self }
    }

    pub(super) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Normal inputs and an upstream gradient for them; `place` maps row and value to what is stored.
    pub(super) fn data<T: Element>(
        &self,
        rng: &mut Generator,
        place: impl Fn(usize, f64) -> f64,
    ) -> (Vec<ArrayD<T>>, ArrayD<T>) {
        let width = self.width();
        let mut x = rng.standard_normal(&self.shape);
        x.iter_mut().enumerate().for_each(|(element, x)| *x = place(element / width, *x));
        let mut inputs = vec![x.mapv(T::from_f64)];
        if self.affine {
            inputs.push(rng.standard_normal(&[width]).mapv(T::from_f64));
            inputs.push(rng.standard_normal(&[width]).mapv(T::from_f64));
        }
        (inputs, rng.standard_normal(&self.shape).mapv(T::from_f64))
    }

    fn forward_row<T: Element>(&self, x: &[T], parameters: &[&[T]], y: &mut [T]) {
        let row = Row::<T>::of(x);
        for (column, y) in y.iter_mut().enumerate() {
            let mut value = row.normalized(x[column]);
            if let [gamma, beta] = parameters {
                value = round::<T>(round::<T>(value * gamma[column].to_f64()) + beta[column].to_f64());
            }
            *y = T::from_f64(value);
        }
    }
}

fn round<T: Element>(value: f64) -> f64 {
    T::from_f64(value).to_f64()
}

/// The statistics of a row: a corrected two-pass, each sum rounded to `T`.
struct Row<T> {
    mean: f64,
    rstd: f64,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Row<T> {
    fn of(x: &[T]) -> Self {
        let r = round::<T>;
        let count = x.len() as f64;
        let mean = r(x.iter().fold(0.0, |sum, x| r(sum + x.to_f64())) / count);
        let deviation = |x: &T| r(x.to_f64() - mean);
        let rest = r(x.iter().fold(0.0, |sum, x| r(sum + deviation(x))) / count);
        let squares = x.iter().fold(0.0, |sum, x| r(sum + r(deviation(x) * deviation(x))));
        let variance = squares / count - rest * rest;
        // The mean is kept in two parts, as one number: an f64 holds both parts of an f32.
        Self { mean: mean + rest, rstd: r(1.0 / (variance + EPSILON).sqrt()), element: std::marker::PhantomData }
    }

    fn normalized(&self, x: T) -> f64 {
        round::<T>(round::<T>(x.to_f64() - self.mean) * self.rstd)
    }
}

impl<T: Element> Operation<T> for LayerNorm {
    fn name(&self) -> String {
        "layer_norm".to_owned()
    }

    fn inputs(&self) -> Vec<Input> {
        let x = if self.rows { Input::rows("x", self.shape.clone()) } else { Input::shared("x", self.shape.clone()) };
        let mut inputs = vec![x];
        if self.affine {
            inputs.push(Input::columns("gamma", [self.width()]));
            inputs.push(Input::columns("beta", [self.width()]));
        }
        inputs
    }

    fn output_shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        let slices: Vec<&[T]> = inputs.iter().map(|input| input.as_slice().unwrap()).collect();
        let (x, y) = (slices[0], output.as_slice_mut().unwrap());
        for (x, y) in x.chunks(self.width()).zip(y.chunks_mut(self.width())) {
            self.forward_row(x, &slices[1..], y);
        }
        if let Some(row) = self.leaking_row {
            let leak = 1e-3 * x[(row - 1) * self.width()].to_f64();
            let y = &mut y[row * self.width()];
            *y = T::from_f64(y.to_f64() + leak);
        }
        Ok(())
    }

    fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        let r = round::<T>;
        let width = self.width();
        let (x, dy) = (inputs[0].as_slice().unwrap(), dy.as_slice().unwrap());
        let gamma: Vec<f64> = match inputs.get(1) {
            Some(gamma) if self.bug != Some(Bug::GammaForgotten) => gamma.iter().map(|g| g.to_f64()).collect(),
            _ => vec![1.0; width],
        };
        let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
        let dx = gradients[0].as_slice_mut().unwrap();
        let rows = x.len() / width;
        for (number, (x, (dy, dx))) in x.chunks(width).zip(dy.chunks(width).zip(dx.chunks_mut(width))).enumerate() {
            let row = Row::<T>::of(x);
            let xhat: Vec<f64> = x.iter().map(|&x| row.normalized(x)).collect();
            let g: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, gamma)| r(dy.to_f64() * gamma)).collect();
            let count = width as f64 - if self.bug == Some(Bug::DegreesOfFreedom) { 1.0 } else { 0.0 };
            let mut mean_term = r(g.iter().fold(0.0, |sum, g| r(sum + g)) / count);
            let mut variance_term = r(g.iter().zip(&xhat).fold(0.0, |sum, (g, xhat)| r(sum + r(g * xhat))) / count);
            match self.bug {
                Some(Bug::MeanTermDropped) => mean_term = 0.0,
                Some(Bug::VarianceTermDropped) => variance_term = 0.0,
                _ => {}
            }
            for column in 0..width {
                let centred = r(r(g[column] - mean_term) - r(xhat[column] * variance_term));
                dx[column] = T::from_f64(row.rstd * centred);
                if !(self.bug == Some(Bug::RowMissingInDgamma) && number == rows / 2) {
                    dgamma[column] += dy[column].to_f64() * xhat[column];
                }
                dbeta[column] += dy[column].to_f64();
            }
        }
        if let Some(bug) = self.bug {
            plant(bug, dx, width);
        }
        if self.affine {
            let factor = if self.bug == Some(Bug::DbetaDoubled) { 2.0 } else { 1.0 };
            gradients[1].assign(&ArrayD::from_shape_vec(IxDyn(&[width]), dgamma)?.mapv(T::from_f64));
            gradients[2].assign(&ArrayD::from_shape_vec(IxDyn(&[width]), dbeta)?.mapv(|v| T::from_f64(factor * v)));
        }
        Ok(())
    }

    fn forward_rows(&self, rows: &[usize], inputs: &[&[T]], output: &mut [T]) -> Option<Outcome> {
        if self.leaking_row.is_some() {
            return None;
        }
        let _ = rows;
        for (x, y) in inputs[0].chunks(self.width()).zip(output.chunks_mut(self.width())) {
            self.forward_row(x, &inputs[1..], y);
        }
        Some(Ok(()))
    }
}

/// Spoils a right gradient.
fn plant<T: Element>(bug: Bug, dx: &mut [T], width: usize) {
    let rows = dx.len() / width;
    let middle = rows / 2 * width;
    let scaled = |value: T, factor: f64| T::from_f64(value.to_f64() * factor);
    let rms = |row: &[T]| (row.iter().map(|v| v.to_f64().powi(2)).sum::<f64>() / row.len() as f64).sqrt();
    match bug {
        Bug::Zeros => dx.fill(T::from_f64(0.0)),
        Bug::OneElement => {
            // The greatest element of the middle row.
            let row = &dx[middle..middle + width];
            let size = |&column: &usize| (row[column].to_f64().abs() * 1e12) as u64;
            let column = (0..width).max_by_key(size).unwrap();
            dx[middle + column] = scaled(dx[middle + column], 1.1);
        }
        Bug::RowZeroed => dx[middle..middle + width].fill(T::from_f64(0.0)),
        Bug::TwoSwapped => dx.swap(middle, middle + width / 2),
        Bug::Scale => dx.iter_mut().for_each(|value| *value = scaled(*value, 1.02)),
        Bug::OneSign => dx[middle + 1] = scaled(dx[middle + 1], -1.0),
        Bug::TailDropped => {
            let tail = if width.is_multiple_of(8) { 8 } else { width % 8 };
            dx.chunks_mut(width).for_each(|row| row[width - tail..].fill(T::from_f64(0.0)));
        }
        Bug::RowsShifted => dx.rotate_right(width),
        Bug::RowOffset => {
            let row = &mut dx[middle..middle + width];
            let offset = 0.05 * rms(row);
            row.iter_mut().for_each(|value| *value = T::from_f64(value.to_f64() + offset));
        }
        Bug::OneNan => dx[middle + 2] = T::from_f64(f64::NAN),
        _ => {}
    }
}
