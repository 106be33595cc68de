//! The configuration file, what shows it, and what describes the options to shells and readers.

use std::fs;
use std::process::Command;

use testkit::{Server, run, run_by};

/// A file with this text, in a directory of its own.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ringecho.toml");
    fs::write(&path, text).expect("a file");
    let path = path.to_str().expect("text").to_owned();
    (directory, path)
}

#[test]
fn the_file_counts_unless_the_command_line_says_otherwise() {
    let (_directory, path) =
        file("workers = 1\nno-page = true\nmessage-max = '10B'\nlisten = '127.0.0.1:1'\n");
    let server =
        Server::start(&["--config", &path, "--message-max", "1KiB", "--listen", "127.0.0.1:0"]);
    assert!(server.greeting().contains("1 worker on"), "{}", server.greeting());
    let mut client = testkit::Client::connect(server.address());
    client.echo(testkit::TEXT, b"more than ten bytes");
    client.close();
    server.terminate();
}

#[test]
fn the_effective_configuration_says_where_each_value_comes_from_and_is_a_file_itself() {
    let (_directory, path) =
        file("idle-timeout = '3min'\nworkers = 7\norigin = ['https://a', 'null']\n");
    let shown = run(&[
        "config",
        "--config",
        &path,
        "--workers",
        "2",
        "--ipv6-only",
        "--listen",
        "[::]:9001",
    ]);
    assert_eq!((shown.status.code(), shown.stderr.as_str()), (Some(0), ""));
    let line = |name: &str| {
        let begin = format!("{name} = ");
        shown.stdout.lines().find(|line| line.starts_with(&begin)).expect("its line").to_owned()
    };
    for (name, value, source) in [
        ("idle-timeout", "\"3min\"", path.as_str()),
        ("origin", "[\"https://a\", \"null\"]", path.as_str()),
        ("workers", "2", "command line"),
        ("ipv6-only", "true", "command line"),
        ("listen", "[\"[::]:9001\"]", "command line"),
        ("buffers", "4", "default"),
        ("no-page", "false", "default"),
    ] {
        let line = line(name);
        assert!(line.starts_with(&format!("{name} = {value} ")), "{line}");
        assert!(line.ends_with(&format!("  # {source}")), "{line}");
    }
    assert!(
        shown
            .stdout
            .lines()
            .any(|line| line.starts_with("# path ") && line.ends_with("# default: any"))
    );
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split("  #").next().expect("a part").trim_end().to_owned())
            .collect()
    };
    let (_directory, copy) = file(&shown.stdout);
    let again = run(&["config", "--config", &copy]);
    assert_eq!(values(&again.stdout), values(&shown.stdout), "{}", again.stderr);
}

#[test]
fn what_is_wrong_in_the_file_is_a_usage_error_that_names_it() {
    for (text, problem) in [
        ("idel-timeout = '1s'", "unknown key 'idel-timeout'; write 'idle-timeout'"),
        ("workers = 'many'", "write a whole number from 1 to 1024"),
        ("workers = -1", "write a whole number from 1 to 1024"),
        ("workers = ", "line 1"),
        ("wait = 'spin'\nspin-us = 5", "--spin-us has no effect with --wait spin"),
    ] {
        let (_directory, path) = file(text);
        let ended = run(&["--config", &path]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(problem), "{ended:?}");
        assert!(ended.stderr.contains(&path) || text.contains("spin"), "{ended:?}");
    }
    let ended = run(&["--config", "/nowhere/at/all.toml"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("cannot read /nowhere/at/all.toml: No such file"), "{ended:?}");
    let ended = run(&["config", "doctor"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("leave the other command out"), "{ended:?}");
}

#[test]
fn shells_and_man_pages_know_the_options() {
    let script = run(&["completions", "bash"]);
    assert!(script.stdout.contains("--idle-timeout") && script.stdout.contains("doctor"));
    let (_directory, path) = file(&script.stdout);
    let read = run_by(Command::new("bash").args(["-n", &path]));
    assert!(read.status.success(), "{read:?}");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).stdout.contains("idle-timeout"), "{shell}");
    }
    let page = run(&["man"]).stdout;
    assert!(page.contains(".TH ringecho 1") && page.contains("\\-\\-idle\\-timeout"), "{page}");
    let page = run(&["man", "doctor"]).stdout;
    assert!(page.contains(".TH ringecho-doctor 1") && page.contains("\\-\\-json"), "{page}");
    let ended = run(&["man", "nothing"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("write one of doctor"), "{ended:?}");
}
