//! ringecho: a WebSocket echo server for Linux on io_uring, at one system call per message.
//!
//! The layers, from the outside in: [`cli`] reads the command line, [`server`] starts a worker on
//! each CPU with the listeners of [`listen`], and [`engine`] moves bytes between sockets and
//! [`protocol`], which turns the bytes received into the reply, in a region of memory that [`buffer`]
//! describes. [`offload`] lets the kernel echo by itself where it can. [`doctor`] examines the machine, [`admin`] answers
//! those who watch the server, and [`top`] shows them what it says.
//! See `docs/architecture.md` for the reasons.

pub mod admin;
pub mod buffer;
pub mod cli;
pub mod cpus;
pub mod doctor;
pub mod engine;
pub mod linux;
pub mod listen;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod offload;
mod page;
pub mod protocol;
pub mod retry;
pub mod sandbox;
pub mod server;
pub mod slab;
pub mod statistics_file;
pub mod tls;
pub mod top;
pub mod workers;
