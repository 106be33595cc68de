//! ringecho: a WebSocket echo server for Linux on io_uring, at one system call a message.
//!
//! The layers, from the outside in: [`cli`] reads the command line, [`server`] starts a worker on
//! each core, [`engine`] moves bytes between sockets and [`protocol`], which turns what was
//! received into the reply, in a region of memory as [`buffer`] describes it.
//! [`offload`] lets the kernel echo by itself where it can.
//! [`doctor`] stands beside them and looks at the machine. `docs/architecture.md` says why it is
//! built like this.

pub mod buffer;
pub mod cli;
pub mod cpus;
pub mod doctor;
pub mod engine;
pub mod linux;
pub mod listen;
pub mod memory;
pub mod metrics;
pub mod offload;
pub mod protocol;
pub mod server;
pub mod slab;
pub mod statistics_file;
pub mod workers;
