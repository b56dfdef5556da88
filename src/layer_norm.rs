//! The public face: [`layer_norm`], [`layer_norm_backward`], and [`LayerNorm`] with everything.

use crate::driver::{self, BackwardJob, ForwardJob, Streaming};
use crate::kernel::forward::Parameters;
use crate::rows::Rows;
use crate::{Backend, Element, Error};
use ndarray::{Array, ArrayD, ArrayView, Dimension, IxDyn};

/// Normalizes the last dimension of `x`: `y = (x - mean) / sqrt(var + epsilon)`.
///
/// `x` has any number of dimensions (one at least) and any strides; `y` has its shape, in C order. The variance is
/// the mean of the squared deviations (not `n - 1`). The cache holds each row's statistics for
/// [`layer_norm_backward`]; it borrows `x`.
///
/// # Errors
///
/// [`Error::EmptyWidth`] where the last dimension is missing or of length 0, [`Error::Epsilon`] where `epsilon` is
/// negative or not finite.
///
/// # Example
///
/// ```
/// use ndarray::array;
///
/// let x = array![[1.0, 2.0, 3.0, 4.0], [-2.0, 2.0, -2.0, 2.0]];
/// let (y, cache) = llm_operator::layer_norm(x.view(), 0.0)?;
/// assert_eq!(y.row(1).to_vec(), [-1.0, 1.0, -1.0, 1.0]);
/// assert_eq!(cache.mean(), [2.5, 0.0]);
/// # Ok::<(), llm_operator::Error>(())
/// ```
pub fn layer_norm<'x, T: Element, D: Dimension>(
    x: ArrayView<'x, T, D>,
    epsilon: f64,
) -> Result<(Array<T, D>, LayerNormCache<'x, T, D>), Error> {
    let last = x.ndim().saturating_sub(1);
    LayerNorm::with_shape(&x.shape()[last..]).epsilon(epsilon).forward(x)
}

/// The gradient with respect to `x` of a loss whose gradient with respect to `y` is `dy`.
///
/// `dy` has the shape of the `x` that the cache borrows, and any strides; so has the result, in C order.
///
/// # Errors
///
/// [`Error::Shape`] where the shape of `dy` is not that of `x`.
///
/// # Example
///
/// ```
/// use ndarray::array;
///
/// let x = array![[1.0, 2.0, 3.0, 4.0]];
/// let (_, cache) = llm_operator::layer_norm(x.view(), 1e-5)?;
/// let dx = llm_operator::layer_norm_backward(array![[0.0, 0.0, 0.0, 1.0]].view(), &cache)?;
/// // The mean of a row does not matter to its normalized values, so no gradient points along it.
/// assert!(f64::abs(dx.sum()) < 1e-15);
/// # Ok::<(), llm_operator::Error>(())
/// ```
pub fn layer_norm_backward<T: Element, D: Dimension>(
    dy: ArrayView<'_, T, D>,
    cache: &LayerNormCache<'_, T, D>,
) -> Result<Array<T, D>, Error> {
    let plain = LayerNorm::with_shape(&cache.normalized_shape).epsilon(cache.epsilon);
    Ok(plain.backward(dy, cache)?.dx)
}

/// What forward leaves for backward: the input, borrowed, and each row's mean and `rstd`.
#[derive(Clone, Debug)]
pub struct LayerNormCache<'x, T, D: Dimension> {
    x: ArrayView<'x, T, D>,
    mean: Vec<T>,
    rstd: Vec<T>,
    normalized_shape: Vec<usize>,
    epsilon: f64,
}

impl<'x, T: Element, D: Dimension> LayerNormCache<'x, T, D> {
    /// The input of forward.
    pub fn x(&self) -> ArrayView<'x, T, D> {
        self.x.clone()
    }

    /// The mean of each row; as many as the dimensions that are not normalized have elements, in C order.
    pub fn mean(&self) -> &[T] {
        &self.mean
    }

    /// `1 / sqrt(var + epsilon)` of each row, in the same order.
    pub fn rstd(&self) -> &[T] {
        &self.rstd
    }

    /// What was added to the variance.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }
}

/// The gradients that [`LayerNorm::backward`] gives.
#[derive(Clone, Debug)]
pub struct Gradients<T, D: Dimension> {
    /// With respect to x, of its shape.
    pub dx: Array<T, D>,
    /// With respect to gamma, of the shape of the normalized dimensions; `None` without gamma.
    pub dgamma: Option<ArrayD<T>>,
    /// With respect to beta, likewise; `None` without beta.
    pub dbeta: Option<ArrayD<T>>,
}

/// Where [`LayerNorm::forward_into`] writes each row's statistics: one element a row in each slice.
#[derive(Debug)]
pub struct StatisticsMut<'a, T> {
    /// The mean of each row.
    pub mean: &'a mut [T],
    /// `1 / sqrt(var + epsilon)` of each row.
    pub rstd: &'a mut [T],
}

/// The statistics that [`LayerNorm::backward_into`] reads: one element a row in each slice.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a, T> {
    /// The mean of each row.
    pub mean: &'a [T],
    /// `1 / sqrt(var + epsilon)` of each row.
    pub rstd: &'a [T],
}

/// Where a gradient goes, and whether what is there already counts.
#[derive(Debug)]
pub enum GradientMut<'a, T> {
    /// The gradient takes the place of what was there, which is not read.
    Overwrite(&'a mut [T]),
    /// The gradient is added to what is there.
    Accumulate(&'a mut [T]),
}

/// Where [`LayerNorm::backward_into`] writes: each gradient that is `None` is not computed.
#[derive(Debug)]
pub struct GradientsMut<'a, T> {
    /// As many elements as x.
    pub dx: Option<GradientMut<'a, T>>,
    /// As many elements as a row. Where there is no gamma, the gradient at gamma = 1.
    pub dgamma: Option<GradientMut<'a, T>>,
    /// As many elements as a row.
    pub dbeta: Option<GradientMut<'a, T>>,
}

impl<T> Default for GradientsMut<'_, T> {
    fn default() -> Self {
        Self { dx: None, dgamma: None, dbeta: None }
    }
}

/// Layer normalization over the last dimensions of an array: `y = gamma * (x - mean) / sqrt(var + epsilon) + beta`.
///
/// gamma and beta are borrowed, each is optional, and each may come without the other. They have as many elements
/// as a row, in C order of the normalized dimensions. Nothing is checked before it is used: the calls that
/// compute return the errors.
///
/// # Example
///
/// ```
/// use llm_operator::LayerNorm;
/// use ndarray::array;
///
/// let gamma = [1.0_f32, 1.0, 2.0, 2.0];
/// let beta = [0.0_f32, 0.0, 0.0, 10.0];
/// let layer = LayerNorm::new(4).gamma(&gamma).beta(&beta).epsilon(0.0);
///
/// let x = array![[-3.0_f32, 3.0, -3.0, 3.0]];
/// let (y, cache) = layer.forward(x.view())?;
/// assert_eq!(y, array![[-1.0, 1.0, -2.0, 12.0]]);
///
/// let gradients = layer.backward(array![[1.0_f32, 2.0, 3.0, 4.0]].view(), &cache)?;
/// assert_eq!(gradients.dgamma.unwrap().as_slice().unwrap(), [-1.0, 2.0, -3.0, 4.0]);
/// # Ok::<(), llm_operator::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerNorm<'p, T> {
    normalized_shape: Vec<usize>,
    gamma: Option<&'p [T]>,
    beta: Option<&'p [T]>,
    epsilon: f64,
    backend: Option<Backend>,
    streaming: Streaming,
}

impl<'p, T: Element> LayerNorm<'p, T> {
    /// Normalizes the last dimension, of `width` elements, with `epsilon` 1e-5, without gamma and beta.
    pub fn new(width: usize) -> Self {
        Self::with_shape(&[width])
    }

    /// Normalizes the last dimensions together: x has a shape that ends in `normalized_shape`.
    ///
    /// ```
    /// use llm_operator::LayerNorm;
    /// use ndarray::Array3;
    ///
    /// let x = Array3::from_shape_fn((2, 4, 6), |(i, j, k)| (i + 2 * j + 3 * k) as f64);
    /// let (_, cache) = LayerNorm::with_shape(&[4, 6]).forward(x.view())?;
    /// assert_eq!(cache.mean().len(), 2);
    /// # Ok::<(), llm_operator::Error>(())
    /// ```
    pub fn with_shape(normalized_shape: &[usize]) -> Self {
        Self {
            normalized_shape: normalized_shape.to_vec(),
            gamma: None,
            beta: None,
            epsilon: 1e-5,
            backend: None,
            streaming: Streaming::Auto,
        }
    }

    /// Multiplies the normalized values by `gamma`: as many elements as a row.
    #[must_use]
    pub fn gamma(mut self, gamma: &'p [T]) -> Self {
        self.gamma = Some(gamma);
        self
    }

    /// Adds `beta` at the end: as many elements as a row.
    #[must_use]
    pub fn beta(mut self, beta: &'p [T]) -> Self {
        self.beta = Some(beta);
        self
    }

    /// What is added to the variance: finite and not negative. 0 is allowed: the normalized values, and
    /// dx, of a constant row are then 0.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Runs on `backend` instead of [`Backend::chosen`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Says whether outputs are written past the caches; by default where they cannot stay there.
    ///
    /// To stream saves the read of memory that is about to be overwritten; it loses where the output is read again soon.
    #[must_use]
    pub fn streaming(mut self, streaming: Streaming) -> Self {
        self.streaming = streaming;
        self
    }

    /// The output, and what backward needs.
    ///
    /// `x` has any strides and a shape that ends in the normalized dimensions; `y` has its shape, in C order.
    ///
    /// # Errors
    ///
    /// [`Error::TrailingShape`] for x, [`Error::Length`] for gamma or beta, [`Error::EmptyWidth`],
    /// [`Error::Epsilon`], and [`Error::Backend`] where the environment asks for a backend that is not there.
    pub fn forward<'x, D: Dimension>(
        &self,
        x: ArrayView<'x, T, D>,
    ) -> Result<(Array<T, D>, LayerNormCache<'x, T, D>), Error> {
        let (parameters, backend) = self.checked()?;
        self.check_trailing("x", x.shape())?;
        let rows = Rows::from_view(x.clone().into_dyn(), self.normalized_shape.len(), parameters.width);
        let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::ZERO; rows.count()]);
        let mut y = vec![T::ZERO; x.len()];
        driver::forward(ForwardJob {
            backend,
            parameters,
            x: &rows,
            y: &mut y,
            mean: Some(&mut mean),
            rstd: Some(&mut rstd),
            streaming: self.streaming,
        });
        let y = shaped(x.raw_dim(), y);
        let cache =
            LayerNormCache { x, mean, rstd, normalized_shape: self.normalized_shape.clone(), epsilon: self.epsilon };
        Ok((y, cache))
    }

    /// The gradients of a loss whose gradient with respect to y is `dy`.
    ///
    /// `dy` has the shape of the x that the cache borrows, and any strides. `cache` comes from [`forward`](Self::forward)
    /// of a layer with the same normalized dimensions; `epsilon` is that layer's, gamma is this one's.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for dy, [`Error::Cache`] where the cache comes from a layer with other normalized dimensions, and
    /// those of `forward`.
    pub fn backward<D: Dimension>(
        &self,
        dy: ArrayView<'_, T, D>,
        cache: &LayerNormCache<'_, T, D>,
    ) -> Result<Gradients<T, D>, Error> {
        let (parameters, backend) = self.checked()?;
        if self.normalized_shape != cache.normalized_shape {
            return Err(Error::Cache {
                expected: self.normalized_shape.clone(),
                found: cache.normalized_shape.clone(),
            });
        }
        if dy.shape() != cache.x.shape() {
            return Err(Error::Shape {
                argument: "dy",
                expected: cache.x.shape().to_vec(),
                found: dy.shape().to_vec(),
            });
        }
        let dims = self.normalized_shape.len();
        let x = Rows::from_view(cache.x.clone().into_dyn(), dims, parameters.width);
        let dim = dy.raw_dim();
        let dy = Rows::from_view(dy.into_dyn(), dims, parameters.width);
        let mut dx = vec![T::ZERO; cache.x.len()];
        let job = BackwardJob {
            backend,
            parameters: Parameters { epsilon: cache.epsilon, ..parameters },
            x: &x,
            dy: &dy,
            mean: &cache.mean,
            rstd: &cache.rstd,
            dx: Some((&mut dx, false)),
            streaming: self.streaming,
            continues: false,
        };
        let mut sums = [self.gamma, self.beta].map(|parameter| parameter.map(|_| vec![T::ZERO; parameters.width]));
        driver::backward(job, sums.each_mut().map(|sum| sum.as_deref_mut().map(|sum| (sum, false))));
        let [dgamma, dbeta] = sums.map(|sum| sum.map(|sum| shaped(IxDyn(&self.normalized_shape), sum)));
        Ok(Gradients { dx: shaped(dim, dx), dgamma, dbeta })
    }

    /// Forward into the caller's memory: `x` and `y` are rows that lie one after the other.
    ///
    /// Allocates nothing that grows with the number of rows.
    ///
    /// # Errors
    ///
    /// [`Error::PartialRow`] for x, [`Error::Length`] for y, `statistics.mean`, `statistics.rstd`, gamma or beta,
    /// and those of [`forward`](Self::forward).
    ///
    /// # Example
    ///
    /// ```
    /// use llm_operator::{LayerNorm, StatisticsMut};
    ///
    /// let x = [1.0_f64, 3.0, 10.0, 30.0];
    /// let (mut y, mut mean, mut rstd) = ([0.0; 4], [0.0; 2], [0.0; 2]);
    /// let statistics = StatisticsMut { mean: &mut mean, rstd: &mut rstd };
    /// LayerNorm::new(2).epsilon(0.0).forward_into(&x, &mut y, Some(statistics))?;
    /// assert_eq!(y, [-1.0, 1.0, -1.0, 1.0]);
    /// assert_eq!((mean, rstd), ([2.0, 20.0], [1.0, 0.1]));
    /// # Ok::<(), llm_operator::Error>(())
    /// ```
    pub fn forward_into(&self, x: &[T], y: &mut [T], statistics: Option<StatisticsMut<'_, T>>) -> Result<(), Error> {
        let (parameters, backend) = self.checked()?;
        let rows = rows_of("x", x, parameters.width)?;
        check_length("y", x.len(), y.len())?;
        let (mean, rstd) = statistics.map(|statistics| (statistics.mean, statistics.rstd)).unzip();
        check_length("statistics.mean", rows.count(), mean.as_ref().map_or(rows.count(), |mean| mean.len()))?;
        check_length("statistics.rstd", rows.count(), rstd.as_ref().map_or(rows.count(), |rstd| rstd.len()))?;
        driver::forward(ForwardJob { backend, parameters, x: &rows, y, mean, rstd, streaming: self.streaming });
        Ok(())
    }

    /// Backward into the caller's memory: `dy` and `x` are rows that lie one after the other, `statistics` is what
    /// [`forward_into`](Self::forward_into) wrote. Gradients that are `None` are not computed. (Rows narrower than 16 elements, and
    /// those whose squares leave the range of the type, are computed from x alone.)
    ///
    /// Allocates nothing that grows with the number of rows, but for the partial sums of dgamma and dbeta: 64 of each
    /// at most.
    ///
    /// # Errors
    ///
    /// [`Error::PartialRow`] for x, [`Error::Length`] for dy, `statistics.mean`, `statistics.rstd`, dx, dgamma, dbeta,
    /// gamma or beta, and those of [`forward`](Self::forward).
    ///
    /// # Example
    ///
    /// ```
    /// use llm_operator::{GradientMut, GradientsMut, LayerNorm, Statistics};
    ///
    /// let (x, dy) = ([-1.0_f64, 1.0], [3.0, 5.0]);
    /// let statistics = Statistics { mean: &[0.0], rstd: &[1.0] };
    /// let (mut dx, mut dbeta) = ([f64::NAN; 2], [100.0; 2]);
    /// let gradients = GradientsMut {
    ///     dx: Some(GradientMut::Overwrite(&mut dx)),
    ///     dbeta: Some(GradientMut::Accumulate(&mut dbeta)),
    ///     ..GradientsMut::default()
    /// };
    /// LayerNorm::new(2).epsilon(0.0).backward_into(&dy, &x, statistics, gradients)?;
    /// assert_eq!((dx, dbeta), ([0.0; 2], [103.0, 105.0]));
    /// # Ok::<(), llm_operator::Error>(())
    /// ```
    pub fn backward_into(
        &self,
        dy: &[T],
        x: &[T],
        statistics: Statistics<'_, T>,
        gradients: GradientsMut<'_, T>,
    ) -> Result<(), Error> {
        let (parameters, backend) = self.checked()?;
        let width = parameters.width;
        let x = rows_of("x", x, width)?;
        check_length("dy", x.count() * width, dy.len())?;
        check_length("statistics.mean", x.count(), statistics.mean.len())?;
        check_length("statistics.rstd", x.count(), statistics.rstd.len())?;
        let GradientsMut { dx, dgamma, dbeta } = gradients;
        check_gradient("dx", x.count() * width, dx.as_ref())?;
        check_gradient("dgamma", width, dgamma.as_ref())?;
        check_gradient("dbeta", width, dbeta.as_ref())?;
        let job = BackwardJob {
            backend,
            parameters,
            x: &x,
            dy: &Rows::from_slice(dy, width),
            mean: statistics.mean,
            rstd: statistics.rstd,
            dx: dx.map(GradientMut::into_parts),
            streaming: self.streaming,
            continues: false,
        };
        driver::backward(job, [dgamma, dbeta].map(|gradient| gradient.map(GradientMut::into_parts)));
        Ok(())
    }

    /// The width and the parameters of their right lengths, and the backend.
    fn checked(&self) -> Result<(Parameters<'p, T>, Backend), Error> {
        if self.normalized_shape.is_empty() || self.normalized_shape.contains(&0) {
            return Err(Error::EmptyWidth { found: self.normalized_shape.clone() });
        }
        let width = self.normalized_shape.iter().try_fold(1_usize, |width, &len| width.checked_mul(len));
        let width = width.ok_or_else(|| Error::HugeWidth { found: self.normalized_shape.clone() })?;
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Epsilon { found: self.epsilon });
        }
        check_length("gamma", width, self.gamma.map_or(width, <[T]>::len))?;
        check_length("beta", width, self.beta.map_or(width, <[T]>::len))?;
        let backend = self.backend.map_or_else(Backend::chosen, Ok)?;
        Ok((Parameters { width, gamma: self.gamma, beta: self.beta, epsilon: self.epsilon }, backend))
    }

    fn check_trailing(&self, argument: &'static str, shape: &[usize]) -> Result<(), Error> {
        if shape.ends_with(&self.normalized_shape) {
            return Ok(());
        }
        Err(Error::TrailingShape { argument, expected: self.normalized_shape.clone(), found: shape.to_vec() })
    }
}

impl<'a, T> GradientMut<'a, T> {
    /// The memory, and whether to add to it.
    fn into_parts(self) -> (&'a mut [T], bool) {
        match self {
            GradientMut::Overwrite(slice) => (slice, false),
            GradientMut::Accumulate(slice) => (slice, true),
        }
    }

    fn len(&self) -> usize {
        match self {
            GradientMut::Overwrite(slice) | GradientMut::Accumulate(slice) => slice.len(),
        }
    }
}

/// An array in C order of elements that are as many as its shape has.
fn shaped<T, D: Dimension>(shape: D, elements: Vec<T>) -> Array<T, D> {
    Array::from_shape_vec(shape, elements).expect("the vector was made with the shape's number of elements")
}

/// A slice as whole rows.
fn rows_of<'a, T: Element>(argument: &'static str, slice: &'a [T], width: usize) -> Result<Rows<'a, T>, Error> {
    if !slice.len().is_multiple_of(width) {
        return Err(Error::PartialRow { argument, width, found: slice.len() });
    }
    Ok(Rows::from_slice(slice, width))
}

fn check_length(argument: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { argument, expected, found }) }
}

fn check_gradient<T>(
    argument: &'static str,
    expected: usize,
    gradient: Option<&GradientMut<'_, T>>,
) -> Result<(), Error> {
    check_length(argument, expected, gradient.map_or(expected, GradientMut::len))
}
