//! The protocol core without sockets: a masked text frame in, its echo out; and unmasking beside
//! the memory move that it cannot beat.

use divan::Bencher;
use divan::counter::BytesCount;
use ringbench::{Core, text_frame};
use ringecho::protocol::mask::{Mask, unmask};

const PAYLOADS: [usize; 5] = [16, 125, 4096, 65_536, 1_048_576];

fn main() {
    divan::main();
}

#[divan::bench(args = PAYLOADS)]
fn echo(bencher: Bencher<'_, '_>, payload: usize) {
    let frame = text_frame(payload);
    let mut core = Core::open(frame.len());
    bencher.counter(BytesCount::new(payload)).bench_local(|| core.echo(&frame).len());
}

#[divan::bench(args = PAYLOADS)]
fn unmask_by_four(bencher: Bencher<'_, '_>, payload: usize) {
    let mut window = vec![0x55; payload + 4];
    let mask = Mask::new([1, 2, 3, 4]);
    bencher.counter(BytesCount::new(payload)).bench_local(|| unmask(&mut window, 4, mask));
}

#[divan::bench(args = PAYLOADS)]
fn memmove_by_four(bencher: Bencher<'_, '_>, payload: usize) {
    let mut window = vec![0x55_u8; payload + 4];
    bencher.counter(BytesCount::new(payload)).bench_local(|| window.copy_within(4.., 0));
}
