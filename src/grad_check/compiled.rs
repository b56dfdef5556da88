//! The checker for each element type as functions that are not generic: they are compiled once, with this crate, and not
//! again in each that depends on it.

use ndarray::ArrayD;

use super::error::CheckError;
use super::identities::Layer;
use super::operation::{Identity, Operation};
use super::report::Report;
use super::run::{Given, GradCheck};
use super::sweep::Sweep;
use super::{identities, run, sweep};
use crate::Element;

/// An element type that gradients are checked in.
pub(crate) trait Checked: Sized {
    /// [`GradCheck::run`], or with `given` [`GradCheck::judge`].
    fn check(
        check: &GradCheck,
        operation: &dyn Operation<Self>,
        inputs: &[ArrayD<Self>],
        dy: &ArrayD<Self>,
        given: Option<&[Option<Given>]>,
    ) -> Result<Report, CheckError>
    where
        Self: Element;

    /// [`GradCheck::sweep`].
    fn sweep(
        check: &GradCheck,
        operation: &dyn Operation<Self>,
        inputs: &[ArrayD<Self>],
        dy: &ArrayD<Self>,
        input: usize,
    ) -> Result<Sweep, CheckError>
    where
        Self: Element;

    /// [`layer_norm_identities`](super::layer_norm_identities).
    fn layer_norm_identities(
        layer: Layer<'_, Self>,
        dx: &ArrayD<Self>,
        parameters: Option<(&ArrayD<Self>, &ArrayD<Self>)>,
    ) -> Vec<Identity>
    where
        Self: Element;

    /// [`layer_norm_terms`](super::layer_norm_terms).
    fn layer_norm_terms(layer: Layer<'_, Self>) -> [Vec<f64>; 3]
    where
        Self: Element;
}

macro_rules! checked {
    ($type:ident) => {
        impl Checked for $type {
            fn check(
                check: &GradCheck,
                operation: &dyn Operation<Self>,
                inputs: &[ArrayD<Self>],
                dy: &ArrayD<Self>,
                given: Option<&[Option<Given>]>,
            ) -> Result<Report, CheckError> {
                run::check(check, operation, inputs, dy, given)
            }

            fn sweep(
                check: &GradCheck,
                operation: &dyn Operation<Self>,
                inputs: &[ArrayD<Self>],
                dy: &ArrayD<Self>,
                input: usize,
            ) -> Result<Sweep, CheckError> {
                sweep::sweep(check, operation, inputs, dy, input)
            }

            fn layer_norm_identities(
                layer: Layer<'_, Self>,
                dx: &ArrayD<Self>,
                parameters: Option<(&ArrayD<Self>, &ArrayD<Self>)>,
            ) -> Vec<Identity> {
                identities::of_layer_norm(layer, dx, parameters)
            }

            fn layer_norm_terms(layer: Layer<'_, Self>) -> [Vec<f64>; 3] {
                identities::terms(layer)
            }
        }
    };
}

checked!(f32);
checked!(f64);
