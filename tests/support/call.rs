//! A call of forward and backward with everything that may be chosen about it, printed as a test to paste.

use super::{Case, Outcome, bounds, is_fused};
use llm_operator::{Backend, Element, GradientMut, GradientsMut, Statistics, Streaming};
use ndarray::{Array2, ArrayD, ArrayViewD, Axis, Slice};
use std::fmt;

/// How x and dy lie in memory when a call is made with views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    C,
    /// Column after column.
    Fortran,
    /// Row after row, with this many elements between them.
    Gaps(usize),
    /// Every so many-th element of a row.
    Steps(usize),
    /// From the last row to the first, and within a row from the last element to the first.
    Reversed,
}

impl Layout {
    /// The elements of a matrix, laid out.
    fn lay_out<T: Element>(self, elements: &[T], width: usize) -> Laid<T> {
        let matrix = Array2::from_shape_vec((elements.len() / width, width), elements.to_vec()).unwrap();
        // What lies between must not be read: it is NaN.
        let nan = T::from_f64(f64::NAN);
        let memory = match self {
            Self::C => matrix,
            Self::Fortran => matrix.t().as_standard_layout().into_owned().reversed_axes(),
            Self::Gaps(gap) => {
                let mut memory = Array2::from_elem((matrix.nrows(), width + gap), nan);
                memory.slice_axis_mut(Axis(1), Slice::from(..width)).assign(&matrix);
                memory
            }
            Self::Steps(step) => {
                let mut memory = Array2::from_elem((matrix.nrows(), width * step), nan);
                memory.slice_axis_mut(Axis(1), Slice::new(0, None, step as isize)).assign(&matrix);
                memory
            }
            Self::Reversed => Array2::from_shape_vec(matrix.dim(), elements.iter().rev().copied().collect()).unwrap(),
        };
        Laid { memory, layout: self, width }
    }
}

struct Laid<T> {
    memory: Array2<T>,
    layout: Layout,
    width: usize,
}

impl<T: Element> Laid<T> {
    /// The matrix again.
    fn view(&self) -> ArrayViewD<'_, T> {
        let mut view = self.memory.view();
        match self.layout {
            Layout::C | Layout::Fortran => {}
            Layout::Gaps(_) => view.slice_axis_inplace(Axis(1), Slice::from(..self.width)),
            Layout::Steps(step) => view.slice_axis_inplace(Axis(1), Slice::new(0, None, step as isize)),
            Layout::Reversed => {
                view.invert_axis(Axis(0));
                view.invert_axis(Axis(1));
            }
        }
        view.into_dyn()
    }
}

/// An element type that is made of any bits.
pub trait Bits: Element {
    /// Hexadecimal digits of an element.
    const DIGITS: usize;

    /// From the lowest bits of `bits`.
    fn from_bits(bits: u64) -> Self;

    fn to_bits(self) -> u64;
}

impl Bits for f32 {
    const DIGITS: usize = 8;

    fn from_bits(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }

    fn to_bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Bits for f64 {
    const DIGITS: usize = 16;

    fn from_bits(bits: u64) -> Self {
        f64::from_bits(bits)
    }

    fn to_bits(self) -> u64 {
        self.to_bits()
    }
}

/// Elements of these bits.
pub fn bits<T: Bits>(bits: &[u64]) -> Vec<T> {
    bits.iter().map(|&bits| T::from_bits(bits)).collect()
}

/// A call.
#[derive(Clone)]
pub struct Call<T> {
    pub case: Case<T>,
    /// A name of [`Backend::name`].
    pub backend: &'static str,
    /// Elements between each array and its allocation.
    pub offset: usize,
    pub layout: Layout,
    pub streaming: Streaming,
}

/// A backend, or the model, by name.
pub fn backend(name: &str) -> Backend {
    if name == "model" { Backend::model() } else { Backend::from_name(name).unwrap() }
}

impl<T: Bits> Call<T> {
    fn run_on(&self, backend: Backend) -> Outcome<T> {
        self.case.run_layer(&self.case.layer(backend).streaming(self.streaming), self.offset)
    }

    /// y, mean and rstd are exact within the bound.
    #[track_caller]
    pub fn assert_forward_is_within_bounds(&self) {
        bounds::assert_forward(&self.case, &self.run_on(backend(self.backend)), self.backend);
    }

    /// dx, dgamma and dbeta are exact within the bound; what is accumulated is what was there, plus that.
    #[track_caller]
    pub fn assert_backward_is_within_bounds(&self) {
        let found = self.run_on(backend(self.backend));
        bounds::assert_backward(&self.case, &found, self.backend);
        self.assert_accumulates(&found);
    }

    #[track_caller]
    fn assert_accumulates(&self, found: &Outcome<T>) {
        let Case { width, x, dy, .. } = &self.case;
        // What was there: finite, and of many sizes.
        let before = |len: usize| -> Vec<T> { (0..len).map(|i| T::from_f64((i % 7) as f64 - 2.5)).collect() };
        let (mut dx, mut dgamma, mut dbeta) = (before(x.len()), before(*width), before(*width));
        let gradients = GradientsMut {
            dx: Some(GradientMut::Accumulate(&mut dx)),
            dgamma: Some(GradientMut::Accumulate(&mut dgamma)),
            dbeta: Some(GradientMut::Accumulate(&mut dbeta)),
        };
        let layer = self.case.layer(backend(self.backend)).streaming(self.streaming);
        layer.backward_into(dy, x, Statistics { mean: &found.mean, rstd: &found.rstd }, gradients).unwrap();
        for (name, after, added) in
            [("dx", &dx, &found.dx), ("dgamma", &dgamma, &found.dgamma), ("dbeta", &dbeta, &found.dbeta)]
        {
            for (i, (&before, (&after, &added))) in before(added.len()).iter().zip(after.iter().zip(added)).enumerate()
            {
                // The sum of two f32 is exact in f64, or rounds as if it were.
                let expected = T::from_f64(before.to_f64() + added.to_f64());
                assert!(same(after, expected), "{name}[{i}]: {before} plus {added} became {after}");
            }
        }
    }

    /// Every backend that rounds like the model has its bits, as this call is made, with views, and in two calls.
    #[track_caller]
    pub fn assert_backends_agree(&self) {
        let expected = self.case.run(Backend::model(), 0);
        let fused = super::backends().into_iter().filter(is_fused);
        for backend in fused.chain([Backend::model()]) {
            let name = backend.name();
            self.run_on(backend).assert_same_bits(&expected, name);
            self.with_views(backend).assert_same_bits(&expected, &format!("{name}, with views"));
            self.in_two_calls(backend).assert_same_bits(&expected, &format!("{name}, in two calls"));
        }
    }

    /// The same with views of x and dy, laid out as the call says.
    fn with_views(&self, backend: Backend) -> Outcome<T> {
        let Case { width, x, dy, gamma, .. } = &self.case;
        let (x, dy) = (self.layout.lay_out(x, *width), self.layout.lay_out(dy, *width));
        let layer = self.case.layer(backend).streaming(self.streaming);
        let (y, cache) = layer.forward(x.view()).unwrap();
        // Without a parameter there is no gradient of it: a gamma of ones has that of no gamma, and a beta is not read.
        let ones = vec![T::from_f64(1.0); *width];
        let layer = layer.gamma(gamma.as_ref().unwrap_or(&ones)).beta(&ones);
        let gradients = layer.backward(dy.view(), &cache).unwrap();
        let parameter = |gradient: Option<ArrayD<T>>| gradient.unwrap().iter().copied().collect();
        Outcome {
            y: y.iter().copied().collect(),
            mean: cache.mean().to_vec(),
            rstd: cache.rstd().to_vec(),
            dx: gradients.dx.iter().copied().collect(),
            dgamma: parameter(gradients.dgamma),
            dbeta: parameter(gradients.dbeta),
        }
    }

    /// y, the statistics and dx of the first rows, then of the others; dgamma and dbeta of all at once.
    fn in_two_calls(&self, backend: Backend) -> Outcome<T> {
        let Case { width, x, dy, .. } = &self.case;
        let rows = x.len() / width;
        let mut found = self.run_on(backend);
        let (mut y, mut mean, mut rstd, mut dx) = (vec![], vec![], vec![], vec![]);
        for rows in [0..rows / 3, rows / 3..rows] {
            let span = rows.start * width..rows.end * width;
            let part = Self {
                case: Case { x: x[span.clone()].to_vec(), dy: dy[span].to_vec(), ..self.case.clone() },
                ..self.clone()
            };
            let part = part.run_on(backend);
            y.extend(part.y);
            mean.extend(part.mean);
            rstd.extend(part.rstd);
            dx.extend(part.dx);
        }
        (found.y, found.mean, found.rstd, found.dx) = (y, mean, rstd, dx);
        found
    }
}

fn same<T: Element>(a: T, b: T) -> bool {
    a == b || (a.to_f64().is_nan() && b.to_f64().is_nan())
}

/// The arrays as bits, to repeat a failure with.
impl<T: Bits> fmt::Debug for Call<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, backend, offset, layout, streaming } = self;
        let list = |values: &[T]| {
            let values: Vec<String> =
                values.iter().map(|value| format!("0x{:0w$x}", value.to_bits(), w = T::DIGITS)).collect();
            format!("bits(&[{}])", values.join(", "))
        };
        let optional = |values: &Option<Vec<T>>| {
            values.as_ref().map_or("None".to_owned(), |values| format!("Some({})", list(values)))
        };
        let (width, epsilon) = (case.width, case.epsilon);
        writeln!(
            formatter,
            "\n// {}, {} rows of {width}. For tests/kernels/any_bits.rs:",
            T::NAME,
            case.x.len() / width
        )?;
        writeln!(formatter, "#[test]\nfn named_after_what_it_promises() {{\n    let call = Call::<{}> {{", T::NAME)?;
        writeln!(formatter, "        case: Case {{\n            width: {width},")?;
        writeln!(formatter, "            x: {},\n            dy: {},", list(&case.x), list(&case.dy))?;
        writeln!(formatter, "            gamma: {},", optional(&case.gamma))?;
        writeln!(formatter, "            beta: {},", optional(&case.beta))?;
        writeln!(
            formatter,
            "            epsilon: f64::from_bits({:#x}), // {epsilon:e}\n        }},",
            epsilon.to_bits()
        )?;
        writeln!(
            formatter,
            "        backend: {backend:?},\n        offset: {offset},\n        layout: Layout::{layout:?},"
        )?;
        writeln!(formatter, "        streaming: Streaming::{streaming:?},\n    }};")?;
        writeln!(
            formatter,
            "    call.assert_forward_is_within_bounds();\n    call.assert_backward_is_within_bounds();"
        )?;
        writeln!(formatter, "    call.assert_backends_agree();\n}}")
    }
}
