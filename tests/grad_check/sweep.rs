//! The difference against the step.

use super::layer_norm::{Bug, LayerNorm};
use llm_operator::Element;
use llm_operator::grad_check::{Conclusion, GradCheck, Sweep};
use llm_operator::numpy_random::default_rng;

fn sweep<T: Element>(bug: Option<Bug>) -> Sweep {
    let operation = LayerNorm { bug, ..LayerNorm::new(&[4, 24]) };
    let (inputs, dy) = operation.data::<T>(&mut default_rng(12), |_, x| x);
    GradCheck::new().sweep(&operation, &inputs, &dy, 0).unwrap()
}

/// The slope of the difference between two steps, on logarithmic axes.
fn slope(sweep: &Sweep, from: f64, to: f64) -> f64 {
    let at = |step: f64| {
        let near = |point: &&llm_operator::grad_check::SweepPoint| (point.step / step).ln().abs() < 0.1;
        sweep.points.iter().find(near).unwrap().difference
    };
    (at(to) / at(from)).log10() / (to / from).log10()
}

#[test]
fn noise_falls_with_slope_minus_one_and_truncation_rises_with_slope_two() {
    let sweep = sweep::<f64>(None);
    assert_eq!(sweep.conclusion, Conclusion::Agrees, "{sweep}");
    assert!((-1.3..-0.7).contains(&slope(&sweep, 1e-12, 1e-8)), "{sweep}");
    assert!((1.8..2.2).contains(&slope(&sweep, 1e-4, 1e-2)), "{sweep}");
    assert!((1e-6..1e-3).contains(&sweep.best_step), "{sweep}");
    assert!(sweep.in_words().contains("slope -1, noise") && sweep.in_words().contains("slope +2, truncation"));
}

#[test]
fn the_model_of_the_noise_predicts_what_is_measured() {
    for sweep in [sweep::<f64>(None), sweep::<f32>(None)] {
        // Where noise rules, and the step is large enough that rounding is random.
        let ruled = sweep.points.iter().filter(|point| point.step < 0.01 * sweep.best_step).skip(3);
        for point in ruled {
            let ratio = point.difference / point.noise;
            assert!((0.2..3.0).contains(&ratio), "{ratio} at {}: {sweep}", point.step);
        }
    }
}

#[test]
fn an_error_of_the_gradient_does_not_depend_on_the_step() {
    for bug in [Bug::Zeros, Bug::Scale, Bug::VarianceTermDropped] {
        for sweep in [sweep::<f64>(Some(bug)), sweep::<f32>(Some(bug))] {
            assert_eq!(sweep.conclusion, Conclusion::Error, "{bug:?}: {sweep}");
            assert!(sweep.in_words().contains("slope 0"));
        }
    }
    assert!(slope(&sweep::<f64>(Some(Bug::Scale)), 1e-8, 1e-4).abs() < 0.01);
}

#[test]
fn in_f32_the_best_step_is_larger() {
    let (single, double) = (sweep::<f32>(None), sweep::<f64>(None));
    assert_eq!(single.conclusion, Conclusion::Agrees, "{single}");
    assert!(single.best_step > 30.0 * double.best_step);
}

#[test]
fn an_input_that_the_loss_does_not_see_gives_no_conclusion() {
    let operation = LayerNorm::new(&[3, 8]);
    let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
    let sweep = GradCheck::new().sweep(&operation, &inputs, &(dy * 0.0 + 1.0), 0).unwrap();
    assert_eq!(sweep.conclusion, Conclusion::Nothing, "{sweep}");
    assert!(GradCheck::new().sweep(&operation, &inputs, &inputs[0], 1).is_err());
}

#[cfg(feature = "cli")]
mod pictures {
    use super::*;
    use llm_operator::grad_check::{Mode, Verdict};

    fn assert_is_a_picture(svg: &str, words: &[&str]) {
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for number in ["=\"NaN", "=\"inf", "=\"-inf"] {
            assert!(!svg.contains(number), "a coordinate is not finite");
        }
        for word in words {
            assert!(svg.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn a_sweep_is_drawn_with_its_lines_named() {
        let svg = sweep::<f64>(None).svg().unwrap();
        assert_is_a_picture(&svg, &["noise, slope -1", "truncation, slope +2", "best step", "|analytic - numeric|"]);
        assert_is_a_picture(&sweep::<f32>(Some(Bug::Scale)).svg().unwrap(), &["slope 0"]);
    }

    #[test]
    fn a_heat_map_has_a_cell_for_each_component_up_to_a_limit() {
        for (shape, cells) in [(&[2, 4, 6][..], 48), (&[300, 200], 96 * 96)] {
            let operation = LayerNorm::new(shape).with(Bug::OneNan);
            let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
            let report = GradCheck::new().mode(Mode::Local).run(&operation, &inputs, &dy).unwrap();
            assert_eq!(report.verdict, Verdict::Invalid);
            let svg = report.inputs[0].svg().unwrap();
            assert_is_a_picture(&svg, &["1: allowed", "not finite", "invalid"]);
            let rectangles = svg.matches("<rect").count();
            assert!((cells..cells + 140).contains(&rectangles), "{rectangles} rectangles");
            // The one component that is NaN is black, and so is its key in the legend.
            assert_eq!(svg.matches("fill=\"#000000\"").count(), 2);
        }
    }

    #[test]
    fn a_report_is_json_with_a_schema_version() {
        let operation = LayerNorm::affine(&[2, 6]);
        let (inputs, dy) = operation.data::<f64>(&mut default_rng(4), |_, x| x);
        let report = GradCheck::new().run(&operation, &inputs, &dy).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["schema_version"], 1);
        assert_eq!(json["verdict"], "passed");
        assert_eq!(json["max_abs_diff"].as_f64(), Some(report.max_abs_diff));
        assert_eq!(json["inputs"][0]["counts"]["passed"], 12);
        assert_eq!(json["mode"], "auto");
        let sweep = serde_json::to_value(sweep::<f64>(None)).unwrap();
        assert_eq!(sweep["conclusion"], "agrees");
    }
}
