//! Results have the same bits on any number of threads, and in a pool of the caller's.

mod support;

use llm_operator::Element;
use support::{Case, backends};

fn same_bits_on_any_number_of_threads<T: Element>(rows: usize, width: usize) {
    let case = Case::<T>::random(rows, width, true, true, 31);
    let backend = backends().pop().unwrap();
    let mut expected = None;
    for threads in [1, 2, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| case.run(backend, 1));
        let expected = expected.get_or_insert_with(|| found.clone());
        found.assert_same_bits(expected, &format!("{} {rows}x{width} on {threads} threads", T::NAME));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (rows, width) in [(1, 100), (3, 100_000), (16, 65_536), (1000, 768), (4099, 257), (100_000, 8), (129, 4096)] {
        same_bits_on_any_number_of_threads::<f32>(rows, width);
        same_bits_on_any_number_of_threads::<f64>(rows, width);
    }
}

#[test]
fn calls_nest_in_a_parallel_loop_of_the_caller() {
    use rayon::prelude::*;
    let case = Case::<f32>::random(700, 300, true, true, 32);
    let backend = backends().pop().unwrap();
    let expected = case.run(backend, 0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| {
        (0..20).into_par_iter().for_each(|_| case.run(backend, 0).assert_same_bits(&expected, "nested"));
    });
}
