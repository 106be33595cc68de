//! Programs that people have: openssl(1) and curl(1), where they are installed.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustls::version::TLS13;
use testkit::{REQUEST, RESPONSE, TEXT, end as wait, frame, reply, run_by, say};

use crate::{Place, end};

/// Whether a program is installed. If not, says that `test` is skipped.
fn has(test: &str, program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = command.status().is_ok();
    if !found {
        say(&format!("SKIPPED: {test}: {program} is not installed"));
    }
    found
}

fn openssl(place: &Place, port: u16, options: &[&str]) -> Child {
    let mut command = Command::new("openssl");
    let to = format!("127.0.0.1:{port}");
    command.args(["s_client", "-connect", &to, "-servername", "localhost"]);
    command.args(["-verify_return_error", "-CAfile", &place.authority_file()]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it is installed")
}

#[test]
fn openssl_speaks_with_the_server() {
    const TEST: &str = "openssl_speaks_with_the_server";
    if !has(TEST, "openssl") {
        return;
    }
    let place = Place::new();
    let server = place.start(&[]);
    for version in ["-tls1_2", "-tls1_3"] {
        let options = ["-quiet", "-no_ign_eof", version, "-alpn", "http/1.1"];
        let mut client = openssl(&place, server.address().port(), &options);
        let mut input = client.stdin.take().expect("a pipe");
        let mut output = client.stdout.take().expect("a pipe");
        input.write_all(REQUEST.as_bytes()).expect("it reads");
        let mut response = vec![0; RESPONSE.len()];
        output.read_exact(&mut response).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
        input.write_all(&frame(TEXT, b"hello")).expect("it reads");
        let mut echo = vec![0; 7];
        output.read_exact(&mut echo).expect("an echo");
        assert_eq!(echo, reply(TEXT, b"hello"));
        drop(input);
        drop(thread::spawn(move || output.read_to_end(&mut Vec::new())));
        let ended = wait(client);
        assert!(ended.status.success(), "{ended:?}");
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(end(server).count("tls_failures"), 0);
}

#[test]
fn a_wish_to_negotiate_again_is_declined() {
    const TEST: &str = "a_wish_to_negotiate_again_is_declined";
    if !has(TEST, "openssl") {
        return;
    }
    let place = Place::new();
    let server = place.start(&[]);
    let mut client = openssl(&place, server.address().port(), &["-tls1_2"]);
    let mut input = client.stdin.take().expect("a pipe");
    // A line of this letter has it ask.
    input.write_all(b"R\n").expect("it reads");
    let mut errors = String::new();
    client.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
    drop(input);
    let ended = wait(client);
    assert!(errors.contains("no renegotiation"), "{errors} {ended:?}");
    // Others are served as before.
    place.connect(server.address(), &TLS13).close();
    server.wait_for_count("connections_open", 0);
    end(server);
}

#[test]
fn versions_before_1_2_are_refused() {
    const TEST: &str = "versions_before_1_2_are_refused";
    if !has(TEST, "openssl") {
        return;
    }
    let place = Place::new();
    let server = place.start(&[]);
    let options = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let mut client = openssl(&place, server.address().port(), &options);
    drop(client.stdin.take());
    let ended = wait(client);
    assert!(!ended.status.success() && ended.stderr.contains("alert"), "{ended:?}");
    server.wait_for_count("connections_open", 0);
    assert_eq!(end(server).count("tls_failures"), 1);
}

#[test]
fn curl_gets_the_page() {
    const TEST: &str = "curl_gets_the_page";
    if !has(TEST, "curl") {
        return;
    }
    let place = Place::new();
    let server = place.start(&[]);
    let port = server.address().port();
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--noproxy", "*", "--max-time", "60"]);
    command.args(["--cacert", &place.authority_file()]);
    command.args(["--resolve", &format!("localhost:{port}:127.0.0.1")]);
    let ended = run_by(command.arg(format!("https://localhost:{port}/")));
    assert!(ended.stdout.starts_with("HTTP/1.1 200 OK"), "{ended:?}");
    assert!(ended.stdout.ends_with("</html>\n"), "{ended:?}");
    assert!(ended.status.success(), "{ended:?}");
    server.wait_for_count("connections_open", 0);
    assert_eq!(end(server).count("tls_failures"), 0);
}
