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
