//! `ringbench merge`

use std::io::Write;

use super::Outcome;
use super::output::{TOO_FEW, finish};
use crate::cli::Merge;
use crate::results::{Kind, Results};

/// `ringbench merge`
///
/// # Errors
///
/// When a result cannot be read, or the sum cannot be written.
pub fn merge(options: &Merge, output: &mut impl Write) -> Outcome {
    let mut all = options.results.iter().map(|path| Results::read(path));
    let mut sum = all.next().expect("one at least is asked for")?;
    for other in all {
        let other = other?;
        if other.kind != sum.kind {
            return Err("results of different commands cannot be added up".to_owned());
        }
        if other.environment != sum.environment {
            let warning = "The parts were measured on different machines.".to_owned();
            if !sum.warnings.contains(&warning) {
                sum.warnings.push(warning);
            }
        }
        for warning in other.warnings {
            if !sum.warnings.contains(&warning) {
                sum.warnings.push(warning);
            }
        }
        sum.cut_short = sum.cut_short.or(other.cut_short);
        // Ratios, floors and costs are one machine's and do not add up.
        sum.ratios.clear();
        sum.floor = None;
        sum.measurements.iter_mut().for_each(|measurement| measurement.cost = None);
        for mut measurement in other.measurements {
            measurement.cost = None;
            match sum.measurements.iter_mut().find(|known| known.name == measurement.name) {
                // The seconds of a load run at the same time, rounds one after the other.
                Some(known) if sum.kind == Kind::Load => known.add_beside(measurement),
                Some(known) => known.add(measurement),
                None => sum.measurements.push(measurement),
            }
        }
    }
    // What was too little for a part may be enough for the sum.
    sum.warnings.retain(|warning| !warning.starts_with(TOO_FEW));
    finish(&mut sum, Some(&options.output), output)
}
