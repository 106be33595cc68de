//! Echoes a masked 16-byte text frame a number of times through the protocol core, or only copies it to
//! where the core would find it. `scripts/instructions` counts the instructions of both.

use std::hint::black_box;

use ringbench::Core;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let times = arguments.get(1).and_then(|times| times.parse::<u64>().ok());
    let mut core = Core::open(4096);
    let frame = ringbench::text_frame(16);
    match (arguments.first().map(String::as_str), times) {
        (Some("echo"), Some(times)) => {
            for _ in 0..times {
                assert_eq!(black_box(core.echo(black_box(&frame))).len(), 18);
            }
        }
        (Some("receive"), Some(times)) => {
            for _ in 0..times {
                core.receive(black_box(&frame));
                black_box(&core);
            }
        }
        _ => {
            eprintln!("usage: echo-frames echo|receive TIMES");
            std::process::exit(2);
        }
    }
}
