//! One operation with its inputs and upstream gradient, validated, and the only place where it is called.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{ArrayD, IxDyn};

use super::error::{Call, CheckError, Probe, Stage};
use super::operation::{Input, Locality, Operation, Outcome};
use super::progress::Progress;
use crate::Element;

/// Pairs of perturbed copies of a block of rows that one call takes: those of a step and of its double.
pub(super) const PAIRS: usize = 2;

/// What every mode works on. Past its constructor no shape can be wrong.
pub(super) struct Problem<'a, T: Element> {
    pub(super) operation: &'a dyn Operation<T>,
    pub(super) name: String,
    pub(super) declared: Vec<Input>,
    pub(super) inputs: Cow<'a, [ArrayD<T>]>,
    pub(super) upstream: Cow<'a, ArrayD<T>>,
    pub(super) output_shape: Vec<usize>,
    /// Rows of the output, as the inputs declare them; 1 where none does.
    pub(super) rows: usize,
    progress: &'a Progress,
    forwarded: RowCount,
}

/// Rows that were forwarded. All threads write it, after every few rows: so it has a pair of cache lines of its own, and
/// what lies beside it is not taken away from whoever reads that.
#[repr(align(128))]
#[derive(Default)]
struct RowCount(AtomicU64);

impl<'a, T: Element> Problem<'a, T> {
    pub(super) fn new(
        operation: &'a dyn Operation<T>,
        inputs: &'a [ArrayD<T>],
        upstream: &'a ArrayD<T>,
        progress: &'a Progress,
    ) -> Result<Self, CheckError> {
        let declared = operation.inputs();
        let output_shape = operation.output_shape();
        let name = operation.name();
        check_count("inputs", declared.len(), inputs.len())?;
        for (declared, array) in declared.iter().zip(inputs) {
            check_shape(&declared.name, &declared.shape, array.shape())?;
        }
        check_shape("upstream gradient", &output_shape, upstream.shape())?;
        let rows = declared_rows(&declared, &output_shape)
            .map_err(|problem| CheckError::Declaration { operation: name.clone(), problem })?;
        let inputs = if inputs.iter().all(ArrayD::is_standard_layout) {
            Cow::Borrowed(inputs)
        } else {
            Cow::Owned(inputs.iter().map(|array| array.as_standard_layout().into_owned()).collect())
        };
        let upstream = if upstream.is_standard_layout() {
            Cow::Borrowed(upstream)
        } else {
            Cow::Owned(upstream.as_standard_layout().into_owned())
        };
        let forwarded = RowCount::default();
        Ok(Self { operation, name, declared, inputs, upstream, output_shape, rows, progress, forwarded })
    }

    /// Elements of the output.
    pub(super) fn output_len(&self) -> usize {
        self.upstream.len()
    }

    /// Elements in a row of the output; at least 1.
    pub(super) fn width(&self) -> usize {
        (self.output_len() / self.rows.max(1)).max(1)
    }

    /// The upstream gradient in C order.
    pub(super) fn dy(&self) -> &[T] {
        self.upstream.as_slice().unwrap_or_default()
    }

    /// Input `k` in C order.
    pub(super) fn input(&self, k: usize) -> &[T] {
        self.inputs[k].as_slice().unwrap_or_default()
    }

    /// An output buffer full of NaN: what an operation leaves unwritten is seen.
    pub(super) fn poisoned_output(&self) -> ArrayD<T> {
        ArrayD::from_elem(IxDyn(&self.output_shape), T::from_f64(f64::NAN))
    }

    /// Forwards of the whole input carried out until now, rounded up; those of a difference are counted as it begins.
    pub(super) fn forwards(&self) -> u64 {
        self.forwarded.0.load(Ordering::Relaxed).div_ceil(self.rows.max(1) as u64)
    }

    /// Whether the caller asked for the end.
    pub(super) fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }

    /// Announces work, for the progress bar.
    pub(super) fn expect_forwards(&self, forwards: u64) {
        self.progress.expect(forwards);
    }

    /// Runs the operation forward; afterwards `output` has its shape and is in C order.
    pub(super) fn forward(
        &self,
        inputs: &[ArrayD<T>],
        output: &mut ArrayD<T>,
        probe: impl FnOnce() -> Option<Probe>,
    ) -> Result<(), CheckError> {
        self.count(self.rows.max(1))?;
        let outcome = caught(|| self.operation.forward(inputs, output));
        outcome.map_err(|failure| failure.at(Call { stage: Stage::Forward, probe: probe() }))?;
        tidy(output, "output", &self.output_shape)
    }

    /// The rows of each input that is declared in rows, and all of any other.
    pub(super) fn rows_of_inputs(&self, rows: &Range<usize>) -> impl Iterator<Item = &[T]> {
        self.declared.iter().enumerate().map(|(k, declared)| match declared.locality {
            Locality::Rows(count) => {
                // 0 where rows have no elements.
                let row_len = declared.len() / count.max(1);
                &self.input(k)[rows.start * row_len..rows.end * row_len]
            }
            Locality::Columns | Locality::Shared => self.input(k),
        })
    }

    /// Runs rows of these numbers forward, which the caller has [counted](Self::count); the operation must be able to.
    pub(super) fn forward_rows(
        &self,
        rows: &[usize],
        inputs: &[&[T]],
        output: &mut [T],
        probe: impl FnOnce() -> Option<Probe>,
    ) -> Result<(), CheckError> {
        let unable = || Err(format!("{} cannot be run on rows {rows:?}", self.name).into());
        caught(|| self.operation.forward_rows(rows, inputs, output).unwrap_or_else(unable))
            .map_err(|failure| failure.at(Call { stage: Stage::Forward, probe: probe() }))
    }

    /// Whether the operation can be run on a block of rows.
    pub(super) fn runs_blocks(&self) -> Result<bool, CheckError> {
        if self.rows < 1 || self.output_len() == 0 {
            return Ok(false);
        }
        let mut output = vec![T::from_f64(f64::NAN); self.width()];
        let inputs: Vec<_> = self.rows_of_inputs(&(0..1)).collect();
        let mut able = true;
        caught(|| {
            self.operation.forward_rows(&[0], &inputs, &mut output).unwrap_or_else(|| {
                able = false;
                Ok(())
            })
        })
        .map_err(|failure| failure.at(Call::unperturbed(Stage::Forward)))?;
        Ok(able)
    }

    /// Rows in a block: so many that all copies that a call takes of them stay in a core's own cache with their output,
    /// and so few that there is work for some threads, but enough to be worth a call. It depends on the shapes alone.
    pub(super) fn block_rows(&self) -> usize {
        /// Blocks that a small input is cut into.
        const BLOCKS: usize = 16;
        /// Elements that are worth a call.
        const WORTH: usize = 1 << 12;
        let worth = WORTH.div_ceil(2 * PAIRS * self.width());
        let few = self.rows.div_ceil(BLOCKS).max(worth);
        (self.stacked_rows() / (2 * PAIRS)).clamp(1, few).min(self.rows.max(1))
    }

    /// Pairs of copies of a block that a call takes.
    pub(super) fn pairs_of_copies(&self) -> usize {
        if self.stacked_rows() < 2 * PAIRS { 1 } else { PAIRS }
    }

    /// How many rows a call takes: so many that they and their output stay in a small second-level cache.
    fn stacked_rows(&self) -> usize {
        /// Bytes of the rows of an input, and of the output: together below what LayerNorm shares out to threads.
        const BYTES: usize = 48 << 10;
        let inputs = self.declared.iter().filter(|declared| matches!(declared.locality, Locality::Rows(_)));
        let longest = inputs.map(Input::row_len).max().unwrap_or(1).max(self.width());
        BYTES / (longest * size_of::<T>())
    }

    /// All blocks of rows, in order.
    pub(super) fn blocks(&self) -> Vec<Range<usize>> {
        let rows = self.block_rows();
        (0..self.rows).step_by(rows).map(|start| start..(start + rows).min(self.rows)).collect()
    }

    /// Buffers for the gradients, full of NaN.
    pub(super) fn poisoned_gradients(&self) -> Vec<ArrayD<T>> {
        let poison = T::from_f64(f64::NAN);
        self.declared.iter().map(|input| ArrayD::from_elem(IxDyn(&input.shape), poison)).collect()
    }

    /// Runs the operation backward on `inputs`, into buffers that are poisoned with NaN.
    pub(super) fn backward(&self, inputs: &[ArrayD<T>], dy: &ArrayD<T>) -> Result<Vec<ArrayD<T>>, CheckError> {
        let mut gradients = self.poisoned_gradients();
        self.backward_into(inputs, dy, &mut gradients)?;
        Ok(gradients)
    }

    /// Runs the operation backward into buffers of the inputs' shapes, whatever they hold.
    pub(super) fn backward_into(
        &self,
        inputs: &[ArrayD<T>],
        dy: &ArrayD<T>,
        gradients: &mut [ArrayD<T>],
    ) -> Result<(), CheckError> {
        caught(|| self.operation.backward(inputs, dy, gradients))
            .map_err(|failure| failure.at(Call::unperturbed(Stage::Backward)))?;
        for (gradient, input) in gradients.iter_mut().zip(&self.declared) {
            tidy(gradient, &format!("gradient of {}", input.name), &input.shape)?;
        }
        Ok(())
    }

    /// Counts rows as forwarded, and ends the check where that was asked for.
    pub(super) fn count(&self, rows: usize) -> Result<(), CheckError> {
        if self.progress.is_stopped() {
            return Err(CheckError::Stopped { forwards: self.forwards() });
        }
        let whole = self.rows.max(1) as u64;
        let before = self.forwarded.0.fetch_add(rows as u64, Ordering::Relaxed);
        self.progress.advance((before + rows as u64) / whole - before / whole);
        Ok(())
    }

    /// The index of element `flat` of input `k`.
    pub(super) fn index(&self, k: usize, flat: usize) -> Vec<usize> {
        index_of(&self.declared[k].shape, flat)
    }
}

/// The index of the element that lies `flat` elements from the first, in C order.
pub(super) fn index_of(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (position, &length) in index.iter_mut().zip(shape).rev() {
        *position = flat % length.max(1);
        flat /= length.max(1);
    }
    index
}

/// How a call went wrong.
pub(super) enum Failure {
    Refused(String),
    Panicked(String),
}

impl Failure {
    pub(super) fn at(self, call: Call) -> CheckError {
        match self {
            Self::Refused(message) => CheckError::Refused { call, message },
            Self::Panicked(message) => CheckError::Panicked { call, message },
        }
    }
}

/// Runs a call of the operation and turns its error, or its panic, into a value.
pub(super) fn caught(call: impl FnOnce() -> Outcome) -> Result<(), Failure> {
    // What a panic leaves half done is never looked at: the check ends with it.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Refused(error.to_string())),
        Err(payload) => {
            let message = payload
                .downcast_ref::<&str>()
                .map(|message| (*message).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Err(Failure::Panicked(message))
        }
    }
}

/// An operation may replace a buffer: it must then have the declared shape, and is brought into C order.
fn tidy<T: Element>(array: &mut ArrayD<T>, name: &str, shape: &[usize]) -> Result<(), CheckError> {
    check_shape(name, shape, array.shape())?;
    if !array.is_standard_layout() {
        *array = array.as_standard_layout().into_owned();
    }
    Ok(())
}

pub(super) fn check_count(argument: &'static str, expected: usize, found: usize) -> Result<(), CheckError> {
    if expected == found { Ok(()) } else { Err(CheckError::Count { argument, expected, found }) }
}

pub(super) fn check_shape(name: &str, expected: &[usize], found: &[usize]) -> Result<(), CheckError> {
    if expected == found {
        Ok(())
    } else {
        Err(CheckError::Shape { name: name.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
    }
}

/// The number of rows that the inputs agree on, or what contradicts it.
fn declared_rows(declared: &[Input], output_shape: &[usize]) -> Result<usize, String> {
    let output_len: usize = output_shape.iter().product();
    let mut rows = None;
    for input in declared {
        if let Locality::Rows(found) = input.locality {
            if *rows.get_or_insert(found) != found {
                return Err(format!("{} declares {found} rows, another input {rows:?}", input.name));
            }
            for (what, length) in [("elements", input.len()), ("elements of output", output_len)] {
                if length.checked_rem(found).unwrap_or(length) != 0 {
                    return Err(format!("{} declares {found} rows, but there are {length} {what}", input.name));
                }
            }
        }
    }
    for input in declared.iter().filter(|input| input.locality == Locality::Columns) {
        if output_len.checked_rem(input.len()).unwrap_or(output_len) != 0 {
            let length = input.len();
            return Err(format!("{} declares {length} columns, but the output has {output_len} elements", input.name));
        }
    }
    Ok(rows.unwrap_or(1))
}
