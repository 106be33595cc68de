//! TCP and network devices.

use super::machine::{Machine, Row, is_name, sysctl};
use super::report::{Check, Heading};

pub(super) fn checks(machine: Machine<'_>) -> Vec<Check> {
    vec![
        congestion_control(machine),
        busy_polling(machine, "net.core.busy_poll", "proc/sys/net/core/busy_poll"),
        busy_polling(machine, "net.core.busy_read", "proc/sys/net/core/busy_read"),
        kernel_tls(machine),
    ]
}

fn congestion_control(machine: Machine<'_>) -> Check {
    const NAME: &str = "net.ipv4.tcp_congestion_control";
    let row = Row::new(Heading::Network, "congestion control", "cubic or reno, which do not pace");
    let Some(text) = machine.read("proc/sys/net/ipv4/tcp_congestion_control") else {
        return row.absent("no TCP over IPv4");
    };
    match text.as_str() {
        "cubic" | "reno" | "dctcp" => row.fine(text),
        // BBR spaces segments with timers, and even the loopback waits for them.
        name if name.starts_with("bbr") => {
            row.warn(format!("{name}, which paces"), Some(sysctl(NAME, "cubic")))
        }
        name if is_name(name) => row.unknown(format!("{name}, which may pace")),
        _ => row.nonsense(&text),
    }
}

fn busy_polling(machine: Machine<'_>, name: &'static str, path: &str) -> Check {
    // The loopback has no device queue to poll (socket(7), SO_BUSY_POLL).
    let row = Row::new(Heading::Network, name, "any; affects only network cards");
    let Some(text) = machine.read(path) else {
        return row.absent("not built into this kernel");
    };
    match text.parse::<u32>() {
        Ok(0) => row.fine("0, off"),
        Ok(time_us) => row.fine(format!("{time_us} µs")),
        Err(_) => row.nonsense(&text),
    }
}

/// Whether the kernel could encrypt by itself (tls.rst of the kernel's documentation). The server does not use it.
fn kernel_tls(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Network, "kernel TLS", "any; the server encrypts by itself");
    match machine.read("proc/sys/net/ipv4/tcp_available_ulp") {
        Some(names) if names.split_whitespace().any(|name| name == "tls") => row.fine("available"),
        Some(_) | None => row.absent("the module tls is not loaded"),
    }
}

#[cfg(test)]
mod tests {
    use crate::doctor::fixture::{check, expect, expect_each};
    use crate::doctor::report::Verdict::{Absent, Fine, Unknown, Warn};

    #[test]
    fn congestion_controls() {
        let command = Some("sudo sysctl -w net.ipv4.tcp_congestion_control=cubic");
        expect_each(
            "congestion control",
            "proc/sys/net/ipv4/tcp_congestion_control",
            &[
                ("cubic\n", Fine, "cubic", None),
                ("reno\n", Fine, "reno", None),
                ("bbr\n", Warn, "bbr, which paces", command),
                ("bbr3\n", Warn, "bbr3, which paces", command),
                ("vegas\n", Unknown, "vegas", None),
                ("two words", Unknown, "two words", None),
                ("", Unknown, "\"\"", None),
            ],
        );
        expect(&check("congestion control", &[]), Absent, "no TCP", None);
    }

    #[test]
    fn kernel_tls() {
        expect_each(
            "kernel TLS",
            "proc/sys/net/ipv4/tcp_available_ulp",
            &[
                ("espintcp mptcp tls\n", Fine, "available", None),
                ("tls\n", Fine, "available", None),
                ("mptcp\n", Absent, "not loaded", None),
                ("tlsx", Absent, "not loaded", None),
                ("\n", Absent, "not loaded", None),
            ],
        );
        expect(&check("kernel TLS", &[]), Absent, "not loaded", None);
    }

    #[test]
    fn busy_polls() {
        for (name, path) in [
            ("net.core.busy_poll", "proc/sys/net/core/busy_poll"),
            ("net.core.busy_read", "proc/sys/net/core/busy_read"),
        ] {
            expect_each(
                name,
                path,
                &[
                    ("0\n", Fine, "0, off", None),
                    ("50\n", Fine, "50 µs", None),
                    ("-1\n", Unknown, "-1", None),
                    ("often", Unknown, "often", None),
                ],
            );
            expect(&check(name, &[]), Absent, "not built", None);
        }
    }
}
