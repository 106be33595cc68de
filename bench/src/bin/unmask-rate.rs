//! Compares the rate of unmasking with that of `memmove` on the same bytes by the same distance. The two
//! alternate within one run; the result is their ratio and its spread.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringecho::protocol::mask::{Mask, unmask};

const ROUNDS: usize = 101;
/// Bytes moved in each round, over and over the same memory.
const WORK: usize = 64 << 20;

fn time(mut pass: impl FnMut(), passes: usize) -> Duration {
    let begin = Instant::now();
    for _ in 0..passes {
        pass();
    }
    begin.elapsed()
}

fn main() {
    println!("rate of unmasking / rate of memmove, payload moved left by 4 bytes, {ROUNDS} rounds");
    println!("{:>10}  median (quartiles)      memmove GB/s", "bytes");
    for payload in [16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20] {
        let mut window = vec![0x55_u8; payload + 4];
        let mask = Mask::new([1, 2, 3, 4]);
        let passes = WORK / payload;
        let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| {
                let unmasking = time(
                    || {
                        black_box(unmask(black_box(&mut window), 4, mask));
                    },
                    passes,
                );
                let moving = time(|| black_box(&mut window).copy_within(4.., 0), passes);
                let ratio = moving.as_secs_f64() / unmasking.as_secs_f64();
                (ratio, (passes * payload) as f64 / moving.as_secs_f64() / 1e9)
            })
            .collect();
        rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        let at = |part: usize| rounds[ROUNDS * part / 4].0;
        println!(
            "{payload:>10}  {:.2} ({:.2} to {:.2})  {:>14.1}",
            at(2),
            at(1),
            at(3),
            rounds[ROUNDS / 2].1
        );
    }
}
