//! Which options go together.
//!
//! An option that contradicts another one, or that has no effect beside it, is a usage error: it
//! would otherwise be a wish that nobody hears.

use super::choices::{self, OFFLOADS, WAITS};
use super::{Cli, EngineChoice, Limit};
use crate::engine::Engine;
#[cfg(feature = "tokio-uring")]
use crate::engine::tokio_uring::FIXED_MAX;
use crate::engine::wait::WaitStrategy;
use crate::listen::{self, Address, Endpoint, Transport};
use crate::offload;
use crate::protocol::{Policy, Protocol};

impl Cli {
    /// The first rule that is broken. `is_given` says whether an option, by its id, was given and
    /// does not merely have its default.
    pub(super) fn broken_rule(&self, is_given: impl Fn(&str) -> bool) -> Option<String> {
        self.listening_rule()
            .or_else(|| self.tls_rule(&is_given))
            .or_else(|| self.waiting_rule(&is_given))
            .or_else(|| self.protocol_rule(&is_given))
            .or_else(|| self.offload_rule())
            .or_else(|| self.limit_rule(&is_given))
    }

    fn listening_rule(&self) -> Option<String> {
        let addresses = || self.listen.iter().map(|endpoint| &endpoint.address);
        let listen: Vec<Address> = addresses().cloned().collect();
        if let Some(overlap) = listen::overlap(&listen, self.dual_stack()) {
            return Some(format!("--listen: {overlap}; leave one of them out"));
        }
        let door = self.takeover.iter().map(|path| Address::Unix(path.clone()));
        let all: Vec<Address> = listen.iter().cloned().chain(door).collect();
        if let Some(overlap) = listen::overlap(&all, self.dual_stack()) {
            return Some(format!("--takeover: {overlap}; choose another path"));
        }
        let all: Vec<Address> = all.iter().chain(&self.admin).cloned().collect();
        if let Some(overlap) = listen::overlap(&all, self.dual_stack()) {
            return Some(format!("--admin: {overlap}; choose another address"));
        }
        let has_unix =
            addresses().chain(&self.admin).any(|address| matches!(address, Address::Unix(_)));
        if self.unix_mode.is_some() && !has_unix {
            return Some(
                "--unix-mode needs a Unix socket; add --listen unix:/PATH or --admin unix:/PATH"
                    .into(),
            );
        }
        let is_wildcard = |address: &Address| match address {
            Address::Tcp(address) => address.is_ipv6() && address.ip().is_unspecified(),
            Address::Unix(_) => false,
        };
        if self.ipv6_only && !addresses().any(is_wildcard) {
            return Some(
                "--ipv6-only needs the IPv6 wildcard address; add --listen [::]:9001".into(),
            );
        }
        None
    }

    fn tls_rule(&self, is_given: impl Fn(&str) -> bool) -> Option<String> {
        let is_tls = |endpoint: &Endpoint| endpoint.transport == Transport::Tls;
        if !self.listen.iter().any(is_tls) {
            let of_tls = [
                ("tls_cert", "--tls-cert"),
                ("tls_key", "--tls-key"),
                ("tls_client_ca", "--tls-client-ca"),
                ("tls_self_signed", "--tls-self-signed"),
            ];
            let (_, option) = of_tls.into_iter().find(|(id, _)| is_given(id))?;
            return Some(format!("{option} needs TLS; add --listen wss://0.0.0.0:9443"));
        }
        if self.protocol == Protocol::Tcp {
            return Some("--listen wss:// needs --protocol websocket".into());
        }
        let (certificates, keys) = (self.tls_cert.len(), self.tls_key.len());
        match (certificates, self.tls_self_signed) {
            (0, false) if keys == 0 => Some(
                "--listen wss:// needs a certificate; add --tls-cert FILE and --tls-key FILE, or \
                 --tls-self-signed to try it out"
                    .into(),
            ),
            (_, true) if certificates + keys > 0 => Some(
                "--tls-self-signed has no effect with --tls-cert and --tls-key; leave it out"
                    .into(),
            ),
            (_, false) if certificates != keys => Some(format!(
                "each certificate needs its key, in the same order: {certificates} with --tls-cert, \
                 {keys} with --tls-key"
            )),
            _ => None,
        }
    }

    fn waiting_rule(&self, is_given: impl Fn(&str) -> bool) -> Option<String> {
        match (self.engine, self.wait) {
            (EngineChoice(Some(Engine::Epoll)), Some(WaitStrategy::Sqpoll)) => {
                return Some("--wait sqpoll needs io_uring; use --engine uring".into());
            }
            #[cfg(feature = "tokio-uring")]
            (EngineChoice(Some(Engine::TokioUring)), Some(wait)) if wait != WaitStrategy::Block => {
                return Some(format!(
                    "--engine tokio-uring can only block; use --engine uring for --wait {}",
                    choices::name(WAITS, wait)
                ));
            }
            _ => {}
        }
        #[cfg(feature = "tokio-uring")]
        if self.engine == EngineChoice(Some(Engine::TokioUring)) && self.buffers > FIXED_MAX {
            return Some(format!(
                "--engine tokio-uring registers at most {FIXED_MAX} buffers; lower --buffers"
            ));
        }
        match self.named_wait() {
            wait @ (WaitStrategy::Block | WaitStrategy::Spin) if is_given("spin_us") => {
                Some(format!(
                    "--spin-us has no effect with --wait {}; leave it out, or use --wait adaptive",
                    choices::name(WAITS, wait)
                ))
            }
            WaitStrategy::Block
            | WaitStrategy::Spin
            | WaitStrategy::Adaptive
            | WaitStrategy::Sqpoll => None,
        }
    }

    fn protocol_rule(&self, is_given: impl Fn(&str) -> bool) -> Option<String> {
        if self.protocol == Protocol::Tcp {
            let of_websocket = [
                ("message_max", "--message-max"),
                ("compression", "--compression"),
                ("compression_level", "--compression-level"),
                ("recompression_memory", "--recompression-memory"),
                ("subprotocol", "--subprotocol"),
                ("handshake_timeout", "--handshake-timeout"),
                ("ping_after", "--ping-after"),
                ("message_frames_max", "--message-frames-max"),
                ("control_frames_max", "--control-frames-max"),
                ("path", "--path"),
                ("origin", "--origin"),
                ("no_page", "--no-page"),
            ];
            let (_, option) = of_websocket.into_iter().find(|(id, _)| is_given(id))?;
            return Some(format!("{option} has no effect with --protocol tcp; leave it out"));
        }
        if self.compression == Policy::Off {
            let of_compression = [
                ("compression_level", "--compression-level"),
                ("recompression_memory", "--recompression-memory"),
            ];
            let (_, option) = of_compression.into_iter().find(|(id, _)| is_given(id))?;
            return Some(format!(
                "{option} has no effect with --compression off; leave one of them out"
            ));
        }
        None
    }

    fn limit_rule(&self, is_given: impl Fn(&str) -> bool) -> Option<String> {
        if let (Some(ping), Some(idle)) = (self.ping_after.0, self.idle_timeout.0)
            && ping >= idle
            && is_given("ping_after")
        {
            return Some(
                "--ping-after has no effect unless it is shorter than --idle-timeout".into(),
            );
        }
        // Plain TCP has no messages.
        if let Limit(Some(most)) = self.named_memory_max()
            && most < self.message_max
            && self.protocol == Protocol::WebSocket
        {
            return Some("--memory-max is less than --message-max; lower that too".into());
        }
        let has_tcp = self.listen.iter().any(|it| matches!(it.address, Address::Tcp(_)));
        if self.connections_per_address.0.is_some() && !has_tcp {
            return Some("--connections-per-address needs TCP; add --listen 127.0.0.1:9001".into());
        }
        None
    }

    fn offload_rule(&self) -> Option<String> {
        if self.offload == offload::Policy::Off {
            return None;
        }
        let option = format!("--offload {}", choices::name(OFFLOADS, self.offload));
        if self.protocol == Protocol::Tcp {
            return Some(format!("{option} needs --protocol websocket"));
        }
        match self.engine {
            EngineChoice(None | Some(Engine::Uring)) => {}
            EngineChoice(Some(_)) => return Some(format!("{option} needs --engine uring")),
        }
        if self.message_max < offload::PAYLOAD_BYTES_MAX as u64 {
            let limit = offload::PAYLOAD_BYTES_MAX >> 10;
            return Some(format!("{option} needs a --message-max of at least {limit}KiB"));
        }
        let is_offloadable = |endpoint: &Endpoint| {
            matches!(endpoint.address, Address::Tcp(_)) && endpoint.transport == Transport::Plain
        };
        if !self.listen.iter().any(is_offloadable) {
            return Some(format!("{option} needs plain TCP; add --listen 127.0.0.1:9001"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cli;

    #[track_caller]
    fn error(arguments: &str) -> String {
        let arguments = ["ringecho"].into_iter().chain(arguments.split_whitespace());
        let error = Cli::read(arguments).expect_err("a rule is broken");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    /// Options that do not go together, and what is said of them.
    const BROKEN: &[(&str, &str)] = &[
        ("--listen 127.0.0.1:1 --listen 127.0.0.1:1", "--listen: 127.0.0.1:1 is given twice"),
        ("--listen [::]:1 --listen 0.0.0.0:1", "already takes the connections to 0.0.0.0:1"),
        ("--listen unix:/a --listen unix:/a", "unix:/a is given twice"),
        ("--listen unix:/a --takeover unix:/a", "--takeover: unix:/a is given twice"),
        ("--listen unix:/a --admin unix:/a", "--admin: unix:/a is given twice"),
        ("--takeover unix:/a --admin unix:/a", "--admin: unix:/a is given twice"),
        ("--listen [::]:1 --admin 127.0.0.1:1", "--admin: [::]:1 already takes the connections"),
        ("--unix-mode 600", "--listen unix:/PATH"),
        ("--ipv6-only", "--listen [::]:9001"),
        ("--ipv6-only --listen [::1]:1", "--listen [::]:9001"),
        ("--engine epoll --wait sqpoll", "--engine uring"),
        ("--wait block --spin-us 20", "no effect with --wait block"),
        ("--wait spin --spin-us 50", "no effect with --wait spin"),
        ("--compression off --compression-level 6", "no effect with --compression off"),
        ("--compression off --recompression-memory 1MiB", "--recompression-memory has no effect"),
        ("--protocol tcp --recompression-memory 0", "--recompression-memory has no effect"),
        ("--protocol tcp --compression mirror", "--compression has no effect"),
        ("--protocol tcp --compression-level 6", "--compression-level has no effect"),
        ("--protocol tcp --subprotocol any", "--subprotocol has no effect"),
        ("--protocol tcp --message-max 1MiB", "--message-max has no effect"),
        ("--protocol tcp --offload on", "--offload on needs --protocol websocket"),
        ("--protocol tcp --offload auto", "--offload auto needs --protocol websocket"),
        ("--engine epoll --offload on", "--offload on needs --engine uring"),
        ("--engine epoll --offload auto", "--offload auto needs --engine uring"),
        ("--message-max 16383 --offload on", "--message-max of at least 16KiB"),
        ("--message-max 16383 --offload auto", "--message-max of at least 16KiB"),
        ("--listen unix:/a --offload on", "--offload on needs plain TCP"),
        ("--listen wss://[::1]:1 --tls-self-signed --offload on", "--offload on needs plain TCP"),
        ("--listen wss://[::1]:1", "--tls-cert FILE and --tls-key FILE, or --tls-self-signed"),
        ("--tls-cert a --tls-key b", "--tls-cert needs TLS; add --listen wss://"),
        ("--tls-key b", "--tls-key needs TLS"),
        ("--tls-client-ca a", "--tls-client-ca needs TLS"),
        ("--listen ws://[::1]:1 --tls-self-signed", "--tls-self-signed needs TLS"),
        ("--listen wss://[::1]:1 --tls-cert a", "1 with --tls-cert, 0 with --tls-key"),
        ("--listen wss://[::1]:1 --tls-key a --tls-client-ca c", "0 with --tls-cert, 1 with"),
        ("--listen wss://[::1]:1 --tls-cert a --tls-cert b --tls-key c", "2 with --tls-cert, 1"),
        ("--listen wss://[::1]:1 --tls-self-signed --tls-cert a --tls-key b", "has no effect with"),
        ("--listen wss://[::1]:1 --tls-self-signed --protocol tcp", "needs --protocol websocket"),
        ("--listen wss://[::1]:1 --listen ws://[::1]:1 --tls-self-signed", "is given twice"),
        ("--ping-after 150s", "shorter than --idle-timeout"),
        ("--ping-after 5s --idle-timeout 5s", "shorter than --idle-timeout"),
        ("--memory-max 63MiB", "--memory-max is less than --message-max"),
        ("--listen unix:/a --connections-per-address 1", "--connections-per-address needs TCP"),
        ("--protocol tcp --handshake-timeout 1s", "--handshake-timeout has no effect"),
        ("--protocol tcp --ping-after 0", "--ping-after has no effect"),
        ("--protocol tcp --message-frames-max 0", "--message-frames-max has no effect"),
        ("--protocol tcp --control-frames-max 1", "--control-frames-max has no effect"),
        ("--protocol tcp --path /", "--path has no effect"),
        ("--protocol tcp --origin null", "--origin has no effect"),
        ("--listen unix:/a --listen unix:/b --offload auto", "--offload auto needs plain TCP"),
    ];

    #[test]
    fn options_that_do_not_go_together_are_usage_errors() {
        for (arguments, told) in BROKEN {
            let text = error(arguments);
            assert!(text.contains(told) && text.contains("Usage: ringecho"), "{arguments}: {text}");
        }
    }

    #[cfg(feature = "tokio-uring")]
    #[test]
    fn tokio_uring_waits_in_its_own_way() {
        for wait in ["spin", "adaptive", "sqpoll"] {
            let text = error(&format!("--engine tokio-uring --wait {wait}"));
            assert!(text.contains(&format!("--engine uring for --wait {wait}")), "{text}");
        }
        assert!(error("--engine tokio-uring --spin-us 9").contains("--wait block"));
        assert!(error("--engine tokio-uring --offload on").contains("--engine uring"));
        assert!(error("--engine tokio-uring --buffers 2048").contains("at most 1024"));
    }

    #[test]
    fn options_that_go_together_are_taken() {
        for arguments in [
            "--listen 127.0.0.1:0 --listen 127.0.0.1:0",
            "--listen [::]:1 --listen 0.0.0.0:1 --ipv6-only",
            "--listen ws://127.0.0.1:1 --listen wss://127.0.0.1:2 --tls-self-signed --offload on",
            "--listen wss://[::]:1 --ipv6-only --tls-cert a --tls-key b --tls-cert c --tls-key d",
            "--listen wss://[::1]:1 --tls-cert a --tls-key a --tls-client-ca c",
            "--listen 127.0.0.1:1 --listen unix:/a --unix-mode 600 --offload on",
            "--wait adaptive --spin-us 20",
            "--wait sqpoll --spin-us 20",
            "--spin-us 20",
            "--engine epoll --wait spin",
            "--takeover unix:/a",
            "--listen unix:/a --takeover unix:/b",
            "--listen unix:/a --admin unix:/b --takeover unix:/c",
            "--admin unix:/a --unix-mode 600",
            "--admin 127.0.0.1:0 --listen 127.0.0.1:0",
            "--protocol tcp --connections-max 1 --offload off",
            "--compression deflate --compression-level 1 --recompression-memory 0",
            "--message-max 16KiB --offload on",
            "--engine uring --offload auto",
            "--idle-timeout 30s",
            "--ping-after 10s --idle-timeout 0",
            "--memory-max 0 --message-max 1GiB",
            "--memory-max 64MiB",
            "--protocol tcp --memory-max 1MiB",
            "--protocol tcp --idle-timeout 1s --lifetime 1h --drain-timeout 0 --memory-max 0",
            "--path / --origin null --origin https://a --connections-per-address 1",
        ] {
            let arguments = ["ringecho"].into_iter().chain(arguments.split_whitespace());
            if let Err(error) = Cli::read(arguments.clone()) {
                panic!("{:?}: {error}", arguments.collect::<Vec<&str>>());
            }
        }
    }
}
