//! The report as text.

use std::fmt;

use super::error::Stage;
use super::power::Power;
use super::report::{Check, InputReport, Report, Timing, Worst};
use super::verdict::Verdict;

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "max_abs_diff: {}", PythonFloat(self.max_abs_diff))?;
        writeln!(formatter, "relative_diff: {}", PythonFloat(self.relative_diff))?;
        writeln!(formatter, "verdict: {}", self.verdict)?;
        for reason in &self.reasons {
            writeln!(formatter, "  {reason}")?;
        }
        writeln!(formatter)?;
        writeln!(formatter, "{} in {}, mode {}, {} forwards", self.operation, self.element, self.mode, self.forwards)?;
        self.timing.iter().try_for_each(|timing| write!(formatter, "{timing}"))?;
        let measure = if self.kappa_against_f64 { "against f64" } else { "from its own differences" };
        writeln!(formatter, "noise of the forward: {:.2} units of roundoff, measured {measure}", self.kappa)?;
        self.inputs.iter().try_for_each(|input| write!(formatter, "{input}"))?;
        for Check { name, holds, detail } in &self.checks {
            writeln!(formatter, "{name}: {}: {detail}", if *holds { "holds" } else { "FAILS" })?;
        }
        if let Some(repeat) = &self.repeat {
            writeln!(formatter, "to repeat: {repeat}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, measuring_seconds, forward_seconds, forwards, ratio } = self;
        writeln!(
            formatter,
            "time: {seconds:.3} s, {measuring_seconds:.3} s of it to measure, which is {ratio:.2} times {forwards} forwards \
             of the whole input on these threads, of {:.3} ms each",
            1e3 * forward_seconds
        )
    }
}

impl fmt::Display for InputReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts;
        write!(formatter, "{} {:?}: {}; {} components passed", self.name, self.shape, self.verdict, counts.passed)?;
        for (count, verdict) in [
            (counts.wrong, Verdict::Wrong),
            (counts.invalid, Verdict::Invalid),
            (counts.inconclusive, Verdict::Inconclusive),
        ] {
            if count > 0 {
                write!(formatter, ", {count} {verdict}")?;
            }
        }
        writeln!(formatter)?;
        self.worst.iter().try_for_each(|worst| write!(formatter, "{worst}"))?;
        self.patterns.iter().try_for_each(|pattern| writeln!(formatter, "  {pattern}"))?;
        self.power.iter().try_for_each(|power| write!(formatter, "{power}"))?;
        if !self.directions.is_empty() {
            let (directions, total) = (self.directions.len(), self.components.analytic.len());
            let looked_at = total - self.not_looked_at;
            let share = 100.0 * looked_at as f64 / total.max(1) as f64;
            let missed = 0.15_f64.powi(directions as i32);
            writeln!(
                formatter,
                "  {looked_at} of {total} components ({share:.2} %) one by one, all along {directions} directions:"
            )?;
            writeln!(formatter, "    an error of ten floors is missed by all of these with a chance of {missed:.0e}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Power {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scale, element, mutants } = self;
        let of = |caught: bool| {
            let of = mutants.iter().filter(move |mutant| mutant.caught == caught);
            of.map(|mutant| &mutant.name[..]).collect::<Vec<_>>().join(", ")
        };
        write!(
            formatter,
            "  would have caught: a scale error of {:.2e} %, any single component off by {element:.1e} of its",
            100.0 * scale
        )?;
        writeln!(formatter, " row's rms,\n    {}", of(true))?;
        if mutants.iter().any(|mutant| !mutant.caught) {
            writeln!(formatter, "  would not have caught: {}", of(false))?;
        }
        Ok(())
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, verdict, x, analytic, numeric, floor, tolerance, rounding, step, .. } = self;
        write!(formatter, "  worst: {index:?} {verdict}")?;
        if let Some(stage) = self.stage {
            write!(formatter, " ({stage})")?;
        }
        writeln!(formatter, ": x {x:e}, analytic {analytic:e}, numeric {numeric:e}")?;
        if self.stage == Some(Stage::Step) {
            return writeln!(formatter, "    the step {step:e} changes nothing: x + step and x - step are one number");
        }
        let difference = (analytic - numeric).abs();
        write!(formatter, "    they differ by {difference:.3e}")?;
        if *verdict == Verdict::Wrong {
            let allowed = floor.max(*tolerance).max(*rounding);
            write!(formatter, ", {} times what is allowed", factor(difference / allowed))?;
        }
        writeln!(
            formatter,
            "; accepted: up to {tolerance:.3e} (tolerance); seen: from {floor:.3e} (floor); step {step:.3e}"
        )
    }
}

/// A factor above one, in few digits.
fn factor(value: f64) -> String {
    if value < 1e4 { format!("{value:.1}") } else { format!("{value:.1e}") }
}

/// A number as Python prints it: the shortest digits that read back the same, with an exponent of at least two digits
/// from 1e16 upwards and below 1e-4.
pub(super) struct PythonFloat(pub(super) f64);

impl fmt::Display for PythonFloat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        if value.is_nan() {
            return formatter.write_str("nan");
        }
        if value.is_infinite() {
            return formatter.write_str(if value > 0.0 { "inf" } else { "-inf" });
        }
        if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
            return write!(formatter, "{value:?}");
        }
        let digits = format!("{value:e}");
        let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        write!(formatter, "{mantissa}e{sign}{exponent:0>2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each string is what `print(value)` writes in Python 3.
    #[test]
    fn numbers_are_printed_as_python_prints_them() {
        for (value, expected) in [
            (1.1812836819835582e-09, "1.1812836819835582e-09"),
            (2.61470216195465e-10, "2.61470216195465e-10"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (0.5, "0.5"),
            (3.0, "3.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (5e-324, "5e-324"),
            (0.0, "0.0"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(PythonFloat(value).to_string(), expected);
        }
    }
}
