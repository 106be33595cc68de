//! The program and its maps in the kernel: loaded once for each worker, so that workers share nothing.
//!
//! This module knows which socket has which place, and nothing of frames.
//!
//! Invariants that the unsafe blocks and the reuse of places rely on:
//!
//! 1. `Shared` maps `count` entries from its beginning until it is dropped. The kernel and this process
//!    read and write them only as 64-bit atomics; any bytes are a valid entry.
//! 2. The program runs for a socket while the socket is locked, and the kernel locks the socket to fill
//!    in `TCP_INFO`. So when that call returns, no run is in progress that found the slot before it was
//!    deleted from `slots`, and the record can be given to another connection.
//! 3. `getsockopt` and `ioctl` write no more than the object that they are given a pointer to.
//! 4. A `Shared` is a mapping of the whole process, of atomics only: any thread may use it and give it up.
//! 5. A new mapping at an address that the kernel chooses touches no other memory.

#![expect(unsafe_code, reason = "memory is shared with the kernel; see the invariants above")]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf, SockMap};
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use super::record::{Record, Totals};
use super::{PLACES, Place};
use crate::metrics::{EchoCounts, Echoed};
use crate::sandbox::Call;

/// The size of a notice in the ring: a header of 8 bytes, and the slot rounded up to 8 bytes.
const NOTICE_BYTES: u32 = 16;

/// Where the kernel describes its types; loading the program needs the offsets of five fields.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

static OBJECT: &[u8] = aya::include_bytes_aligned!("verdict.bpf.o");

/// Why echoes cannot be offloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffloadError {
    /// This process may not load programs.
    Forbidden,
    /// The kernel was built without a description of its types, or `/sys` is not mounted.
    Typeless,
    /// The kernel's verifier refused the program, with this reason.
    Refused(String),
    /// Something else went wrong.
    Failed(String),
}

impl fmt::Display for OffloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OffloadError::Forbidden => f.write_str(
                "not allowed to load a BPF program; run as root, or give the binary the capabilities: \
                 sudo setcap cap_bpf,cap_net_admin,cap_perfmon=ep PATH-OF-RINGECHO",
            ),
            OffloadError::Typeless => {
                write!(f, "the kernel has no {TYPES}; it needs CONFIG_DEBUG_INFO_BTF")
            }
            OffloadError::Refused(words) => {
                write!(f, "the kernel refused the program; a newer one may take it ({words})")
            }
            OffloadError::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for OffloadError {}

impl From<EbpfError> for OffloadError {
    fn from(error: EbpfError) -> OffloadError {
        match error {
            EbpfError::MapError(error) => error.into(),
            EbpfError::ProgramError(error) => error.into(),
            error => OffloadError::Failed(format!("cannot load the BPF object: {}", chain(&error))),
        }
    }
}

impl From<MapError> for OffloadError {
    fn from(error: MapError) -> OffloadError {
        OffloadError::failed("cannot set up a BPF map", &error)
    }
}

impl From<ProgramError> for OffloadError {
    fn from(error: ProgramError) -> OffloadError {
        if let ProgramError::LoadError { io_error, verifier_log } = &error
            && !is_refused_permission(io_error)
        {
            let log = verifier_log.to_string();
            let mut lines = log.lines().map(str::trim).filter(|line| {
                // The reason is followed by statistics.
                !line.is_empty()
                    && !["processed", "verification", "stack"]
                        .iter()
                        .any(|word| line.starts_with(word))
            });
            let words = lines.next_back().map_or_else(|| io_error.to_string(), str::to_owned);
            return OffloadError::Refused(words);
        }
        OffloadError::failed("cannot load the BPF program", &error)
    }
}

impl OffloadError {
    fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> OffloadError {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        if causes.any(|cause| cause.downcast_ref().is_some_and(is_refused_permission)) {
            return OffloadError::Forbidden;
        }
        OffloadError::Failed(format!("{what}: {}", chain(error)))
    }
}

/// `EPERM`. With `EACCES` the verifier refuses a program (bpf(2)).
fn is_refused_permission(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::PERM)
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(|cause| cause.to_string().replace('\n', " ")).collect::<Vec<_>>().join(": ")
}

/// The program of one worker, with its maps.
pub struct Program {
    sockets: SockMap<MapData>,
    slots: HashMap<MapData, u64, u32>,
    notices: RingBuf<MapData>,
    records: Shared<Record>,
    totals: Arc<Shared<Totals>>,
    free: Vec<u32>,
    /// The cookie of the socket at each place.
    cookies: Vec<u64>,
    /// The program itself; when it is dropped, the sockets become ordinary ones.
    _program: Ebpf,
}

/// Commands of bpf(2): a program is only loaded and attached before.
const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const PROGRAM_DETACH: u32 = 9;

impl Program {
    /// What a thread calls that has loaded a program.
    pub const CALLS: &'static [Call] = &[
        Call::With(libc::SYS_bpf, 0, &[MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROGRAM_DETACH]),
        Call::Any(libc::SYS_getsockopt),
        Call::With(libc::SYS_ioctl, 1, &[libc::TIOCOUTQ as u32]),
    ];

    /// System calls of [`Program::attach`], of [`Program::detach`], of [`Program::written`] and of
    /// [`Program::written_exactly`].
    pub const ATTACH_CALLS: u64 = 6;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const DETACH_CALLS: u64 = 3;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const WRITTEN_CALLS: u64 = 2;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const WRITTEN_EXACTLY_CALLS: u64 = 4;

    /// Loads the program, with room for [`PLACES`] connections.
    ///
    /// # Errors
    ///
    /// When this process or this kernel cannot; the error says what to do, in one line.
    pub fn load() -> Result<Program, OffloadError> {
        // The verifier's log makes loading many times slower, so it is written only after a refusal.
        match Program::with_places(PLACES, VerifierLogLevel::empty()) {
            Err(OffloadError::Refused(_)) => Program::with_places(PLACES, VerifierLogLevel::DEBUG),
            outcome => outcome,
        }
    }

    fn with_places(places: u32, log: VerifierLogLevel) -> Result<Program, OffloadError> {
        if !fs::exists(TYPES).unwrap_or(false) {
            return Err(OffloadError::Typeless);
        }
        // Room for one notice per slot; a ring is never filled to its last byte.
        let page = u32::try_from(rustix::param::page_size()).expect("a page is small");
        let ring = (places * NOTICE_BYTES * 2).next_power_of_two().max(page);
        let mut program = EbpfLoader::new()
            .map_max_entries("sockets", places)
            .map_max_entries("slots", places)
            .map_max_entries("records", places)
            .map_max_entries("notices", ring)
            .verifier_log_level(log)
            .load(OBJECT)?;
        let sockets = SockMap::try_from(take(&mut program, "sockets"))?;
        let slots = HashMap::try_from(take(&mut program, "slots"))?;
        let notices = RingBuf::try_from(take(&mut program, "notices"))?;
        let records = share(&program, "records", places)?;
        let totals = Arc::new(share(&program, "totals", 1)?);
        let verdict: &mut SkSkb =
            program.program_mut("verdict").expect("is in the object").try_into()?;
        verdict.load()?;
        verdict.attach(sockets.fd())?;
        let free = (0..places).rev().collect();
        let cookies = vec![0; places as usize];
        Ok(Program { sockets, slots, notices, records, totals, free, cookies, _program: program })
    }

    /// What the program has echoed on all connections, readable even when the program is gone.
    pub fn totals(&self) -> Arc<dyn EchoCounts> {
        self.totals.clone()
    }

    /// Has the program see what arrives on a connected TCP socket from now on, with the gate shut. `None`
    /// if all places are taken. The program also sees what the kernel has queued already, from its first
    /// byte, together with the next packet or receive; so no part of that may have been received.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket, for example because it is not TCP or its peer has ended.
    pub fn attach(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Place>> {
        let Some(&index) = self.free.last() else { return Ok(None) };
        self.records.at(index).reset();
        // The kernel would take other sockets too, for example Unix sockets.
        tcp_info(socket)?;
        let cookie = rustix::net::sockopt::socket_cookie(socket)?;
        // In this order, so that the program counts every packet that it sees.
        self.slots.insert(cookie, index, 0).map_err(cause)?;
        if let Err(error) = self.sockets.set(index, &socket.as_raw_fd(), 0) {
            let _ = self.slots.remove(&cookie);
            return Err(cause(error));
        }
        self.free.pop();
        self.cookies[index as usize] = cookie;
        Ok(Some(Place(index)))
    }

    /// Frees the place of a socket that is about to be closed. Echoes that the kernel has not sent may be
    /// lost, and what arrives is no longer counted.
    pub fn detach(&mut self, place: Place, socket: BorrowedFd<'_>) {
        let Place(index) = place;
        self.records.at(index).shut();
        let _ = self.slots.remove(&self.cookies[index as usize]);
        // Invariant 2. The entry in `sockets` stays until the socket is closed or another one takes its
        // place; removing it now would drop what is still to be sent.
        if tcp_info(socket).is_ok() {
            self.free.push(index);
        }
    }

    /// The record of a connection, which the program writes too.
    #[inline]
    pub fn record(&self, place: &Place) -> &Record {
        self.records.at(place.0)
    }

    /// Becomes readable when there are notices.
    pub fn notices(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }

    /// Takes all notices: calls `each` with the number of each place for which something was passed up.
    /// The notice may belong to an earlier connection, and what was passed up may already be received.
    pub fn take_notices(&mut self, mut each: impl FnMut(u32)) {
        while let Some(notice) = self.notices.next() {
            let index = u32::from_ne_bytes((*notice).try_into().expect("a notice is one slot"));
            // The notice must leave the ring before the program may send the next one.
            drop(notice);
            self.records.at(index).take_notice();
            each(index);
        }
    }

    /// How many bytes the kernel has been given for sending on a TCP socket since it was connected. While
    /// acknowledgements arrive, the figure may be too low, but never too high.
    ///
    /// # Errors
    ///
    /// When it is not a TCP socket, or the connection is gone, for example after a reset: the kernel will
    /// send nothing more.
    pub fn written(socket: BorrowedFd<'_>) -> io::Result<u64> {
        let TcpInfo { state, bytes_acked, .. } = tcp_info(socket)?;
        if state == TCP_CLOSE {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(bytes_acked + bytes_unacknowledged(socket)?)
    }

    /// The same, but never too low; `None` if the figure cannot be known because acknowledgements arrive at
    /// this moment.
    ///
    /// # Errors
    ///
    /// As with [`Program::written`].
    pub fn written_exactly(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        let least = Program::written(socket)?;
        // Read in this order, the sum may be too high.
        let most = bytes_unacknowledged(socket)? + tcp_info(socket)?.bytes_acked;
        Ok((least == most).then_some(least))
    }
}

fn take(program: &mut Ebpf, name: &str) -> Map {
    program.take_map(name).expect("is in the object")
}

/// The kernel's answer, without what aya says around it.
fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

/// The first fields of `struct tcp_info` (linux/tcp.h), as many as are needed.
#[repr(C)]
struct TcpInfo {
    state: u8,
    between: [u8; 119],
    bytes_acked: u64,
}

/// The state of a connection that is gone (netinet/tcp.h).
const TCP_CLOSE: u8 = 7;

fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut info = TcpInfo { state: 0, between: [0; 119], bytes_acked: 0 };
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: invariant 3, because `length` is the size of `info`; any bytes are valid there.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    match outcome {
        0 if length as usize == size_of::<TcpInfo>() => Ok(info),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `SIOCOUTQ` (tcp(7)).
fn bytes_unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: invariant 3; this request writes an int.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

fn share<T>(program: &Ebpf, name: &str, count: u32) -> Result<Shared<T>, OffloadError> {
    // The map stays in `program`, which loads by its descriptor.
    let Some(Map::Array(array)) = program.map(name) else { panic!("{name} is an array") };
    Shared::new(array.fd().as_fd(), count)
        .map_err(|error| OffloadError::failed("cannot map what the program counts", &error))
}

/// The mapping of an array of `T`, which is made of 64-bit atomics alone.
#[derive(Debug)]
struct Shared<T> {
    start: NonNull<T>,
    count: u32,
}

// SAFETY: invariant 4.
unsafe impl<T: Sync> Sync for Shared<T> {}

// SAFETY: invariant 4.
unsafe impl<T: Sync> Send for Shared<T> {}

impl EchoCounts for Shared<Totals> {
    fn read(&self) -> Echoed {
        self.at(0).read()
    }
}

impl<T> Shared<T> {
    fn new(map: BorrowedFd<'_>, count: u32) -> io::Result<Shared<T>> {
        let length = count as usize * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: invariant 5.
        let start =
            unsafe { mm::mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, map, 0)? };
        Ok(Shared { start: NonNull::new(start.cast()).expect("mmap returns no null"), count })
    }

    #[inline]
    fn at(&self, index: u32) -> &T {
        assert!(index < self.count);
        // SAFETY: invariant 1 and the assertion.
        let entry = unsafe { self.start.add(index as usize) };
        // SAFETY: invariant 1.
        unsafe { entry.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let length = self.count as usize * size_of::<T>();
        // SAFETY: invariant 1; entries are borrowed from this value, so none is left.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), length) };
    }
}
