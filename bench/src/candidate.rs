//! A server in a comparison: one that runs already, or a command that starts one.
//!
//! Only the server whose turn it is runs; the others are stopped or not started. Otherwise one that
//! spins while it is idle would slow down the others on the CPUs that they share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::server::{Launch, Ready, Server};
use crate::stop::Stop;
use crate::target::Target;
use crate::tls::Trust;
use crate::usage::Usage;

/// Placeholders for a free port in a command: for a server that speaks WebSocket, for one that speaks it
/// over TLS, and for one that echoes plain bytes.
const PORTS: [&str; 3] = [PORT, "{tls-port}", "{tcp-port}"];
const PORT: &str = "{port}";
/// Words by which a shell joins commands or redirects what they print.
const SHELL_WORDS: [&str; 8] = ["&&", "||", "|", ";", "&", ">", "<", "2>&1"];

/// How long to wait for the end of a server whose connection was lost.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What happens to a server that was started here between its turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Its processes are stopped (SIGSTOP).
    Stopped,
    /// It is ended, and started again for each turn.
    Ended,
}

/// A server in a comparison.
#[derive(Debug)]
pub struct Candidate {
    /// Its name in tables.
    pub name: String,
    source: Source,
    server: Option<Server>,
    target: Option<Target>,
    /// Whom to trust, if TLS is spoken.
    trust: Option<Trust>,
}

/// Where a server comes from.
#[derive(Debug)]
enum Source {
    /// It runs already.
    Address,
    /// A command of these words starts it, and it speaks this protocol.
    Command { words: Vec<String>, scheme: Scheme },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    WebSocket,
    Tls,
    Tcp,
}

impl Scheme {
    /// What the server of a command speaks.
    fn of(command: &str) -> Scheme {
        let [_, tls, tcp] = PORTS;
        let is_url = |(before, _): (&str, &str)| {
            // The last word before the port, as in --listen wss://127.0.0.1:{port}.
            before.rsplit(char::is_whitespace).next().is_some_and(|word| word.contains("wss://"))
        };
        if command.contains(tls) || command.split_once(PORT).is_some_and(is_url) {
            Scheme::Tls
        } else if command.contains(PORT) || !command.contains(tcp) {
            Scheme::WebSocket
        } else {
            Scheme::Tcp
        }
    }
}

impl Candidate {
    /// A candidate as it is written on the command line: `[NAME=]TARGET`, or `[NAME=]COMMAND` with
    /// `{port}` (WebSocket), `{tls-port}` (WebSocket over TLS) or `{tcp-port}` (plain bytes) in it. `{port}`
    /// in a URL that begins with `wss://` is for TLS too. Nothing is started.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Candidate, String> {
        let (name, what) = match text.split_once('=') {
            Some((name, what)) if !name.contains(['/', ' ', ':', '{']) => (name, what),
            Some(_) | None => (text, text),
        };
        if name.is_empty() {
            return Err(format!("{text:?} has no name before the equals sign; write NAME=TARGET"));
        }
        let name = name.to_owned();
        if !is_command(what) {
            let target = what.parse().map_err(|error| {
                format!(
                    "{error}; in a command that starts a server, write {{port}}, {{tls-port}} or {{tcp-port}} for its \
                     port"
                )
            })?;
            let (source, target) = (Source::Address, Some(target));
            return Ok(Candidate { name, source, server: None, target, trust: None });
        }
        let words = shell_words::split(what).map_err(|error| format!("{what}: {error}"))?;
        let first = words.first().map(String::as_str).unwrap_or_default();
        if is_command(first) || is_assignment(first) {
            return Err(format!(
                "{text:?} sets a variable, but commands run without a shell; write NAME=env \
                 VARIABLE={{port}} COMMAND"
            ));
        }
        if let Some(word) = words.iter().find(|word| SHELL_WORDS.contains(&word.as_str())) {
            return Err(format!(
                "{text:?} has {word:?} in it, and there is no shell to do that; write NAME=sh -c \
                 'COMMANDS'"
            ));
        }
        let source = Source::Command { words, scheme: Scheme::of(what) };
        Ok(Candidate { name, source, server: None, target: None, trust: None })
    }

    /// Whether a command starts it.
    pub fn is_started_here(&self) -> bool {
        matches!(self.source, Source::Command { .. })
    }

    /// Whether it speaks TLS.
    pub fn is_over_tls(&self) -> bool {
        match &self.source {
            Source::Address => self.target.as_ref().is_some_and(|target| target.tls.is_some()),
            Source::Command { scheme, .. } => *scheme == Scheme::Tls,
        }
    }

    /// Says whom to trust if it speaks TLS.
    pub fn trust(&mut self, trust: &Trust) {
        self.target = self.target.take().map(|target| target.trusting(trust));
        self.trust = Some(trust.clone());
    }

    /// Starts it on the CPUs `cpus`, or resumes it if it was stopped.
    ///
    /// # Errors
    ///
    /// Why it does not start.
    pub fn begin_turn(&mut self, cpus: &[usize], stop: &Stop) -> Result<(), String> {
        let Source::Command { words, scheme } = &self.source else { return Ok(()) };
        if let Some(server) = &self.server {
            server.resume();
            return Ok(());
        }
        let port = free_port().map_err(|error| format!("{}: no free port: {error}", self.name))?;
        let fill_in =
            |word: &String| PORTS.iter().fold(word.clone(), |word, it| word.replace(it, &port));
        let words: Vec<String> = words.iter().map(fill_in).collect();
        let ready = Ready::Listens(port.parse().unwrap_or_default());
        let server = Server::start(Launch { words: &words, cpus, stop }, ready)
            .map_err(|error| format!("{}: {error}{}", self.name, hint(&self.name)))?;
        let target = match scheme {
            Scheme::WebSocket => format!("ws://{}/", server.address()),
            Scheme::Tls => format!("wss://{}/", server.address()),
            Scheme::Tcp => format!("tcp://{}", server.address()),
        };
        let target: Target = target.parse()?;
        self.target = Some(match &self.trust {
            Some(trust) => target.trusting(trust),
            None => target,
        });
        self.server = Some(server);
        Ok(())
    }

    /// Stops or ends it, if it was started here.
    pub fn end_turn(&mut self, between: Between) {
        match between {
            Between::Stopped => {
                if let Some(server) = &self.server {
                    server.pause();
                }
            }
            Between::Ended => self.server = None,
        }
    }

    /// Where it is measured, while it has its turn.
    ///
    /// # Errors
    ///
    /// When it has not been started.
    pub fn target(&self) -> Result<&Target, String> {
        self.target.as_ref().ok_or_else(|| format!("{} is not running", self.name))
    }

    /// What it has used so far, if that can be read.
    pub fn usage(&self) -> Option<Usage> {
        self.server.as_ref()?.usage()
    }

    /// Its processes; none if it was not started here.
    pub fn processes(&self) -> Vec<u32> {
        self.server.as_ref().map(Server::processes).unwrap_or_default()
    }

    /// How it ended, if it was started here and has.
    pub fn ended(&mut self) -> Option<String> {
        self.server.as_mut()?.ended()
    }

    /// The problem with the server's name, and how the server ended if it did.
    pub fn blamed(&mut self, problem: &str) -> String {
        let name = &self.name;
        let Some(server) = &mut self.server else { return format!("{name}: {problem}") };
        match server.ended_within(END_TIMEOUT) {
            Some(how) => format!("{name}: {problem}; it {how}{}", server.last_lines()),
            None => format!("{name}: {problem}"),
        }
    }
}

/// Whether this is a command that starts a server.
fn is_command(text: &str) -> bool {
    PORTS.iter().any(|name| text.contains(name))
}

/// Whether a shell would take this word as a variable to set.
fn is_assignment(word: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    word.split_once('=').is_some_and(|(name, _)| !name.is_empty() && name.chars().all(is_part))
}

/// A hint for a command that does not start, if its name looks like a variable.
fn hint(name: &str) -> String {
    let is_variable = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    if !is_variable {
        return String::new();
    }
    format!(
        "\n{name} was taken as the target's name; to set a variable, write NAME=env {name}=VALUE COMMAND"
    )
}

fn free_port() -> std::io::Result<String> {
    let any = SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), 0);
    Ok(TcpListener::bind(any)?.local_addr()?.port().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_targets_and_commands() {
        let plain = Candidate::parse("ws://127.0.0.1:9001/?a=b").expect("a target");
        assert_eq!(plain.name, "ws://127.0.0.1:9001/?a=b");
        let named = Candidate::parse("peer=ws://127.0.0.1:9001/").expect("a target");
        assert_eq!(named.name, "peer");
        assert_eq!(named.target().expect("a target").to_string(), "ws://127.0.0.1:9001/");
        let command = Candidate::parse("a=server --name 'b c' {port}").expect("a command");
        assert!(command.is_started_here() && command.target().is_err());
        let Source::Command { words, scheme } = command.source else { panic!("a command") };
        assert_eq!(words, ["server", "--name", "b c", "{port}"]);
        assert_eq!(scheme, Scheme::WebSocket);
        for (command, scheme) in [
            ("a {port}", Scheme::WebSocket),
            ("a ws://127.0.0.1:{port}", Scheme::WebSocket),
            ("a --url=wss://127.0.0.1:{port} --tls-self-signed", Scheme::Tls),
            ("a --listen wss://127.0.0.1:{port}", Scheme::Tls),
            ("a --behind wss://b.example/ {port}", Scheme::WebSocket),
            ("a {tls-port}", Scheme::Tls),
            ("a {tcp-port}", Scheme::Tcp),
        ] {
            assert_eq!(Scheme::of(command), scheme, "{command}");
            let parsed = Candidate::parse(command).expect("a command");
            assert_eq!(parsed.is_over_tls(), scheme == Scheme::Tls, "{command}");
        }
        let over_tls = Candidate::parse("wss://localhost/").expect("a target");
        assert!(over_tls.is_over_tls());
        let set = Candidate::parse("a=env PORT={tcp-port} server").expect("a command");
        assert!(matches!(set.source, Source::Command { scheme: Scheme::Tcp, .. }));
    }

    #[test]
    fn what_cannot_be_started_says_what_to_write() {
        for (text, advice) in [
            ("sleep 10", "{port}"),
            ("PORT={port} server", "env"),
            ("a=PORT={port} server", "env"),
            ("a=HOST=::1 server {port}", "env"),
            ("a=server '{port}", "quote"),
            ("a=cd /tmp && server {port}", "sh -c"),
            ("a=server {port} | cat", "sh -c"),
            ("a=server {port} &", "sh -c"),
            ("=server {port}", "NAME=TARGET"),
        ] {
            let error = Candidate::parse(text).expect_err(text);
            assert!(error.contains(advice), "{error}");
        }
    }
}
