//! Random numbers that follow from a seed, and tests that run on many of them.
//!
//! Every run prints its seed. A failure prints the command that repeats it: `RINGECHO_SEED` makes the
//! failing case the first one.

use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::process::say;

/// SplitMix64, by Sebastiano Vigna after Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators" (OOPSLA 2014); the constants are those of <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Another generator, with a seed drawn from this one.
    pub fn fork(&mut self) -> Random {
        Random(self.number())
    }

    /// The next number, any of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.number()) * end as u128) >> 64) as usize
    }

    /// True once in `times` on average; never if that is 0.
    pub fn one_in(&mut self, times: usize) -> bool {
        times > 0 && self.below(times) == 0
    }

    /// One of `choices`, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Any `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.number().to_ne_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// A masking key.
    pub fn key(&mut self) -> [u8; 4] {
        (self.number() as u32).to_ne_bytes()
    }

    /// Where to cut a stream of `length` bytes: into a few pieces, or into many small ones. Ascending,
    /// each place within the stream.
    pub fn cuts(&mut self, length: usize) -> Vec<usize> {
        let most = self.pick(&[3, 40, 700, 5000, 100_000]).max(length / 2000);
        let mut cuts = Vec::new();
        let mut at = 0;
        loop {
            at += 1 + self.below(most);
            if at >= length {
                return cuts;
            }
            cuts.push(at);
        }
    }
}

/// One run of a test with random input. Its failure prints how to repeat it.
#[derive(Debug)]
pub struct Case {
    test: &'static str,
    /// The seed of `random`. The cases of a run have consecutive seeds.
    pub seed: u64,
    /// The source of all randomness of the case.
    pub random: Random,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let Case { test, seed, .. } = self;
            let target = target().unwrap_or_default();
            say(&format!("repeat: RINGECHO_SEED={seed} cargo test --test {target} {test}"));
        }
    }
}

/// The name of the test target that runs: the file's name without the hash that cargo appends.
fn target() -> Option<String> {
    let file = std::env::current_exe().ok()?;
    let name = file.file_name()?.to_str()?;
    Some(name.rsplit_once('-').map_or(name, |(target, _)| target).to_owned())
}

/// `count` cases of the test of which the name contains `test`. The first seed is that of the run:
/// `RINGECHO_SEED`, or one drawn from the clock, so that any case can be made the first.
pub fn cases(test: &'static str, count: usize) -> impl Iterator<Item = Case> + Send {
    let run = match std::env::var("RINGECHO_SEED") {
        Ok(seed) => seed.parse().expect("RINGECHO_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            now.as_nanos() as u64 % 1_000_000_000_000
        }
    };
    println!("{test}: RINGECHO_SEED={run}");
    (0..count).map(move |number| {
        let seed = run.wrapping_add(number as u64);
        Case { test, seed, random: Random::new(seed) }
    })
}

#[cfg(test)]
mod tests {
    use super::Random;

    /// The first numbers of the reference implementation for the seed 1234567.
    #[test]
    fn the_numbers_are_those_of_the_reference() {
        let mut random = Random::new(1_234_567);
        let numbers = [(); 5].map(|()| random.number());
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn bounds_hold() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(0), 0);
        assert!((0..1000).all(|_| !random.one_in(0)));
        assert_eq!(random.bytes(13).len(), 13);
        let cuts = random.cuts(1000);
        assert!(cuts.is_sorted() && cuts.iter().all(|cut| (1..1000).contains(cut)), "{cuts:?}");
    }
}
