//! What is expected of each case: that it passes, or what a file says.
//!
//! The file has a line for each case that it names: its number, the verdict on what came back, the
//! verdict on the close and, where it matters, the close code of the peer, or `none`. A verdict of two
//! words has a hyphen. `#` begins a comment.
//!
//! ```text
//! 6.4.1 NON-STRICT OK 1007
//! 7.3.1 OK UNCLEAN
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::case::Case;
use super::number::Number;
use super::suite::Judged;
use super::verdict::{Behavior, BehaviorClose, Demand};

/// The expectations of a file, by case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expectations(BTreeMap<Number, Expectation>);

/// What is expected of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expectation {
    behavior: Behavior,
    close: BehaviorClose,
    /// Nothing if the code does not matter; nothing within if there is none.
    code: Option<Option<u16>>,
}

impl FromStr for Expectations {
    type Err = String;

    /// # Errors
    ///
    /// The first line that makes no sense, and what to write.
    fn from_str(text: &str) -> Result<Expectations, String> {
        let mut all = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some((number, rest)) = words.split_first() else { continue };
            let wrong = |what: &dyn fmt::Display| format!("line {}: {what}", at + 1);
            let number: Number = number.parse().map_err(|error: String| wrong(&error))?;
            let expectation = expectation(rest).ok_or_else(|| {
                wrong(&"write a case, two verdicts and perhaps a close code, such as 6.4.1 OK OK 1007")
            })?;
            if all.insert(number, expectation).is_some() {
                return Err(wrong(&format!("{number} is there twice")));
            }
        }
        Ok(Expectations(all))
    }
}

impl fmt::Display for Expectation {
    /// As it stands in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdicts = format!("{}\n{}", self.behavior, self.close);
        f.write_str(&verdicts.replace(' ', "-").replace('\n', " "))?;
        match self.code {
            Some(Some(code)) => write!(f, " {code}"),
            Some(None) => f.write_str(" none"),
            None => Ok(()),
        }
    }
}

fn expectation(words: &[&str]) -> Option<Expectation> {
    let (behavior, close, code) = match words {
        [behavior, close] => (behavior, close, None),
        [behavior, close, "none"] => (behavior, close, Some(None)),
        [behavior, close, code] => (behavior, close, Some(Some(code.parse().ok()?))),
        _ => return None,
    };
    let is = |word: &str, verdict: String| word == verdict.replace(' ', "-");
    Some(Expectation {
        behavior: Behavior::ALL.into_iter().find(|it| is(behavior, it.to_string()))?,
        close: BehaviorClose::ALL.into_iter().find(|it| is(close, it.to_string()))?,
        code,
    })
}

impl Expectations {
    /// Cases that it names and that are not among these.
    pub fn missing(&self, mut exists: impl FnMut(Number) -> bool) -> Vec<Number> {
        self.0.keys().copied().filter(|number| !exists(*number)).collect()
    }

    /// Why a case is not as expected; nothing if it is.
    pub fn difference(&self, number: Number, judged: &Judged, demand: Demand) -> Option<String> {
        let verdict = &judged.verdict;
        let Some(expected) = self.0.get(&number) else {
            return (!verdict.passes(demand)).then(|| "it should pass".to_owned());
        };
        let Expectation { behavior, close, code } = *expected;
        if (verdict.behavior, verdict.behavior_close) != (behavior, close) {
            return Some(format!("it should be {behavior} with close {close}"));
        }
        let came = judged.run.transcript.closing.remote_close_code;
        match code {
            Some(code) if code != came => {
                let code = code.map_or("none".to_owned(), |code| code.to_string());
                Some(format!("its close code should be {code}"))
            }
            Some(_) | None => None,
        }
    }
}

/// The text of a file that expects what came of these cases where they do not pass, with the clause of
/// each. What `earlier` expects of other cases stays. Close codes are only written where they are what is
/// wrong: two runs against the same server may differ in others.
pub fn baseline(earlier: &Expectations, judged: &[(&Case, &Judged)], demand: Demand) -> String {
    let was_run = |number: &Number| judged.iter().any(|(case, _)| case.number == *number);
    let kept = earlier.0.iter().filter(|(number, _)| !was_run(number));
    let mut lines: BTreeMap<Number, String> =
        kept.map(|(number, expected)| (*number, format!("{number} {expected}"))).collect();
    for (case, judged) in judged.iter().filter(|(_, judged)| !judged.verdict.passes(demand)) {
        let code = judged.run.transcript.closing.remote_close_code;
        let expected = Expectation {
            behavior: judged.verdict.behavior,
            close: judged.verdict.behavior_close,
            code: (judged.verdict.behavior_close == BehaviorClose::WrongCode).then_some(code),
        };
        let verdicts = format!("{} {expected}", case.number);
        lines.insert(case.number, format!("{verdicts:<32} # {}", case.clause));
    }
    lines.into_values().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::cases::{self, Volume};
    use super::super::driver::Run;
    use super::super::transcript::Transcript;
    use super::super::verdict::Verdict;
    use super::*;
    use crate::opening::Handshake;

    fn judged(behavior: Behavior, behavior_close: BehaviorClose, code: Option<u16>) -> Judged {
        let mut transcript = Transcript::new(Number::pair(2, 1));
        transcript.closing.remote_close_code = code;
        let (handshake, started) = (Handshake::default(), SystemTime::now());
        let run = Run { transcript, handshake, started, duration: Duration::ZERO };
        let [result, result_close] = [String::new(), String::new()];
        Judged { at: 0, run, verdict: Verdict { behavior, result, behavior_close, result_close } }
    }

    #[test]
    fn a_difference_in_either_direction_is_one() {
        use Behavior::{Failed, NonStrict, Ok, Unimplemented};
        use BehaviorClose::{FailedByClient, Ok as Closed, Unclean};
        let text = "# known\n2.1 FAILED UNCLEAN\n\n2.2 NON-STRICT OK 1000 # why\n2.3 OK OK none\n\
                    2.4 OK FAILED-BY-CLIENT";
        let expectations: Expectations = text.parse().expect("four lines");
        for (case, judged, differs) in [
            (1, judged(Failed, Unclean, None), false),
            (1, judged(Ok, Closed, Some(1000)), true),
            (1, judged(Failed, Closed, None), true),
            (2, judged(NonStrict, Closed, Some(1000)), false),
            (2, judged(NonStrict, Closed, Some(1002)), true),
            (2, judged(NonStrict, Closed, None), true),
            (3, judged(Ok, Closed, None), false),
            (3, judged(Ok, Closed, Some(1000)), true),
            (4, judged(Ok, FailedByClient, Some(1000)), false),
            // Not in the file.
            (5, judged(Ok, Closed, Some(1000)), false),
            (5, judged(NonStrict, FailedByClient, None), false),
            (5, judged(Unimplemented, Closed, None), false),
            (5, judged(Failed, Closed, None), true),
            (5, judged(Ok, Unclean, None), true),
        ] {
            let found = expectations.difference(Number::pair(2, case), &judged, Demand::Musts);
            assert_eq!(found.is_some(), differs, "2.{case} {:?}: {found:?}", judged.verdict);
        }
        for judged in [judged(NonStrict, Closed, None), judged(Ok, FailedByClient, None)] {
            let strict = expectations.difference(Number::pair(2, 5), &judged, Demand::Strict);
            assert!(strict.is_some(), "{:?}", judged.verdict);
        }
        let missing = expectations.missing(|number| number != Number::pair(2, 3));
        assert_eq!(missing, [Number::pair(2, 3)]);
    }

    /// A second run of the same verdicts is as expected, and one that passes is not.
    #[test]
    fn a_baseline_expects_what_does_not_pass() {
        use Behavior::{Failed, NonStrict, Ok, Unimplemented};
        use BehaviorClose::{FailedByClient, Ok as Closed, Unclean, WrongCode};
        let earlier: Expectations =
            "2.1 FAILED OK\n2.9 OK OK none\n2.11 OK UNCLEAN".parse().expect("lines");
        let cases: Vec<Case> = cases::all(Volume::Quick)
            .into_iter()
            .filter(|case| case.number.section() == 2)
            .collect();
        let verdicts = [
            judged(Ok, Closed, Some(1000)),
            judged(Failed, Unclean, None),
            judged(NonStrict, Closed, Some(1000)),
            judged(Ok, FailedByClient, Some(1000)),
            judged(Ok, WrongCode, Some(1007)),
            judged(Failed, WrongCode, None),
            judged(Unimplemented, Closed, Some(1000)),
        ];
        let run: Vec<(&Case, &Judged)> = cases.iter().zip(&verdicts).collect();
        let text = baseline(&earlier, &run, Demand::Strict);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "2.2 FAILED UNCLEAN # RFC 6455 5.5.2",
            "2.3 NON-STRICT OK # RFC 6455 5.5.2",
            "2.4 OK FAILED-BY-CLIENT # RFC 6455 5.5.2",
            "2.5 OK WRONG-CODE 1007 # RFC 6455 5.5",
            "2.6 FAILED WRONG-CODE none # RFC 6455 5.5.2",
            "2.9 OK OK none",
            "2.11 OK UNCLEAN",
        ];
        assert_eq!(lines, expected);
        let expectations: Expectations = text.parse().expect("what is written can be read");
        for (case, judged) in &run {
            let found = expectations.difference(case.number, judged, Demand::Strict);
            assert_eq!(found, None, "{}", case.number);
        }
        let mended = judged(Ok, Closed, Some(1000));
        assert!(expectations.difference(Number::pair(2, 2), &mended, Demand::Strict).is_some());
        // What the RFC only recommends is no failure.
        let lax = baseline(&Expectations::default(), &run, Demand::Musts);
        assert_eq!(lax.lines().count(), 3, "{lax}");
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for (text, line) in [
            ("2.1 OK", "line 1"),
            ("\n2.1 ok OK", "line 2"),
            ("2.1 OK OK 1000 1000", "line 1"),
            ("2.1 OK OK x", "line 1"),
            ("2 OK OK", "line 1"),
            ("2.1 OK OK\n2.1 OK OK", "line 2"),
            ("2.1 OK FAILED BY CLIENT", "line 1"),
        ] {
            let error = text.parse::<Expectations>().expect_err(text);
            assert!(error.starts_with(line), "{text:?}: {error}");
        }
    }
}
