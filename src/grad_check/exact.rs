//! What holds exactly or not at all, and needs no differences.

use ndarray::{ArrayD, IxDyn, Zip};
use rayon::prelude::*;

use super::error::{Call, CheckError, Stage};
use super::framed::{framed, written_beside};
use super::independence::row_bits;
use super::operation::{Identity, Input, Locality, Operation};
use super::problem::{Problem, caught, index_of};
use super::report::Check;
use super::stack::Stack;
use super::verdict::ROUNDINGS_OF_TERMS;
use crate::Element;
use crate::numpy_random::default_rng;

/// What buffers hold before a call: a call that leaves an element as it is, or reads it, shows by the difference.
const POISONS: [f64; 2] = [f64::NAN, -1.5e30];

/// Checks the forward and, where it is the gradient under test, the backward.
pub(super) fn verify<T: Element>(
    problem: &Problem<'_, T>,
    backward: bool,
    checks: &mut Vec<Check>,
) -> Result<(), CheckError> {
    if problem.output_len() == 0 {
        return Ok(());
    }
    let arguments = argument_bits(problem);
    let width = problem.width();
    let forward = |poison: f64| {
        let mut y = framed(&problem.output_shape, T::from_f64(poison));
        problem.forward(&problem.inputs, &mut y, || None)?;
        Ok(Results::of(vec![(y, width)]))
    };
    repeated(checks, "forward", &forward, &|| changed_argument(problem, &arguments))?;
    if backward {
        let gradients = |poison: f64| {
            let declared = problem.declared.iter();
            let mut gradients: Vec<_> = declared.map(|input| framed(&input.shape, T::from_f64(poison))).collect();
            problem.backward_into(&problem.inputs, &problem.upstream, &mut gradients)?;
            Ok(Results::of(gradients.into_iter().zip(problem.declared.iter().map(Input::row_len)).collect()))
        };
        repeated(checks, "backward", &gradients, &|| changed_argument(problem, &arguments))?;
        checks.push(linear(problem)?);
        if problem.operation.rows_are_alike() && problem.rows > 1 {
            checks.push(equivariant(problem)?);
        }
    }
    Ok(())
}

/// Whether blocks of rows have the bits of the whole forward, and nothing is written beside them.
pub(super) fn blocks<T: Element>(problem: &Problem<'_, T>) -> Result<Check, CheckError> {
    const NAME: &str = "blocks of rows have the bits of the whole";
    /// Elements before and after a block, which must keep their value.
    const FRAME: usize = 64;
    let width = problem.width();
    let mut y = problem.poisoned_output();
    problem.forward(&problem.inputs, &mut y, || None)?;
    let whole = row_bits(y.as_slice().unwrap_or_default(), width);
    drop(y);
    // As many copies of a block as in a measurement.
    let copies = 2 * problem.pairs_of_copies();
    let outcomes: Vec<Result<Option<String>, CheckError>> = problem
        .blocks()
        .into_par_iter()
        .map(|rows| {
            let canary = T::from_f64(POISONS[1]);
            // Alone, and behind copies with other values: a row must not depend on what stands beside it in a call, nor be
            // taken for another of the same number.
            for copies in [1, copies] {
                let (together, others) = (copies * rows.len(), (copies - 1) * rows.len());
                let mut framed = vec![canary; together * width + 2 * FRAME];
                let inside = FRAME..framed.len() - FRAME;
                let mut stack = Stack::new(problem, &rows, copies);
                stack.scale(others, 0.9375);
                problem.count(together)?;
                stack.forward(problem, together, &mut framed[inside.clone()], || None)?;
                let outside = framed[..FRAME].iter().chain(&framed[inside.end..]);
                if outside.clone().any(|value| *value != canary) {
                    return Ok(Some(format!("the block of rows {rows:?} writes beside its output")));
                }
                let found = row_bits(&framed[inside][others * width..], width);
                if let Some(row) = found.iter().zip(&whole[rows.clone()]).position(|(a, b)| a != b) {
                    let row = rows.start + row;
                    return Ok(Some(format!("row {row} of a block has other bits than in the whole")));
                }
            }
            Ok(None)
        })
        .collect();
    for outcome in outcomes {
        if let Some(detail) = outcome? {
            return Ok(Check::failed(NAME, detail));
        }
    }
    Ok(Check::passed(
        NAME,
        format!("all {} rows, in {copies} copies of blocks of {}", problem.rows, problem.block_rows()),
    ))
}

/// What a call left behind.
struct Results {
    /// Of each result a hash of each row.
    bits: Vec<Vec<u64>>,
    /// The first result that was written beside, and where.
    beside: Option<(usize, isize)>,
}

impl Results {
    /// Framed arrays, each with the length of its rows.
    fn of<T: Element>(arrays: Vec<(ArrayD<T>, usize)>) -> Self {
        let (mut bits, mut beside) = (Vec::new(), None);
        for (number, (array, row_len)) in arrays.into_iter().enumerate() {
            bits.push(row_bits(array.as_slice().unwrap_or_default(), row_len));
            beside = beside.or(written_beside(array).map(|place| (number, place)));
        }
        Self { bits, beside }
    }
}

/// A hash of the upstream gradient and of each input.
fn argument_bits<T: Element>(problem: &Problem<'_, T>) -> Vec<Vec<u64>> {
    let inputs = (0..problem.declared.len()).map(|k| row_bits(problem.input(k), problem.declared[k].row_len()));
    std::iter::once(row_bits(problem.dy(), problem.width())).chain(inputs).collect()
}

/// The argument that no longer has the bits that it had: an operation is lent it unmutably, but may hold unsafe code.
fn changed_argument<T: Element>(problem: &Problem<'_, T>, before: &[Vec<u64>]) -> Option<String> {
    let changed = argument_bits(problem).iter().zip(before).position(|(after, before)| after != before)?;
    Some(match changed.checked_sub(1) {
        None => "the upstream gradient".to_owned(),
        Some(k) => format!("the input {}", problem.declared[k].name),
    })
}

/// The same call twice, into differently poisoned buffers between canaries, and once more on one thread, must give the
/// same bits, and write nothing else.
fn repeated(
    checks: &mut Vec<Check>,
    what: &str,
    call: &(dyn Fn(f64) -> Result<Results, CheckError> + Sync),
    changed_argument: &dyn Fn() -> Option<String>,
) -> Result<(), CheckError> {
    let Results { bits: first, beside } = call(POISONS[0])?;
    let Results { bits: second, beside: again } = call(POISONS[1])?;
    let name = format!("{what} writes all of its result and repeats it");
    checks.push(compared(&name, &first, &second, "the same bits twice, whatever the buffers held before"));
    let name = format!("{what} writes nothing else");
    checks.push(match (beside.or(again), changed_argument()) {
        (Some((result, place)), _) => {
            Check::failed(&name, format!("element {place} of result {result}, which it does not have, was written"))
        }
        (None, Some(argument)) => Check::failed(&name, format!("{argument} was changed")),
        (None, None) => {
            Check::passed(&name, "its arguments, and the memory beside its results, are as they were".to_owned())
        }
    });
    // Where no pool can be made there are no threads to compare.
    if let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        let alone = pool.install(|| call(POISONS[0]))?.bits;
        checks.push(compared(
            &format!("{what} on one thread"),
            &first,
            &alone,
            "the same bits on one and on all threads",
        ));
    }
    Ok(())
}

fn compared(name: &str, a: &[Vec<u64>], b: &[Vec<u64>], detail: &str) -> Check {
    for (array, (a, b)) in a.iter().zip(b).enumerate() {
        if let Some(row) = a.iter().zip(b).position(|(a, b)| a != b) {
            let rows = a.iter().zip(b).filter(|(a, b)| a != b).count();
            return Check::failed(name, format!("{rows} rows of result {array} differ, the first is row {row}"));
        }
    }
    Check::passed(name, detail.to_owned())
}

/// `bwd(s G1 + t G2) = s bwd(G1) + t bwd(G2)`, within the rounding of sums as long as the output's rows and columns.
fn linear<T: Element>(problem: &Problem<'_, T>) -> Result<Check, CheckError> {
    const NAME: &str = "backward is linear in the upstream gradient";
    // Powers of two, so that forming the combination costs one rounding.
    let (s, t) = (2.0, -0.5);
    let size = problem.dy().iter().fold(0.0, |size: f64, dy| size.max(dy.to_f64().abs()));
    let mut rng = default_rng(17);
    let mut other = problem.upstream.map(|_| T::from_f64(size * (2.0 * rng.next_uniform() - 1.0)));
    let second = problem.backward(&problem.inputs, &other)?;
    Zip::from(&mut other).and(&*problem.upstream).for_each(|other, dy| {
        *other = T::from_f64(s * dy.to_f64() + t * other.to_f64());
    });
    let both = problem.backward(&problem.inputs, &other)?;
    drop(other);
    let first = problem.backward(&problem.inputs, &problem.upstream)?;
    let terms = (problem.rows + problem.width()) as f64;
    let granted = 8.0 * (16.0 + terms.sqrt()) * T::UNIT_ROUNDOFF;
    for (k, input) in problem.declared.iter().enumerate() {
        let row_len = input.row_len();
        let [first, second, both] = [&first, &second, &both].map(|list| list[k].as_slice().unwrap_or_default());
        let rows = first.chunks(row_len).zip(second.chunks(row_len)).zip(both.chunks(row_len));
        for (row, ((first, second), both)) in rows.enumerate() {
            let parts = first.iter().zip(second).map(|(a, b)| (s * a.to_f64(), t * b.to_f64()));
            let size = parts.clone().fold(0.0, |size: f64, (a, b)| size.max(a.abs() + b.abs()));
            for (column, ((a, b), both)) in parts.zip(both).enumerate() {
                let error = (a + b - both.to_f64()).abs();
                // A gradient that is not finite is judged as a component; here it says nothing.
                if error > granted * size && error.is_finite() {
                    let index = index_of(&input.shape, row * row_len + column);
                    let name = &input.name;
                    let detail = format!(
                        "gradient of {name}{index:?} is off by {error:.3e}, rounding explains {:.3e}",
                        granted * size
                    );
                    return Ok(Check::failed(NAME, detail));
                }
            }
        }
    }
    Ok(Check::passed(NAME, format!("within {granted:.1e} of each row's size")))
}

/// Turning the order of the rows of inputs and upstream gradient around turns that of the results around, bit for bit.
fn equivariant<T: Element>(problem: &Problem<'_, T>) -> Result<Check, CheckError> {
    const NAME: &str = "rows may be permuted";
    let turned = |array: &ArrayD<T>| -> ArrayD<T> {
        let flat = array.as_slice().unwrap_or_default();
        let rows = flat.chunks((flat.len() / problem.rows).max(1)).rev();
        ArrayD::from_shape_vec(array.raw_dim(), rows.flatten().copied().collect()).unwrap_or_default()
    };
    let in_rows = |k: usize| matches!(problem.declared[k].locality, Locality::Rows(_));
    let inputs: Vec<_> = (0..problem.inputs.len())
        .map(|k| if in_rows(k) { turned(&problem.inputs[k]) } else { problem.inputs[k].clone() })
        .collect();
    let mut differing = None;
    let mut compare = |plain: &[u64], turned: &[u64], what: &str| {
        if let Some(row) = plain.iter().zip(turned.iter().rev()).position(|(a, b)| a != b) {
            differing.get_or_insert(format!("row {row} of {what} has other bits when the rows come in reverse order"));
        }
    };
    // Hashes are kept, not arrays: there is room for one result at a time.
    let bits = |array: &ArrayD<T>| row_bits(array.as_slice().unwrap_or_default(), (array.len() / problem.rows).max(1));
    let outputs = |inputs: &[ArrayD<T>]| -> Result<Vec<u64>, CheckError> {
        let mut y = problem.poisoned_output();
        problem.forward(inputs, &mut y, || None)?;
        Ok(bits(&y))
    };
    compare(&outputs(&problem.inputs)?, &outputs(&inputs)?, "the output");
    let gradients = |inputs: &[ArrayD<T>], dy: &ArrayD<T>| -> Result<Vec<Vec<u64>>, CheckError> {
        Ok(problem.backward(inputs, dy)?.iter().map(bits).collect())
    };
    let plain = gradients(&problem.inputs, &problem.upstream)?;
    let turned = gradients(&inputs, &turned(&problem.upstream))?;
    for k in (0..problem.inputs.len()).filter(|&k| in_rows(k)) {
        compare(&plain[k], &turned[k], &format!("the gradient of {}", problem.declared[k].name));
    }
    let detail = "in reverse order the rows give the same bits in reverse order".to_owned();
    Ok(differing.map_or_else(|| Check::passed(NAME, detail), |detail| Check::failed(NAME, detail)))
}

/// Whether the gradients are those of the operation in `f64`, but for rounding: a difference quotient in `f32` sees no
/// error below 1e-5, this one sees some units of roundoff. Only of inputs of which the terms are known.
pub(super) fn against_f64<T: Element>(
    problem: &Problem<'_, T>,
    twin: &dyn Operation<f64>,
    gradients: &[ArrayD<T>],
    terms: &[Vec<f64>],
) -> Result<Vec<Check>, CheckError> {
    let wide = |array: &ArrayD<T>| array.mapv(T::to_f64);
    let inputs: Vec<ArrayD<f64>> = problem.inputs.iter().map(wide).collect();
    let mut expected: Vec<ArrayD<f64>> =
        problem.declared.iter().map(|input| ArrayD::from_elem(IxDyn(&input.shape), f64::NAN)).collect();
    caught(|| twin.backward(&inputs, &wide(&problem.upstream), &mut expected))
        .map_err(|failure| failure.at(Call::unperturbed(Stage::Backward)))?;
    drop(inputs);
    let mut checks = Vec::new();
    for (k, (input, terms)) in problem.declared.iter().zip(terms).enumerate() {
        let (row_len, len) = (input.row_len(), input.len());
        if terms.is_empty() || len == 0 || expected[k].shape() != input.shape {
            continue;
        }
        let name = format!("gradient of {} agrees with f64", input.name);
        // Sums of one sign lose digits with the root of their length.
        let long = (problem.width().max(problem.rows) as f64).sqrt() / 16.0;
        let granted = ROUNDINGS_OF_TERMS * long.max(1.0);
        let mut worst = (0, 0.0);
        for (element, (found, expected)) in gradients[k].iter().zip(&expected[k]).enumerate() {
            let error = (found.to_f64() - expected).abs() / T::UNIT_ROUNDOFF;
            let size = terms[if terms.len() == len { element } else { element / row_len }];
            // A gradient that is not finite is judged as a component.
            let roundings = if error == 0.0 { 0.0 } else { error / size };
            if roundings > worst.1 && error.is_finite() {
                worst = (element, roundings);
            }
        }
        let (element, roundings) = worst;
        let index = index_of(&input.shape, element);
        checks.push(if roundings > granted {
            let detail =
                format!("{index:?} is off by {roundings:.1} roundings of its terms, {granted:.0} are expected");
            Check::failed(&name, detail)
        } else {
            Check::passed(&name, format!("off by {roundings:.2} roundings of its terms at most, at {index:?}"))
        });
    }
    Ok(checks)
}

/// The operation's own identities: each must hold within the bound that it states.
pub(super) fn identities<T: Element>(problem: &Problem<'_, T>, gradients: &[ArrayD<T>]) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for Identity { name, place, left, right, bound } in
        problem.operation.identities(&problem.inputs, &problem.upstream, gradients)
    {
        let error = (left - right).abs();
        let position = checks.iter().position(|check| check.name == name).unwrap_or_else(|| {
            checks.push(Check::passed(&name, String::new()));
            checks.len() - 1
        });
        let check = &mut checks[position];
        let within = error <= bound;
        if check.holds && !within {
            check.holds = false;
            check.detail =
                format!("{place}: {left:e} and {right:e} differ by {error:.3e}, rounding explains {bound:.3e}");
        }
    }
    for check in checks.iter_mut().filter(|check| check.holds) {
        "everywhere, within rounding".clone_into(&mut check.detail);
    }
    checks
}
