"""Breaks the code on purpose, one way at a time, and sees the unit tests fail."""
import subprocess, sys, time
R='/work/wt-conform/bench/src/conform/'
M=[
 ('verdict.rs','wanted.needs_handshake && !closing.was_clean','false'),
 ('verdict.rs','            if closed_by(&transcript.closing) != case.close.by {','            if false {'),
 ('verdict.rs','            if behavior_close == BehaviorClose::WrongCode {','            if false {'),
 ('verdict.rs','!closing.is_server && closing.dropped_by_me','false'),
 ('verdict.rs','    all && counted.next().is_none()','    all'),
 ('verdict.rs','if let Some(violation) = transcript.violation {','if let Some(violation) = None::<ringecho::protocol::violation::Violation> {'),
 ('exchange.rs','self.give_up("the server did not end the TCP connection in time");','self.state = State::Over;'),
 ('exchange.rs','let is_sent = self.next == self.case.script.len();','let is_sent = false;'),
 ('deflate.rs','let end = if end < length { end + self.text.len() } else { end };','let end = end + 1 + self.text.len();'),
 ('deflate.rs','Some(over) => [&self.text[begin..], &self.text[..over]],','Some(over) => [&self.text[begin..], &self.text[1..over + 1]],'),
 ('deflate.rs','let first = if side.takes_over { WINDOW_MAX.div_ceil(parts.bytes) } else { 0 };','let first = 0;'),
 ('deflate.rs','ours.takes_over == theirs.takes_over && ours.window_bits <= theirs.window_bits','true'),
 ('frames.rs','(true, false) => return Err(Violation::Masked),','(true, false) => {}'),
 ('number.rs','self.0.len() <= parts.len()','true'),
 ('expected.rs','Some(code) if code != came => {','Some(code) if code != came && false => {'),
]
for f,a,b in M:
    p=R+f; s=open(p).read()
    assert s.count(a)==1,(f,a,s.count(a))
    open(p,'w').write(s.replace(a,b))
    try:
        r=subprocess.run('timeout 200 cargo test -q -p ringbench --lib --locked conform 2>&1 | grep -E "^conform.*FAILED|error|panicked|test result" | head -4',shell=True,capture_output=True,text=True,cwd='/work/wt-conform')
    finally:
        open(p,'w').write(s)
    print(f,repr(b),'->',r.stdout.strip().replace('\n',' | ')[:260],flush=True)
