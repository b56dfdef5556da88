//! An operation with unsafe code inside can write where it has no business: the checker sees it.
#![allow(unsafe_code, reason = "what is planted here can be written in no other way")]

use llm_operator::Element;
use llm_operator::grad_check::{GradCheck, Input, Operation, Outcome, Report, Verdict};
use llm_operator::numpy_random::default_rng;
use ndarray::{ArrayD, Dimension};

/// Where `y = x` writes, in the forward or in the backward.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    AfterResult,
    BeforeResult,
    Input,
}

struct Careless {
    forward: Beside,
    backward: Beside,
}

fn copy<T: Element>(from: &ArrayD<T>, to: &mut ArrayD<T>, beside: Beside) {
    to.assign(from);
    let len = to.len();
    let stray = T::from_f64(3.0);
    match beside {
        Beside::Nothing => {}
        // SAFETY: not safe in general. The checker's buffers lie within longer vectors, and this test relies on it;
        // elsewhere in a check a buffer has no such frame, and then nothing is written.
        Beside::AfterResult if framed(to) => unsafe { to.as_mut_ptr().add(len).write(stray) },
        // SAFETY: as above.
        Beside::BeforeResult if framed(to) => unsafe { to.as_mut_ptr().sub(1).write(stray) },
        // SAFETY: not safe either, the input is borrowed by the checker; but it is alive, and no other thread reads it
        // now.
        Beside::Input => unsafe { from.as_ptr().cast_mut().write_volatile(stray) },
        Beside::AfterResult | Beside::BeforeResult => {}
    }
}

/// Whether an array lies within a longer vector.
fn framed<T: Element>(array: &mut ArrayD<T>) -> bool {
    let shape = array.raw_dim();
    let taken = std::mem::replace(array, ArrayD::from_elem(shape.clone(), T::default()));
    let strides_are_plain = taken.is_standard_layout();
    let (all, offset) = taken.into_raw_vec_and_offset();
    let (len, offset) = (shape.slice().iter().product::<usize>(), offset.unwrap_or(0));
    let framed = strides_are_plain && offset > 0 && all.len() > offset + len;
    let mut whole = ndarray::Array1::from_vec(all);
    whole.slice_collapse(ndarray::s![offset..offset + len]);
    *array = whole.into_shape_with_order(shape).unwrap();
    framed
}

impl<T: Element> Operation<T> for Careless {
    fn name(&self) -> String {
        "careless".to_owned()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![Input::rows("x", [3, 5])]
    }
    fn output_shape(&self) -> Vec<usize> {
        vec![3, 5]
    }
    fn forward(&self, inputs: &[ArrayD<T>], output: &mut ArrayD<T>) -> Outcome {
        copy(&inputs[0], output, self.forward);
        Ok(())
    }
    fn backward(&self, _: &[ArrayD<T>], dy: &ArrayD<T>, gradients: &mut [ArrayD<T>]) -> Outcome {
        copy(dy, &mut gradients[0], self.backward);
        Ok(())
    }
}

fn check<T: Element>(operation: &Careless) -> Report {
    let mut rng = default_rng(6);
    let [x, dy] = [(); 2].map(|()| rng.standard_normal(&[3, 5]).mapv(T::from_f64));
    GradCheck::new().run::<T>(operation, &[x], &dy).unwrap()
}

fn names_what_is_written<T: Element>(forward: Beside, backward: Beside, expected: &str) {
    let report = check::<T>(&Careless { forward, backward });
    assert_eq!(report.verdict, Verdict::Wrong, "{report}");
    assert!(report.reasons.iter().any(|reason| reason == expected), "expected {expected}: {report}");
}

#[test]
fn a_write_beside_a_result_is_named() {
    use Beside::{AfterResult, BeforeResult, Nothing};
    let words = |call: &str, place: i32| {
        format!("{call} writes nothing else: element {place} of result 0, which it does not have, was written")
    };
    names_what_is_written::<f64>(AfterResult, Nothing, &words("forward", 15));
    names_what_is_written::<f32>(BeforeResult, Nothing, &words("forward", -1));
    names_what_is_written::<f32>(Nothing, AfterResult, &words("backward", 15));
    names_what_is_written::<f64>(Nothing, BeforeResult, &words("backward", -1));
}

#[test]
fn a_write_to_an_argument_is_named() {
    use Beside::{Input, Nothing};
    let words = |call: &str, argument: &str| format!("{call} writes nothing else: {argument} was changed");
    names_what_is_written::<f64>(Input, Nothing, &words("forward", "the input x"));
    names_what_is_written::<f32>(Nothing, Input, &words("backward", "the upstream gradient"));
}

#[test]
fn an_operation_that_writes_its_results_alone_passes() {
    let operation = Careless { forward: Beside::Nothing, backward: Beside::Nothing };
    assert_eq!(check::<f64>(&operation).verdict, Verdict::Passed);
    assert_eq!(check::<f32>(&operation).verdict, Verdict::Passed);
}
