//! The speed of memory: what a kernel's reads and writes cost without its arithmetic.
//!
//! A LayerNorm forward reads x and writes y: it can be no faster than [`copy`]. A backward reads x and dy and writes
//! dx: it can be no faster than [`add`]. Both run on the same tasks, threads and instruction set as the kernels, with
//! ordinary or with streaming stores.

use crate::{Backend, Element, Error, driver};

/// `output = a`: one read and one write.
///
/// `stream` asks for stores past the caches, which save the read of the line that is about to be overwritten.
///
/// # Errors
///
/// [`Error::Length`] where `output` is not as long as `a`.
///
/// # Example
///
/// ```
/// use llm_operator::{Backend, roofline};
///
/// let mut output = [0.0_f32; 100];
/// roofline::copy(Backend::chosen()?, &[7.0_f32; 100], &mut output, false)?;
/// assert_eq!(output, [7.0; 100]);
/// # Ok::<(), llm_operator::Error>(())
/// ```
pub fn copy<T: Element>(backend: Backend, a: &[T], output: &mut [T], stream: bool) -> Result<(), Error> {
    if output.len() != a.len() {
        return Err(Error::Length { argument: "output", expected: a.len(), found: output.len() });
    }
    driver::copy(backend, a, None, output, stream);
    Ok(())
}

/// `output = a + b`: two reads and one write.
///
/// # Errors
///
/// [`Error::Length`] where `b` or `output` is not as long as `a`.
///
/// # Example
///
/// ```
/// use llm_operator::{Backend, roofline};
///
/// let mut output = [0.0_f64; 100];
/// roofline::add(Backend::chosen()?, &[7.0_f64; 100], &[1.0; 100], &mut output, false)?;
/// assert_eq!(output, [8.0; 100]);
/// # Ok::<(), llm_operator::Error>(())
/// ```
pub fn add<T: Element>(backend: Backend, a: &[T], b: &[T], output: &mut [T], stream: bool) -> Result<(), Error> {
    for (argument, found) in [("b", b.len()), ("output", output.len())] {
        if found != a.len() {
            return Err(Error::Length { argument, expected: a.len(), found });
        }
    }
    driver::copy(backend, a, Some(b), output, stream);
    Ok(())
}
